#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Kills imgtool with SIGKILL at random moments of every verb that writes, and looks at what is left.

Each round copies a prepared image, starts one verb, kills it after a random part of the time that the verb takes, and
then wants: `imgtool check` finds nothing, the content is one that the verb's contract allows, and running the verb again
(commit, rebase, flatten, convert) ends well with the content that it should have. A third of the images is given to
limg_reader.py.

    kill.py [--count N] [--seed N] [--dir FOLDER]... [--writer PROGRAM]    IMGTOOL names the tool

The folders should be on different file systems: by default one beside the working directory and one in /dev/shm.
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
READER = os.path.join(HERE, '..', 'interop', 'limg_reader.py')
DISK = 48 << 20
SECTOR = 512


class Failed(Exception):
    pass


def run(*args, stdin=None, want=0):
    done = subprocess.run([IMGTOOL, *args], input=stdin, capture_output=True, check=False)
    if want is not None and done.returncode != want:
        raise Failed('imgtool %s ended with %d, not %d: %s' % (' '.join(args), done.returncode, want,
                                                             done.stderr.decode(errors='replace').strip()))
    return done


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Round:
    """One verb on one copy of the prepared files."""

    def __init__(self, lab, rng):
        self.lab, self.rng = lab, rng
        self.dir = os.path.join(lab.dir, 'round')
        shutil.rmtree(self.dir, ignore_errors=True)
        os.mkdir(self.dir)
        for name in ('base.limg', 'over.limg', 'other.limg', 'new.bin', 'src.raw'):
            subprocess.run(['cp', '--sparse=always', '-p', os.path.join(lab.dir, name), self.dir], check=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def killed(self, verb, *args, stdin=None):
        """Starts imgtool, kills it at a random moment; True if it had ended by itself."""
        span = self.lab.duration.get(verb, .05)
        file = open(stdin, 'rb') if stdin else subprocess.DEVNULL
        started = time.monotonic()
        proc = subprocess.Popen([IMGTOOL, *args], stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        delay = self.rng.random() * span
        try:
            proc.wait(max(0.0005, delay))
        except subprocess.TimeoutExpired:
            proc.kill()
        errors = proc.communicate()[1]
        if stdin:
            file.close()
        self.lab.killed += proc.returncode == -9
        for name in ('base.limg', 'over.limg'):
            self.lab.dirty += json.loads(run('info', '--json', self.path(name)).stdout)['dirty']
        if proc.returncode == 0:
            took = time.monotonic() - started
            self.lab.duration[verb] = (took + span) / 2
        elif proc.returncode != -9:
            raise Failed('imgtool %s ended with %d: %s'
                         % (' '.join(args), proc.returncode, errors.decode(errors='replace')))
        return proc.returncode == 0

    def content(self, name, snap=None):
        """The whole content, through the tool."""
        out = self.path('out.raw')
        run('convert', '-q', '-O', 'raw', '--force', self.path(name) + ('@' + snap if snap else ''), out)
        with open(out, 'rb') as file:
            data = file.read()
        os.unlink(out)
        return data

    def check(self, *names, reader=False):
        for name in names:
            run('check', '-q', self.path(name))
            if reader:
                done = subprocess.run(['/usr/bin/python3', READER, 'verify', self.path(name)], capture_output=True,
                                      check=False)
                if done.returncode:
                    raise Failed('limg_reader.py verify %s: %s' % (name, done.stderr.decode(errors='replace').strip()))

    def snapshots_whole(self, names=('one', 'two')):
        for snap in names:
            if digest(self.content('base.limg', snap)) != self.lab.snaps[snap]:
                raise Failed('snapshot %s has changed' % snap)

    def snapshot_names(self):
        lines = run('snapshot', 'list', '--json', self.path('base.limg')).stdout
        return lines.decode()


class Lab:
    """A folder with the prepared files."""

    def __init__(self, folder, rng, writer):
        self.writer = writer
        self.dir = tempfile.mkdtemp(prefix='kill.', dir=folder)
        self.duration = {}
        self.killed = self.dirty = 0    # rounds in which it was killed; images that need a replay
        write = lambda name, data: open(os.path.join(self.dir, name), 'wb').write(data)    # noqa: E731
        base, over = os.path.join(self.dir, 'base.limg'), os.path.join(self.dir, 'over.limg')
        first = bytearray(DISK)
        first[0:12 << 20] = rng.randbytes(12 << 20)
        first[20 << 20:28 << 20] = (b'the quick brown fox %d ' % rng.randrange(1000)) * 400000
        first = bytes(first[:DISK])
        write('src.raw', first)
        write('new.bin', rng.randbytes(6 << 20))
        run('convert', '-q', '-O', 'limg', '-c', 'zstd', os.path.join(self.dir, 'src.raw'), base)
        self.snaps = {}
        run('snapshot', 'create', base + '@one')
        self.snaps['one'] = digest(first)
        run('write', '-q', base, '--offset', str(4 << 20), stdin=rng.randbytes(9 << 20))
        self.snaps['two'] = digest(self.plain(base))
        run('snapshot', 'create', base + '@two')
        run('write', '-q', base, '--offset', str(19 << 20), stdin=rng.randbytes(5 << 20))
        self.head = self.plain(base)
        run('create', '-q', '-f', 'limg', '-b', 'base.limg', over)
        run('write', '-q', over, '--offset', str(1 << 20), stdin=rng.randbytes(8 << 20))
        run('write', '-q', over, '--offset', str(30 << 20), stdin=rng.randbytes(4 << 20))
        self.over = self.plain(over)
        other = os.path.join(self.dir, 'other.limg')
        run('convert', '-q', '-O', 'limg', base, other)
        run('write', '-q', other, '--offset', str(40 << 20), stdin=rng.randbytes(3 << 20))

    def plain(self, path):
        out = os.path.join(self.dir, 'out.raw')
        run('convert', '-q', '-O', 'raw', '--force', path, out)
        with open(out, 'rb') as file:
            data = file.read()
        os.unlink(out)
        return data


# -- the verbs ------------------------------------------------------------------------------------------------------


def verb_write(r):
    off = r.rng.randrange(0, (DISK - (7 << 20)) // SECTOR) * SECTOR
    whole = r.killed('write', 'write', '-q', r.path('base.limg'), '--offset', str(off), stdin=r.path('new.bin'))
    r.check('base.limg')
    with open(r.path('new.bin'), 'rb') as file:
        new = file.read()
    old, got = r.lab.head, r.content('base.limg')
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
    proc = subprocess.Popen([r.lab.writer, r.path('base.limg'), str(r.rng.randrange(1 << 60))], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    threading.Timer(.02 + r.rng.random() * .4, proc.kill).start()
    said, errors = proc.communicate()
    if proc.returncode != -9:
        raise Failed('kill-writer ended with %d: %s' % (proc.returncode, errors.decode(errors='replace')))
    r.lab.killed += 1
    r.lab.dirty += json.loads(run('info', '--json', r.path('base.limg')).stdout)['dirty']
    r.check('base.limg')
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
        judge_blocks(r, r.content('base.limg', name), wrote, op, op)
    judge_blocks(r, r.content('base.limg'), wrote, flushed, 1 << 62)
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
    dst = r.path('dst.limg')
    whole = r.killed('convert', 'convert', '-q', '-O', 'limg', '-c', 'zstd', r.path('src.raw'), dst)
    if whole or os.path.exists(dst):
        r.check('dst.limg')
        run('compare', '-q', r.path('src.raw'), dst)
    else:
        run('convert', '-q', '-O', 'limg', '-c', 'zstd', r.path('src.raw'), dst)
        run('compare', '-q', r.path('src.raw'), dst)


def verb_snapshot_create(r):
    whole = r.killed('create', 'snapshot', 'create', r.path('base.limg') + '@three')
    r.check('base.limg')
    there = '"three"' in r.snapshot_names()
    if whole and not there:
        raise Failed('a snapshot that was created is not there')
    if there and r.content('base.limg', 'three') != r.lab.head:
        raise Failed('a new snapshot is not what the head was')
    if r.content('base.limg') != r.lab.head:
        raise Failed('snapshot create changed the head')
    r.snapshots_whole()


def verb_snapshot_delete(r):
    name, other = r.rng.sample(('one', 'two'), 2)
    whole = r.killed('delete', 'snapshot', 'delete', r.path('base.limg') + '@' + name)
    r.check('base.limg')
    there = '"%s"' % name in r.snapshot_names()
    if whole and there:
        raise Failed('a snapshot that was deleted is there')
    if r.content('base.limg') != r.lab.head:
        raise Failed('snapshot delete changed the head')
    r.snapshots_whole((name, other) if there else (other,))


def verb_rename(r):
    whole = r.killed('rename', 'snapshot', 'rename', r.path('base.limg') + '@one', 'eins')
    r.check('base.limg')
    names = r.snapshot_names()
    if ('"one"' in names) + ('"eins"' in names) != 1 or whole and '"one"' in names:
        raise Failed('after rename the snapshots are ' + names)
    if r.content('base.limg') != r.lab.head:
        raise Failed('rename changed the head')


def verb_revert(r):
    name = r.rng.choice(('one', 'two'))
    whole = r.killed('revert', 'revert', '-q', r.path('base.limg') + '@' + name)
    r.check('base.limg')
    got = digest(r.content('base.limg'))
    if got != r.lab.snaps[name] and (whole or got != digest(r.lab.head)):
        raise Failed('after revert the head is neither what it was nor the snapshot')
    r.snapshots_whole()


def verb_commit(r):
    r.killed('commit', 'commit', '-q', r.path('over.limg'))
    r.check('base.limg', 'over.limg')
    run('commit', '-q', r.path('over.limg'))
    if r.content('over.limg') != r.lab.over or r.content('base.limg') != r.lab.over:
        raise Failed('commit, run again, did not end with the content of the overlay')
    r.snapshots_whole()


def again(r, verb, args):
    r.killed(verb, *args)
    r.check('over.limg', 'base.limg')
    if r.content('over.limg') != r.lab.over:
        raise Failed('a killed %s changed the content' % verb)
    run(*args)
    if r.content('over.limg') != r.lab.over:
        raise Failed('%s, run again, changed the content' % verb)
    if r.content('base.limg') != r.lab.head:
        raise Failed('%s changed the parent' % verb)


def verb_rebase(r):
    again(r, 'rebase', ['rebase', '-q', '-b', r.rng.choice(('other.limg', 'base.limg@one')), r.path('over.limg')])


def verb_flatten(r):
    again(r, 'flatten', ['flatten', '-q', r.path('over.limg')])


def verb_resize(r):
    size = r.rng.choice((DISK + (8 << 20), 25 << 20, (10 << 20) + 512))
    whole = r.killed('resize', 'resize', '-q', '--shrink', r.path('base.limg'), str(size))
    r.check('base.limg')
    got, old = r.content('base.limg'), r.lab.head
    if len(got) not in ((size,) if whole else (size, DISK)):
        raise Failed('after resize the disk has %d bytes' % len(got))
    if got != (old + bytes(8 << 20))[:len(got)]:
        raise Failed('resize changed the content')
    r.snapshots_whole()


VERBS = [verb_writer, verb_write, verb_convert, verb_snapshot_create, verb_snapshot_delete, verb_rename, verb_revert,
         verb_commit, verb_rebase, verb_flatten, verb_resize]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--count', type=int, default=50, help='rounds in each folder')
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--dir', action='append')
    parser.add_argument('--writer', help='path of kill-writer')
    parser.add_argument('--verb', help='only this one')
    args = parser.parse_args()
    verbs = [v for v in VERBS if not args.verb or v.__name__ == 'verb_' + args.verb]
    bad = 0
    for folder in args.dir or [os.getcwd(), '/dev/shm']:
        rng = random.Random(args.seed)
        lab = Lab(folder, rng, args.writer)
        rounds = 0
        try:
            for i in range(args.count):
                verb = verbs[i % len(verbs)]
                r = Round(lab, rng)
                verb(r)
                if i // len(verbs) % 3 == 0:
                    r.check('base.limg', 'over.limg', reader=True)
                rounds += 1
            shutil.rmtree(lab.dir)
        except Failed as failed:
            print('kill: seed %d, %s, round %d: %s (files kept in %s)' % (args.seed, verb.__name__, i, failed, lab.dir))
            bad = 1
        print('kill: %d rounds in %s, seed %d: %d killed, %d images to replay: %s' % (
            rounds, folder, args.seed, lab.killed, lab.dirty, 'FAILED' if bad else 'all whole'))
        if bad:
            break
    return bad


if __name__ == '__main__':
    sys.exit(main())
