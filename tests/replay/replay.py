#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Power failures under a real kernel: page cache, file system, block layer. In a guest imgtool works on images, on a file system
or right on a block device, above dm-log-writes, which writes down what reaches the disk and in what order (write_log.py). From
that log come states in which a power failure could have left the disk; the guest's kernel mounts them, which recovers the file
system, and the images are judged: they open without repair, are clean, hold what they held before or after the verb under way,
and nothing is gone that a verb, or a flush, had said to be done.

    replay.py --library PATH --writer PATH --helper PATH [--count N] [--more N] [--setup NAME]... [--all] [--mount OPTIONS]
              [--seed N] [--no-flush] [--keep]

    --count     states of each setup
    --more      verbs by chance after those that every scenario has
    --setup     FORMAT:FS or writer:FORMAT:FS, where FS is ext4, xfs or device; --all: every one that there is
    --mount     options of the file system, as in "-o lazytime"; otherwise some by chance
    --no-flush  only the proof that it can fail, which otherwise comes at the end: flushes that do nothing must be noticed

IMGTOOL names the tool, the library is no_flush.c, the writer that of tests/kill, the helper is helper.c. 77: something is
missing here, and it says what.
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import write_log    # noqa: E402
from guest import IMGTOOL, MIB, PAYLOAD_BYTES, SLOTS, Guest, Wrong, file_system, guests, scratch    # noqa: E402
from judge import Finding, Judge, Writer    # noqa: E402
from scenario import Scenario, payload    # noqa: E402

DISK_BYTES, XFS_BYTES, DEVICE_BYTES, WRITER_BYTES = 64 * MIB, 320 * MIB, 48 * MIB, 4 * MIB
WRITER_MARKS = 120    # flushes and snapshots that are seen to end
SETUPS = ('limg:ext4', 'qcow2:ext4', 'writer:limg:device')
OTHERS = ('vdi', 'vhd', 'vhdx', 'vmdk', 'parallels')
LONG = SETUPS + ('limg:xfs', 'qcow2:xfs', 'writer:limg:ext4', 'writer:qcow2:ext4', 'writer:limg:xfs', 'writer:qcow2:xfs') + tuple(
    '%s:%s' % (fmt, fs) for fmt in OTHERS for fs in ('ext4', 'xfs'))
BROKEN_STATES = 60
# What breaks the flushes, and where it must be found.
BROKEN = (('data', 'limg:ext4'), ('folder', 'limg:ext4'), ('order', 'writer:limg:device'))
MOUNT = {'ext4': ('', '-o commit=1', '-o data=writeback', '-o data=journal', '-o nodelalloc', '-o lazytime'),
         'xfs': ('', '-o wsync', '-o lazytime')}


