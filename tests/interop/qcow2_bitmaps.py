#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Dirty bitmaps, by QEMU's tools and ours in turns on one image: after each step both see in every bitmap just the ranges
that the model says, and neither's check finds anything.

    qcow2_bitmaps.py [--seed N] [--rounds N] [--steps N] [--keep]

What qemu-img writes is judged by imgtool, and the other way round by nbdinfo on a read-only qemu-nbd.
"""
import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from qcow2_lab import Wrong, imgtool, need_tools, ours, qemu_io, run    # noqa: E402

DEFAULT = {512: 4096, 4096: 4096, 65536: 65536, 2 << 20: 65536}


class Bitmap:
    def __init__(self, granularity, enabled):
        self.granularity, self.enabled, self.dirty = granularity, enabled, set()

    def mark(self, off, count):
        if count:
            self.dirty |= set(range(off // self.granularity, (off + count - 1) // self.granularity + 1))

    def ranges(self, size):
        out = []
        for i in sorted(self.dirty):
            start, end = i * self.granularity, min((i + 1) * self.granularity, size)
            if out and out[-1][1] == start:
                out[-1][1] = end
            else:
                out.append([start, end])
        return [(a, b - a) for a, b in out]


class Round:
    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.path = os.path.join(folder, 't.qcow2')
        self.cluster = rng.choice(sorted(DEFAULT))
        # so that bitmaps have several clusters, and an end inside a bit and inside a byte
        self.size = rng.choice((1 << 20, 9 << 20, 130 << 20, 3 << 30)) + rng.randrange(4096) * 512
        self.bitmaps, self.log, self.states = {}, [], {}
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=%d' % self.cluster, self.path, self.size)

    def note(self, *what):
        self.log.append(' '.join(str(w) for w in what))

    def change(self, who, name, verb, *args):
        self.note(who, verb, name, *args)
        if who == 'qemu':
            run('qemu-img', 'bitmap', '--' + verb, *args, '-f', 'qcow2', self.path, name)
        else:
            imgtool('bitmap', verb, self.path, name, *args)

    def add(self, who, number):
        granularity = self.rng.choice((0, 512, 1024, 4096, 65536, 1 << 20, 1 << 31))
        if self.size // (granularity or 4096) > 1 << 20:
            granularity = 65536
        enabled, name = self.rng.random() < 0.7, 'b%d' % number
        if who == 'ours':
            args = (['-g', granularity] if granularity else []) + ([] if enabled else ['--disabled'])
        else:
            args = (['-g', granularity] if granularity else []) + ([] if enabled else ['--disable'])
        self.change(who, name, 'add', *args)
        self.bitmaps[name] = Bitmap(granularity or DEFAULT[self.cluster], enabled)

    def write(self, who):
        count = min(self.rng.choice((1, 8, 200, 3000)) * 512, self.size)
        off = self.rng.randrange((self.size - count) // 512 + 1) * 512
        if self.rng.random() < 0.2:
            off, count = (self.size - 512) // 512 * 512, 512    # the last bit
        zero = self.rng.random() < 0.3
        if who == 'ours' and not zero:
            off, count = off + self.rng.randrange(200), max(1, count - self.rng.randrange(200, 400))
        self.note(who, 'zero' if zero else 'write', hex(off), hex(count))
        if who == 'qemu':
            qemu_io(self.path, 'write %s %d %d' % ('-z -u' if zero else '-P 7', off, count))
        else:
            ours(self.path, '%s %d %d%s' % ('z' if zero else 'w', off, count, '' if zero else ' 7'))
        for b in self.bitmaps.values():
            if b.enabled:
                b.mark(off, count)

    def resize(self, who):
        size = max(512, int(self.size * self.rng.choice((0.4, 0.9, 1.1, 2.5))) // 512 * 512)
        if size > 4 << 30 or any(size // b.granularity > 1 << 20 for b in self.bitmaps.values()):
            size = self.size // 2 // 512 * 512
        if self.states:    # qemu-img refuses to make an image with snapshots smaller
            size = max(size, self.size)
        self.note(who, 'resize', size)
        if who == 'qemu':
            run('qemu-img', 'resize', '-q', '--shrink', '-f', 'qcow2', self.path, size)
        else:
            imgtool('resize', '-q', '--shrink', self.path, size)
        was, self.size = self.size, size
        for b in self.bitmaps.values():
            b.dirty = {i for i in b.dirty if i * b.granularity < size}
            # What a disk grows by may be in the last backup, of a time when it was longer: QEMU leaves that out.
            if who == 'ours' and b.enabled and size > was:
                b.mark(was, size - was)

    def convert(self, who):
        out = os.path.join(self.folder, 'c.qcow2')
        self.note(who, 'convert')
        if who == 'qemu':
            run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'qcow2', '--bitmaps', '-o',
                'cluster_size=%d' % self.cluster, self.path, out)
            # It leaves them as they are told to be made: whether they are enabled is what it says itself.
            now = json.loads(run('qemu-img', 'info', '--output=json', out).stdout)
            for b in now['format-specific']['data'].get('bitmaps', []):
                self.bitmaps[b['name']].enabled = 'auto' in b['flags']
        else:
            imgtool('convert', '-q', '-O', 'qcow2', '--bitmaps', '-o', 'cluster_size=%d' % self.cluster, self.path, out)
        os.rename(out, self.path)
        self.states = {}

    def snapshot(self, who, number):
        self.note(who, 'snapshot')
        if who == 'qemu':
            run('qemu-img', 'snapshot', '-c', 's%d' % number, self.path)
        else:
            imgtool('snapshot', 'create', '%s@s%d' % (self.path, number))
        self.states['s%d' % number] = self.size

    def revert(self):
        name = self.rng.choice(sorted(self.states))
        if any(self.states[name] // b.granularity > 1 << 20 for b in self.bitmaps.values()):
            return
        self.note('ours', 'revert', name)
        imgtool('revert', self.path + '@' + name)
        self.size = self.states[name]
        for b in self.bitmaps.values():
            b.dirty = {i for i in b.dirty if i * b.granularity < self.size}
        for b in self.bitmaps.values():
            if b.enabled:
                b.mark(0, self.size)

    def step(self, number):
        who = self.rng.choice(('ours', 'qemu'))
        name = self.rng.choice(sorted(self.bitmaps)) if self.bitmaps else None
        what = self.rng.choices(('add', 'write', 'enable', 'disable', 'clear', 'merge', 'remove', 'resize', 'convert',
                                 'snapshot', 'revert'), (4, 12, 1, 1, 1, 2, 1, 2, 1, 1, 1))[0]
        if what == 'add' and len(self.bitmaps) < 6:
            self.add(who, number)
        elif what in ('enable', 'disable') and name:
            self.change(who, name, what)
            self.bitmaps[name].enabled = what == 'enable'
        elif what == 'clear' and name:
            self.change(who, name, what)
            self.bitmaps[name].dirty = set()
        elif what == 'remove' and name:
            self.change(who, name, what)
            del self.bitmaps[name]
        elif what == 'merge' and name:
            other = self.rng.choice(sorted(self.bitmaps))
            self.change(who, name, what, other)
            for off, count in self.bitmaps[other].ranges(self.size):
                self.bitmaps[name].mark(off, count)
        elif what == 'resize':
            self.resize(who)
        elif what == 'convert':
            self.convert(who)
        elif what == 'snapshot' and len(self.states) < 4:
            self.snapshot(who, number)
        elif what == 'revert' and self.states:
            self.revert()
        else:
            self.write(who)

    def judge(self):
        run('qemu-img', 'check', '-f', 'qcow2', self.path)
        imgtool('check', '-q', self.path)
        info = json.loads(run('qemu-img', 'info', '--output=json', self.path).stdout)
        theirs = {b['name']: b for b in info['format-specific']['data'].get('bitmaps', [])}
        listed = {b['name']: b for b in json.loads(imgtool('bitmap', 'list', '--json', self.path).stdout)['bitmaps']}
        if sorted(theirs) != sorted(self.bitmaps) or sorted(listed) != sorted(self.bitmaps):
            raise Wrong('bitmaps are %s for them, %s for us' % (sorted(theirs), sorted(listed)))
        for name, b in self.bitmaps.items():
            flags = ['auto'] if b.enabled else []
            if theirs[name]['granularity'] != b.granularity or theirs[name]['flags'] != flags:
                raise Wrong('they say of %s: %s' % (name, theirs[name]))
            if listed[name]['granularity'] != b.granularity or \
                    listed[name]['state'] != ('enabled' if b.enabled else 'disabled'):
                raise Wrong('we say of %s: %s' % (name, listed[name]))
            self.judge_content(name, b, listed[name]['dirty_bytes'])

    def judge_content(self, name, b, dirty_bytes):
        want = b.ranges(self.size)
        if dirty_bytes != sum(count for _, count in want):
            raise Wrong('we count %d dirty bytes in %s, not %s' % (dirty_bytes, name, want))
        got = [(e['start'], e['length']) for e in json.loads(
            imgtool('map', '--json', '--bitmap', name, self.path).stdout)['extents']]
        if got != want:
            raise Wrong('we see in %s %s, not %s' % (name, got[:9], want[:9]))
        text = run('nbdinfo', '--json', '--map=qemu:dirty-bitmap:' + name, '--', '[', 'qemu-nbd', '-r', '-f', 'qcow2',
                   '-B', name, self.path, ']').stdout
        got = []
        for e in json.loads(text):
            if e['type'] & 1 and got and sum(got[-1]) == e['offset']:
                got[-1] = (got[-1][0], got[-1][1] + e['length'])
            elif e['type'] & 1:
                got.append((e['offset'], e['length']))
        if got != want:
            raise Wrong('they see in %s %s, not %s' % (name, got[:9], want[:9]))


def one_round(seed, steps, folder):
    r, number = Round(folder, random.Random(seed)), 0
    try:
        for number in range(steps):
            r.step(number)
            r.judge()
    except Wrong as wrong:
        raise Wrong('%s\n  step %d, clusters of %d, after:\n    %s' % (
            wrong, number, r.cluster, '\n    '.join(r.log[-12:]))) from None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    need_tools('qemu-img', 'qemu-io', 'qemu-nbd')
    if not shutil.which('nbdinfo'):
        print('SKIPPED: not installed: nbdinfo (Debian package libnbd-bin)')
        return 77
    bad, started = 0, time.monotonic()
    print('bitmaps: seeds from %d' % args.seed)
    for seed in range(args.seed, args.seed + args.rounds):
        folder = tempfile.mkdtemp(prefix='bitmaps.', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
        failed = False
        try:
            one_round(seed, args.steps, folder)
        except Wrong as wrong:
            bad, failed = bad + 1, True
            print('FAILED --seed %d --rounds 1 --steps %d\n  %s' % (seed, args.steps, wrong))
            sys.stdout.flush()
        if failed and args.keep:
            print('  files kept in', folder)
        else:
            shutil.rmtree(folder)
    print('interop: %d rounds of %d steps with bitmaps by qemu and by us in turns, %.0f s: %d failures' % (
        args.rounds, args.steps, time.monotonic() - started, bad))
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
