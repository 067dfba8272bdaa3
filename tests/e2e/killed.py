#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Kills imgvm with SIGKILL at random moments, while its guest writes and while snapshots are made and gone back to, and
looks at what is left.

The guest (the boot sector's 'k') writes the numbers 1, 2, 3... in turn to slots on its disk, and prints each when the
write has returned. SeaBIOS asks for no flushes, so that every write is durable when it returns: the disk is always that
of all writes up to some number, each slot holding the largest that belongs there.

After every kill `imgtool check` finds nothing, the head's disk is that of some number, not lower than what was printed
last (but for going back), every snapshot that was reported is there, and its disk is exactly that of the number with
which its machine goes on.

    killed.py [--count N] [--seed N] [--keep]
"""
import argparse
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from machine import IMGVM, Lab, Machine, Skipped, Wrong, claim, imgtool, need_kvm    # noqa: E402
from guests import SECTOR, WRITER_LBA, WRITER_SLOTS    # noqa: E402


def slots(image):
    """-> the number in each slot; a slot is one number, over and over"""
    data = imgtool('read', '-q', image, '--offset', str(WRITER_LBA * SECTOR), '--length',
                   str(WRITER_SLOTS * SECTOR)).stdout
    numbers = struct.unpack('<%dI' % (len(data) // 4), data)
    for slot in range(WRITER_SLOTS):
        part = numbers[slot * 128:slot * 128 + 128]
        claim(part == part[:1] * 128, 'slot %d is torn: %r', slot, part)
    return list(numbers[::128])


def written(last):
    """-> the slots after the numbers up to `last`"""
    result = [0] * WRITER_SLOTS
    for number in range(max(1, last - WRITER_SLOTS + 1), last + 1):
        result[number % WRITER_SLOTS] = number
    return result


def numbers_of(text):
    return [int(number, 16) for number in re.findall(r'^K([0-9a-f]{8})\r?$', text, re.M)]


class Rounds:
    def __init__(self, lab, rng):
        self.rng = rng
        self.image = lab.boot_image()
        self.made = self.back = 0
        with Machine(self.image) as machine:
            machine.expect('^T00000002')
            machine.do('k', '^K000000[1-9a-f][0-9a-f]\n')
            machine.control('snapshot', snapshot='start')
            machine.quit()
        self.first = self.resumes('start')

    def resumes(self, name):
        """What a snapshot holds, disk and machine. -> the number that it stands at"""
        with Machine(self.image, '--transient', snapshot=name) as machine:
            machine.expect('(K[0-9a-f]{8}\n){3}')
            # What is left of a line that was under way comes first, and may look like a whole one or not.
            numbers = numbers_of(machine.text())
        claim(numbers == list(range(numbers[0], numbers[0] + len(numbers))), '%s goes on with %r', name, numbers[:9])
        after = self.disk_number(self.image + '@' + name)
        # The next whole line is that of the last write, of the next one, or where a line was under way of that after.
        claim(after <= numbers[0] <= after + 2, '%s has %d on disk and goes on with %d', name, after, numbers[0])
        return after

    @staticmethod
    def disk_number(image):
        """-> the number up to which a disk is written"""
        there = slots(image)
        claim(there == written(max(there)), 'the disk of %s is not that of %d writes', image, max(there))
        return max(there)

    def snapshots(self):
        listed = json.loads(imgtool('snapshot', 'list', '--json', self.image).stdout)['snapshots']
        return [snap['name'] for snap in listed]

    def meddle(self, machine, stop, made):
        """Snapshots, and now and then back to the start, until imgvm is killed."""
        number = 0
        while not stop.is_set():
            number += 1
            if self.rng.random() < .3:
                verb, name = 'revert', 'start'
            else:
                verb, name = 'snapshot', 's%d' % number
            self.back += verb == 'revert'
            done = subprocess.run([IMGVM, verb, self.image + '@' + name], capture_output=True, check=False)
            if done.returncode == 0:
                self.made += verb == 'snapshot'
                if verb == 'snapshot':
                    made.append(name)
            elif machine.proc.poll() is None and not stop.is_set():
                made.append(Wrong('imgvm %s: %s' % (verb, done.stderr.decode())))
                return

    def round(self, number):
        rng = self.rng
        stop, made, gone_back = threading.Event(), [], self.back
        with Machine(self.image, '--revert', snapshot='start') as machine:
            thread = threading.Thread(target=self.meddle, args=(machine, stop, made)) if rng.random() < .6 else None
            if thread:
                machine.expect('^K')
                thread.start()
            time.sleep(rng.random() * rng.choice((.02, .2, .8)))
            stop.set()
            machine.kill()
            if thread:
                thread.join()
            printed = numbers_of(machine.text())
            gone_back = self.back - gone_back
        for failure in made:
            if isinstance(failure, Wrong):
                raise failure
        imgtool('check', '-q', self.image)
        there = self.disk_number(self.image)
        claim(there >= self.first and (gone_back or there >= max(printed, default=0)),
              '%d was printed last, and %d is on the disk', max(printed, default=0), there)
        there = self.snapshots()
        lost = [name for name in made if name not in there]
        claim(not lost, 'snapshots that imgvm had reported are gone: %r', lost)
        extra = [name for name in there if name != 'start']
        for name in rng.sample(extra, min(2, len(extra))):
            self.resumes(name)
        for name in extra:
            imgtool('snapshot', 'delete', '-q', self.image + '@' + name)
        if number % 8 == 0:
            claim(self.resumes('start') == self.first, 'the first snapshot has changed')
            self.starts_cold()

    def starts_cold(self):
        with Machine(self.image) as machine:
            machine.expect('^BOOT count=')
            machine.quit()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--count', type=int, default=30)
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    print('seed %d' % args.seed)
    folder = tempfile.TemporaryDirectory(prefix='imgvm-kill.', dir=os.environ.get('TMPDIR', '/var/tmp'))
    os.environ['XDG_RUNTIME_DIR'] = folder.name
    try:
        need_kvm()
        rounds = Rounds(Lab(folder.name), random.Random(args.seed))
        for number in range(1, args.count + 1):
            try:
                rounds.round(number)
            except Exception:
                print('round %d of seed %d' % (number, args.seed))
                raise
    except Skipped as reason:
        print('SKIPPED:', reason)
        sys.exit(77)
    finally:
        if args.keep:
            folder._finalizer.detach()    # pylint: disable=protected-access
            print('files stay in', folder.name)
    print('%d kills; snapshots made %d, gone back to %d' % (args.count, rounds.made, rounds.back))


if __name__ == '__main__':
    main()