class Recording:
    """A setup that was played in the guest, and what the log says of it."""

    def __init__(self, guest, setup, seed, more, mount=None, broken=None):
        *kind, self.format, self.fstype = setup.split(':')
        self.guest, self.setup = guest, setup
        self.rng = random.Random('%d %s %s' % (seed, setup, broken))
        self.writer = self.scenario = None
        self.piece = 512 if self.fstype == 'device' else 4096
        self.base = guest.path('base')
        self.mount = '' if broken else mount if mount is not None else self.rng.choice(MOUNT.get(self.fstype, ('',)))
        self.prepare()
        guest.fresh_log()
        guest.run('tool() { %simgtool "$@"; }' % preload(broken))
        guest.run('log %d' % (os.path.getsize(self.base) // 512))
        if self.fstype != 'device':
            guest.run('mount -t %s %s /dev/mapper/log /image && cd /image' % (self.fstype, self.mount))
        guest.run('mark start')
        if kind:
            self.write(preload(broken))
        else:
            self.scenario = Scenario(self.format, self.rng, payload(seed, PAYLOAD_BYTES), -1 if broken else more)
            for number, step in enumerate(self.scenario.steps):
                guest.run('%s && mark done %d' % (step.line, number))
        guest.run('cd /; end' if self.fstype != 'device' else 'dmsetup remove log')
        self.log = write_log.entries(guest.path('log'))
        if self.log[-1].mark != 'dm-log-writes-end':    # a log that is full is not written on, and nobody is told
            raise Wrong('the log of %s is not complete' % setup)

    def prepare(self):
        """The disk as it is at first, also in a file of its own."""
        if self.fstype == 'device':
            scratch(self.base, 0)
            subprocess.run([IMGTOOL, 'create', '-q', '-f', self.format, '--force', self.base, str(WRITER_BYTES)], check=True)
            os.truncate(self.base, DEVICE_BYTES)
        else:
            file_system(self.base, self.fstype, XFS_BYTES if self.fstype == 'xfs' else DISK_BYTES)
        disk = scratch(self.guest.path('disk'), self.guest.disk_bytes)
        subprocess.run(['cp', '--sparse=always', self.base, disk + '.new'], check=True)
        with open(disk + '.new', 'rb') as source, open(disk, 'r+b') as file:    # the guest has this very file
            while chunk := source.read(MIB):
                if chunk.count(0) != len(chunk):
                    file.seek(source.tell() - len(chunk))
                    file.write(chunk)
        os.unlink(disk + '.new')

    def write(self, environment):
        """kill-writer, until it is killed. Each mark comes later than what it says, never before."""
        guest, name = self.guest, '/dev/mapper/log'
        if self.fstype != 'device':
            name = 'writer.' + self.format
            guest.run('tool create -q -f %s %s %d && mark created' % (self.format, name, WRITER_BYTES))
        guest.run('%sreplay-helper marks %d kill-writer %s %d >/said'
                  % (environment, WRITER_MARKS, name, self.rng.randrange(1 << 60)))
        scratch(guest.path('found'), SLOTS << 20)
        guest.run('tar cf - -C / said | dd of=/dev/vdd conv=notrunc,fsync 2>/dev/null')
        said = guest.archived(0)['said'][0].decode()
        self.writer = Writer(said[:said.rindex('\n') + 1])

    def marks(self, cut):
        return [entry.mark for entry in self.log[:cut] if entry.mark]

    def states(self, count):
        first = 1 + next(number for number, entry in enumerate(self.log) if entry.mark == 'start')
        return write_log.choose(self.log, first, self.rng, count, self.piece)

    def files(self, states):
        """-> (state, its files) for each"""
        disk = write_log.Disk(self.base, self.guest.path('log'), self.log, self.piece)
        size = self.guest.disk_bytes
        for at in range(0, len(states), SLOTS):
            batch, path = states[at:at + SLOTS], scratch(self.guest.path('states'), SLOTS * size)
            for slot, state in enumerate(batch):
                disk.save(state, path, slot * size)
            if self.fstype != 'device':
                yield from zip(batch, self.guest.files(len(batch), self.fstype, self.mount))
                continue
            for slot, state in enumerate(batch):
                with open(path, 'rb') as file:
                    file.seek(slot * size)
                    yield state, {'writer.' + self.format: (file.read(DEVICE_BYTES), 0)}

    def judge(self, judge, state, files):
        marks = self.marks(state.cut)
        if self.writer:
            name = 'writer.' + self.format
            if name not in files and 'created' not in marks:
                return
            judge.lay_out(files)
            judge.looks += 1
            judge.check(name)
            self.writer.judge(judge.view(name), [mark for mark in marks if mark[1] == ' '])
            return
        done = max((int(mark.split()[1]) for mark in marks if mark.startswith('done')), default=-1)
        steps = self.scenario.steps
        before = steps[done].after if done >= 0 else {}
        step = steps[done + 1] if done + 1 < len(steps) else None
        judge.folder_of(files, before, step)
        judge.use({name: image for name, image in before.items() if name in files}, step, self.rng)


def preload(broken):
    return 'NO_FLUSH=%s LD_PRELOAD=/lib/no_flush.so ' % broken if broken else ''


def played(guest, args, setup, count, broken=None):
    """-> what was found in the states of a setup"""
    start = time.monotonic()
    recording = Recording(guest, setup, args.seed, args.more, args.mount, broken)
    # What is not there although a verb had ended is seen at its mark; what is there too early, between flushes.
    states = write_log.at_marks(recording.log) if broken and recording.scenario else recording.states(count)
    middle = time.monotonic()
    judge, found = Judge(recording.format, guest.path('judged')), []
    for state, files in recording.files(states):
        try:
            recording.judge(judge, state, files)
        except Finding as finding:
            found.append('%s: %s: %s' % (setup, state, finding))
            if broken:
                break
            print('FOUND: seed %d, %s; done: %s' % (args.seed, found[-1], recording.marks(state.cut)[-1:]), flush=True)
            if args.keep:
                shutil.copytree(judge.folder, guest.path('found-%d' % len(found)))
    flushes = sum(bool(entry.flags & (write_log.FLUSH | write_log.FUA)) for entry in recording.log)
    print('%s%s %s: %d entries, %d of them flushes, %d marks; %d states, %d images looked at, %d with something loose: %s '
          '(%.1f + %.1f s)' % (setup, ' without flushes (%s)' % broken if broken else '', recording.mount, len(recording.log),
                               flushes, len(recording.marks(None)), len(states), judge.looks, judge.loose,
                               '%d FOUND' % len(found) if found else 'all whole', middle - start,
                               time.monotonic() - middle), flush=True)
    return found


def proof(guest, args):
    """With flushes that do nothing there is something to find. -> the number of what it did not find"""
    blind = 0
    for broken, setup in BROKEN:
        if not (args.setup or args.no_flush) or args.no_flush or setup in args.setup:
            found = played(guest, args, setup, BROKEN_STATES, broken)
            print('   %s' % (found[0][:300] if found else 'NOTHING FOUND: this test is blind'))
            blind += not found
    return blind


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--library', required=True)
    parser.add_argument('--writer', required=True)
    parser.add_argument('--helper', required=True)
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--more', type=int, default=0)
    parser.add_argument('--setup', action='append', choices=LONG)
    parser.add_argument('--all', action=argparse.BooleanOptionalAction)
    parser.add_argument('--mount')
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument('--no-flush', action='store_true')
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    print('seed %d' % args.seed)
    setups = [] if args.no_flush else args.setup or (LONG if args.all else SETUPS)
    folder = tempfile.mkdtemp(prefix='replay.', dir=os.environ.get('TMPDIR', '/var/tmp'))
    guest, found, skipped = None, [], 0
    try:
        guests.need(('qemu-img', 'qemu-utils'))
        guest = Guest(folder, [IMGTOOL, args.writer, args.helper], args.library, payload(args.seed, PAYLOAD_BYTES),
                      XFS_BYTES if any(setup.endswith('xfs') for setup in setups) else DISK_BYTES)
        for setup in setups:
            try:
                found += played(guest, args, setup, args.count)
            except guests.Skipped as reason:
                skipped += 1
                print('SKIPPED: %s: %s' % (setup, reason))
        blind = proof(guest, args)
    except guests.Skipped as reason:
        print('SKIPPED:', reason)
        sys.exit(77)
    except Wrong:
        print('seed %d' % args.seed)
        raise
    finally:
        if guest:
            guest.close()
        if args.keep:
            print('files stay in', folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    done = len(setups) - skipped
    print('replay: %d states of %d setups, seed %d, %d setups skipped, %d found' % (done * args.count, done, args.seed, skipped,
                                                                                     len(found)))
    sys.exit(bool(found or blind))


if __name__ == '__main__':
    main()
