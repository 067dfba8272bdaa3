#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Every kind of qcow2 image, in both directions: written by us and judged by QEMU's tools, written by QEMU's tools and
judged by us; afterwards each goes on in the other's image.

    qcow2_matrix.py [--all] [--seed N] [--only TEXT] [--list] [--keep]

Kinds are compat x cluster size x refcount bits x extended L2 x compression x external data file, where the format allows
it. Without --all as many of them are taken as it needs for every pair of values to occur (that two features meet), with
--all every one. IMGTOOL and IMAGE_IO name our programs.
"""
import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from qcow2_lab import Lab, Wrong, imgtool, need_tools, ours, qemu_io, run    # noqa: E402

CLUSTERS = {'512': 512, '4K': 4096, '16K': 16384, '64K': 65536, '2M': 2 << 20}
NAMES = ('compat', 'cluster', 'refcount', 'extended', 'compression', 'data_file')
VALUES = (('0.10', '1.1'), tuple(CLUSTERS), (1, 16, 64), (False, True), ('none', 'zlib', 'zstd'), ('off', 'on', 'raw'))


def legal(kind):
    compat, cluster, refcount, extended, compression, data_file = kind
    if compat == '0.10' and (refcount != 16 or extended or compression == 'zstd' or data_file != 'off'):
        return False
    if extended and CLUSTERS[cluster] < 16384 or cluster == '16K' and not extended:
        return False
    return data_file == 'off' or compression == 'none'


def all_kinds():
    return [kind for kind in itertools.product(*VALUES) if legal(kind)]


def pairs_of(kind):
    return set(itertools.combinations(enumerate(kind), 2))


def enough(kinds):
    """A few, of which every pair of values that occurs at all occurs in one. Greedy, and the same each time."""
    wanted = set().union(*(pairs_of(k) for k in kinds))
    chosen = []
    while wanted:
        best = max(kinds, key=lambda k: len(pairs_of(k) & wanted))
        chosen.append(best)
        wanted -= pairs_of(best)
    return chosen


class Kind:
    def __init__(self, values):
        for name, value in zip(NAMES, values):
            setattr(self, name, value)
        self.bytes = CLUSTERS[self.cluster]
        self.compress = self.compression != 'none'
        # A snapshot shares clusters: one bit counts to one only. With its own data file there are none.
        self.snapshots = self.refcount > 1 and self.data_file == 'off'

    def __str__(self):
        return 'compat=%s cluster=%s refcount=%d extended=%s compression=%s data_file=%s' % tuple(
            getattr(self, name) for name in NAMES)

    def options(self, folder):
        o = ['compat=' + self.compat, 'cluster_size=' + self.cluster, 'refcount_bits=%d' % self.refcount]
        if self.extended:
            o.append('extended_l2=on')
        if self.compat != '0.10' and self.compress:
            o.append('compression_type=' + self.compression)
        if self.data_file != 'off':
            o.append('data_file=' + os.path.join(folder, 't.data'))
        if self.data_file == 'raw':
            o.append('data_file_raw=on')
        return ','.join(o)


def some_range(rng, size, unit, align):
    """Mostly around borders of clusters."""
    off = rng.randrange(size)
    count = rng.choice((align, unit, unit * 2 + align, unit // 2 + align, 3 * unit, rng.randrange(1, 200000)))
    if rng.random() < .5:
        off = off // unit * unit
    off = off // align * align
    count = max(align, count // align * align)
    return off, min(count, size - off)


def change(lab, kind, who, rng):
    align = 512 if who == 'qemu' else rng.choice((1, 512, 512))
    off, count = some_range(rng, len(lab.head), kind.bytes, align)
    what = rng.choices(('fill', 'random', 'compress', 'zero', 'discard'), (4, 3, 3 if kind.compress else 0, 3, 2))[0]
    if what == 'fill':
        lab.write(who, off, count, rng.randrange(1, 256))
    elif what == 'random':
        lab.write_random(who, off, count, rng.randrange(1 << 32))
    elif what == 'zero':
        lab.zero(who, off, count, rng.random() < .5)
    elif what == 'discard':
        lab.discard(who, off, count)
    else:
        compress(lab, kind, who, rng)


def compress(lab, kind, who, rng):
    """Whole clusters. QEMU does not write one compressed over another: what it held is freed before."""
    off = rng.randrange(len(lab.head)) // kind.bytes * kind.bytes
    count = min(kind.bytes, len(lab.head) - off)
    if who == 'qemu':
        lab.discard(who, off, count)
        if count < kind.bytes or kind.compat == '0.10':
            return
    lab.write(who, off, count, rng.randrange(1, 256), compressed=True)


def create(lab, kind, who, size):
    options = kind.options(lab.folder)
    lab.note(who, 'create %s %d' % (options, size))
    if who == 'qemu':
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, lab.path, size)
    else:
        imgtool('create', '-q', '-f', 'qcow2', '-o', options, lab.path, size)
    lab.external = kind.data_file != 'off'
    if kind.data_file == 'raw':
        lab.data_file = os.path.join(lab.folder, 't.data')


def refused_snapshots(lab, kind):
    """Where a kind cannot have snapshots both say so, and with us nothing has happened; QEMU leaks clusters: on a copy."""
    copy = os.path.join(lab.folder, 'refused.qcow2')
    shutil.copy(lab.path, copy)
    run('qemu-img', 'snapshot', '-c', 'no', copy, want=(1,))
    done = imgtool('snapshot', 'create', lab.path + '@no', want=None)
    if done.returncode == 0:
        raise Wrong('a snapshot was made where there can be none (%s)' % kind)
    lab.judge()


def snapshots(lab, kind, who, other, rng):
    if not kind.snapshots:
        lab.write(who, 0, 512, 77)
        refused_snapshots(lab, kind)
        return
    lab.snapshot(who, 'one')
    for _ in range(3):
        change(lab, kind, who, rng)
    lab.snapshot(who, 'two')
    lab.judge()
    change(lab, kind, other, rng)
    lab.snapshot(other, 'three')
    lab.delete(who, 'one')
    lab.judge()
    lab.revert(other, 'two')
    change(lab, kind, who, rng)
    lab.judge()
    lab.delete(other, 'two')
    lab.revert(who, 'three')
    change(lab, kind, other, rng)
    lab.judge()


def copies(lab, kind, who):
    """The content into a fresh image of the same kind by convert, compressed where the kind says so."""
    if kind.data_file != 'off':
        return
    copy = Lab(lab.folder, 0, 'copy.qcow2')
    copy.head = bytearray(lab.head)
    options = kind.options(lab.folder)
    if who == 'qemu':
        run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'qcow2', '-o', options, *(['-c'] if kind.compress else []),
            lab.path, copy.path)
    else:
        codec = ['-c', kind.compression] if kind.compress else []
        imgtool('convert', '-q', '--force', '-O', 'qcow2', '-o', options, *codec, lab.path, copy.path)
    copy.judge()
    for fill in (7, 8):    # and it can be written
        copy.write('ours' if who == 'qemu' else 'qemu', 4096, 70000 // 512 * 512, fill)
        copy.judge()


def one(kind, who, rng, folder):
    other = 'ours' if who == 'qemu' else 'qemu'
    size = ((9 << 20) if kind.bytes > 65536 else (2 << 20)) + 1536
    lab = Lab(folder, size)
    try:
        create(lab, kind, who, size)
        lab.judge()
        for _ in range(6):
            change(lab, kind, who, rng)
        lab.judge()
        for _ in range(3):
            change(lab, kind, other, rng)
        lab.judge()
        # QEMU's own reads of a pattern, and ours.
        lab.write(who, 65536, 65536, 0x5a)
        qemu_io(lab.path, 'read -P 0x5a 65536 65536')
        ours(lab.path, 'p 65536 65536 90', 'f')
        snapshots(lab, kind, who, other, rng)
        copies(lab, kind, who)
        if kind.snapshots:    # sizes of version 2 cannot be changed by QEMU under snapshots
            for name in list(lab.snaps):
                lab.delete(other, name)
        lab.resize(who, size + (1 << 20))
        change(lab, kind, other, rng)
        lab.resize(other, size // 1024 * 512)
        change(lab, kind, who, rng)
        lab.judge()
    except Wrong as wrong:
        raise Wrong('%s\n  after:\n    %s' % (wrong, '\n    '.join(lab.log[-12:]))) from None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--all', action='store_true')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--only', help='kinds and directions that contain this text')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--keep', action='store_true', help='keep the files of what failed')
    args = parser.parse_args()
    kinds = all_kinds() if args.all or args.only else enough(all_kinds())
    work = [(Kind(k), who) for k in kinds for who in ('ours', 'qemu')]
    work = [(k, who) for k, who in work if not args.only or args.only in '%s by=%s' % (k, who)]
    if args.list:
        print('\n'.join('%s by=%s' % w for w in work))
        return 0
    need_tools('qemu-img', 'qemu-io')
    bad, started = 0, time.monotonic()
    for kind, who in work:
        folder = tempfile.mkdtemp(prefix='matrix.', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
        failed = False
        try:
            one(kind, who, random.Random('%s %s %d' % (kind, who, args.seed)), folder)
        except Wrong as wrong:
            bad, failed = bad + 1, True
            print('FAILED --only "%s by=%s" --seed %d\n  %s' % (kind, who, args.seed, wrong))
            sys.stdout.flush()
        if not (failed and args.keep):
            shutil.rmtree(folder)
        else:
            print('  files kept in', folder)
    print('interop: %d kinds of qcow2 of %d, both directions, seed %d, %.0f s: %d failures' % (
        len(set(str(k) for k, _ in work)), len(all_kinds()), args.seed, time.monotonic() - started, bad))
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
