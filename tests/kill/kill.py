#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Kills imgtool with SIGKILL at random moments of every verb that writes, and looks at what is left.

Each round copies a prepared image, starts one verb, kills it after a random part of the time that the verb takes, or (where
there is strace) at a random one of the calls that change files, and then wants: `imgtool check` finds nothing (in qcow2 at
worst leaks, as qemu-img check says), the content is one that the verb's contract allows, and running the verb again (commit,
rebase, flatten, convert, amend, repair) ends well with the content that it should have. A third of the images in limg is
given to limg_reader.py.

    kill.py [--count N] [--seed N] [--dir FOLDER]... [--writer PROGRAM]    IMGTOOL names the tool

The folders should be on different file systems: by default one beside the working directory and one in /dev/shm.
"""
import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from lab import BACKED, DISK, IMGTOOL, PLAIN, SECTOR, SEVERAL, Failed, Lab, Round, digest, run    # noqa: E402
from verbs import MORE_VERBS, only    # noqa: E402


# -- the verbs ------------------------------------------------------------------------------------------------------


def verb_write(r):
    off = r.rng.randrange(0, (DISK - (7 << 20)) // SECTOR) * SECTOR
    whole = r.killed('write', 'write', '-q', r.path('base.img'), '--offset', str(off), stdin=r.path('new.bin'))
    r.check('base.img')
    with open(r.path('new.bin'), 'rb') as file:
        new = file.read()
    old, got = r.lab.head, r.content('base.img')
    end = off + len(new)
    if got[:off] != old[:off] or got[end:] != old[end:]:
        raise Failed('a killed write changed bytes outside its range')
    if whole and got[off:end] != new:
        raise Failed('a write that ended well is not there')
    for at in range(off, end, SECTOR):
        if got[at:at + SECTOR] != new[at - off:at - off + SECTOR] and got[at:at + SECTOR] != old[at:at + SECTOR]:
            raise Failed('sector at 0x%x is neither old nor new' % at)
    r.snapshots_whole()


def verb_writer(r):
    """A process that has the image open for long: what it said was durable is there, and its snapshots are exact."""
    if not r.lab.writer:
        return
    proc = subprocess.Popen([r.lab.writer, r.path('base.img'), str(r.rng.randrange(1 << 60))], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    threading.Timer(.02 + r.rng.random() * .4, proc.kill).start()
    said, errors = proc.communicate()
    if proc.returncode != -9:
        raise Failed('kill-writer ended with %d: %s' % (proc.returncode, errors.decode(errors='replace')))
    r.lab.killed += 1
    r.lab.dirty += json.loads(run('info', '--json', r.path('base.img')).stdout)['dirty']
    r.check('base.img')
    wrote, flushed, snaps, doubtful = {}, 0, {}, None    # block -> operations that wrote it
    for line in said.decode().splitlines():
        what, *words = line.split()
        if what == 'w':
            op, first, count = map(int, words)
            for block in range(first, first + count):
                wrote.setdefault(block, []).append(op)
        elif what == 'f':
            flushed = int(words[0])
        elif what == 's':
            snaps[words[0]] = flushed = int(words[1])
        elif what == 'd':
            doubtful = words[0]
        else:
            del snaps[words[0]]
    names = r.snapshot_names()
    for name, op in snaps.items():
        if '"%s"' % name not in names:
            if name == doubtful:
                continue
            raise Failed('snapshot %s was acknowledged and is not there' % name)
        judge_blocks(r, r.content('base.img', name), wrote, op, op)
    judge_blocks(r, r.content('base.img'), wrote, flushed, 1 << 62)
    r.snapshots_whole()


def judge_blocks(r, data, wrote, least, most):
    """Each block holds the last operation up to `least`, or a later one up to `most`; others are as before."""
    old = r.lab.head
    for block in range(DISK // 4096):
        got = data[block * 4096:block * 4096 + 4096]
        ops = wrote.get(block, [])
        before = [op for op in ops if op <= least]
        allowed = before[-1:] + [op for op in ops if least < op <= most]
        if not before and got == old[block * 4096:block * 4096 + 4096]:
            continue
        said, op = struct.unpack_from('<QQ', got)
        if said != block or op not in allowed or got != got[:16] * 256:
            raise Failed('block %d holds operation %d of block %d, allowed are %s' % (block, op, said, allowed[:5]))


def verb_convert(r):
    dst, args = r.path('dst.img'), ['convert', '-q', '-O', r.lab.format, *r.lab.make, *r.lab.compress]
    whole = r.killed('convert', *args, r.path('src.raw'), dst)
    if whole or os.path.exists(dst):
        r.check('dst.img')
    else:
        data_files_whole(r)
        run(*args, r.path('src.raw'), dst)
    run('compare', '-q', r.path('src.raw'), dst)


def data_files_whole(r):
    """Of an image that is not there no data file is either, or, where the kill fell between two renames, no part of one."""
    end = time.monotonic() + 3
    while r.beside('dst.img') and time.monotonic() < end:    # the broker takes them back
        time.sleep(.05)
    left = r.beside('dst.img')
    if not left:
        return
    r.lab.orphans += 1
    os.mkdir(r.path('again'))
    run('convert', '-q', '-O', r.lab.format, *r.lab.make, '--threads', '1', r.path('src.raw'), r.path('again/dst.img'))
    for name in left:
        with open(r.path(name), 'rb') as file, open(r.path('again/' + name), 'rb') as other:
            data, want = file.read(), other.read()
        if sorted_pieces(data) != sorted_pieces(want):
            raise Failed('%s has its name, the image has not, and it is not whole' % name)
        os.unlink(r.path(name))
    shutil.rmtree(r.path('again'))


def sorted_pieces(data):
    """What a file holds, in whatever order it was written: behind a MiB in which header and tables are."""
    pieces = [data[at:at + 4096] for at in range(1 << 20, len(data), 4096)]
    return len(data), sorted(digest(p) for p in pieces)


@only('limg', 'qcow2')
def verb_snapshot_create(r):
    whole = r.killed('create', 'snapshot', 'create', r.path('base.img') + '@three')
    r.check('base.img')
    there = '"three"' in r.snapshot_names()
    if whole and not there:
        raise Failed('a snapshot that was created is not there')
    if there and r.content('base.img', 'three') != r.lab.head:
        raise Failed('a new snapshot is not what the head was')
    if r.content('base.img') != r.lab.head:
        raise Failed('snapshot create changed the head')
    r.snapshots_whole()


@only('limg', 'qcow2')
def verb_snapshot_delete(r):
    name, other = r.rng.sample(('one', 'two'), 2)
    whole = r.killed('delete', 'snapshot', 'delete', r.path('base.img') + '@' + name)
    r.check('base.img')
    there = '"%s"' % name in r.snapshot_names()
    if whole and there:
        raise Failed('a snapshot that was deleted is there')
    if r.content('base.img') != r.lab.head:
        raise Failed('snapshot delete changed the head')
    r.snapshots_whole((name, other) if there else (other,))


@only('limg', 'qcow2')
def verb_rename(r):
    whole = r.killed('rename', 'snapshot', 'rename', r.path('base.img') + '@one', 'eins')
    r.check('base.img')
    names = r.snapshot_names()
    if ('"one"' in names) + ('"eins"' in names) != 1 or whole and '"one"' in names:
        raise Failed('after rename the snapshots are ' + names)
    if r.content('base.img') != r.lab.head:
        raise Failed('rename changed the head')


@only('limg', 'qcow2')
def verb_revert(r):
    name = r.rng.choice(('one', 'two'))
    whole = r.killed('revert', 'revert', '-q', r.path('base.img') + '@' + name)
    r.check('base.img')
    got = digest(r.content('base.img'))
    if got != r.lab.snaps[name] and (whole or got != digest(r.lab.head)):
        raise Failed('after revert the head is neither what it was nor the snapshot')
    r.snapshots_whole()


@only(*BACKED)
def verb_commit(r):
    r.killed('commit', 'commit', '-q', r.path('over.img'))
    r.check('base.img', 'over.img')
    if r.content('over.img') != r.lab.over:
        raise Failed('after a commit that was killed the overlay reads otherwise')
    run('commit', '-q', r.path('over.img'))
    if r.content('over.img') != r.lab.over or r.content('base.img') != r.lab.over:
        raise Failed('commit, run again, did not end with the content of the overlay')
    r.snapshots_whole()


def again(r, verb, args):
    r.killed(verb, *args)
    r.check('over.img', 'base.img')
    if r.content('over.img') != r.lab.over:
        raise Failed('a killed %s changed the content' % verb)
    run(*args)
    if r.content('over.img') != r.lab.over:
        raise Failed('%s, run again, changed the content' % verb)
    if r.content('base.img') != r.lab.head:
        raise Failed('%s changed the parent' % verb)


@only(*BACKED)
def verb_rebase(r):
    parents = ('other.img', 'base.img@one') if r.lab.format == 'limg' else ('other.img',)
    again(r, 'rebase', ['rebase', '-q', '-b', r.rng.choice(parents), r.path('over.img')])


@only(*BACKED)
def verb_flatten(r):
    again(r, 'flatten', ['flatten', '-q', r.path('over.img')])


def verb_resize(r):
    size = r.rng.choice((DISK + (8 << 20), 25 << 20, (10 << 20) + 512))
    whole = r.killed('resize', 'resize', '-q', '--shrink', r.path('base.img'), str(size))
    r.check('base.img')
    got, old = r.content('base.img'), r.lab.head
    if len(got) not in ((size,) if whole else (size, DISK)):
        raise Failed('after resize the disk has %d bytes' % len(got))
    if got != (old + bytes(8 << 20))[:len(got)]:
        raise Failed('resize changed the content')
    r.snapshots_whole()


VERBS = [verb_writer, verb_write, verb_convert, verb_snapshot_create, verb_snapshot_delete, verb_rename, verb_revert,
         verb_commit, verb_rebase, verb_flatten, verb_resize, *MORE_VERBS]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--count', type=int, default=50, help='rounds in each folder')
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--dir', action='append')
    parser.add_argument('--writer', help='path of kill-writer')
    parser.add_argument('--format', choices=('limg', 'qcow2', *PLAIN, *SEVERAL), default='limg', help='or a kind of images')
    parser.add_argument('--verb', help='only this one')
    args = parser.parse_args()
    format_ = SEVERAL.get(args.format, (args.format,))[0]
    made = subprocess.run([IMGTOOL, 'create', '-f', format_, '-o', 'help', '-'], capture_output=True, check=False)
    if made.returncode or args.format == 'qcow2' and not shutil.which('qemu-img'):
        print('SKIPPED: this build has no format %s, or there is no qemu-img' % args.format)
        return 77
    verbs = [v for v in VERBS if not args.verb or v.__name__ == 'verb_' + args.verb]
    verbs = [v for v in verbs if format_ in getattr(v, 'formats', format_)]
    if args.format in SEVERAL:    # they keep their size; raw files have been looked at
        verbs = [v for v in verbs if v.__name__ not in ('verb_resize', 'verb_raw', 'verb_device')]
        if args.format == 'vmdk-flat':
            verbs = [v for v in verbs if getattr(v, 'formats', ()) != BACKED and v.__name__ != 'verb_repair']
    bad = 0
    for folder in args.dir or [os.getcwd(), '/dev/shm']:
        rng = random.Random(args.seed)
        lab = Lab(folder, rng, args.writer, args.format)
        rounds = 0
        try:
            for i in range(args.count):
                verb = verbs[i % len(verbs)]
                r = Round(lab, rng)
                verb(r)
                if i // len(verbs) % 3 == 0:
                    r.check('base.img', 'over.img', reader=True)
                rounds += 1
            shutil.rmtree(lab.dir)
        except Failed as failed:
            print('kill: seed %d, %s, round %d: %s (files kept in %s)' % (args.seed, verb.__name__, i, failed, lab.dir))
            bad = 1
        if lab.no_device:
            print('kill: SKIPPED: devices: no loop device to be had')
        print('kill: %s, %d rounds in %s, seed %d: %d killed, %d of them at a change, %d images to replay, %d with leaks, %d times data files without an image: %s' % (
            args.format, rounds, folder, args.seed, lab.killed, lab.at_call, lab.dirty, lab.leaky, lab.orphans, 'FAILED' if bad else 'all whole'))
        if bad:
            break
    return bad


if __name__ == '__main__':
    sys.exit(main())
