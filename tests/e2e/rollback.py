#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
The boot sector on this machine's KVM: snapshots of a running machine, and the way back to them.

What the guest prints is judged as one text. A snapshot of a paused machine lies at a known place in it, in the middle
of a line perhaps; what comes after going back, put behind what came before the snapshot, must be the text of a guest
that was never interrupted. Its memory (ticks, generation) and its disk are asked for as well.

    rollback.py [--keep] [CASE...]
"""
import hashlib
import json
import os
import random
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from machine import (OFF, REFUSED, Machine, ask, claim, consecutive, imgtool, imgvm,    # noqa: E402
                     last_tick, main, overwrite, ticks)
from guests import NOTE_LBA, PATTERN_LBA, SECTOR    # noqa: E402


def started(image, *options):
    machine = Machine(image, *options)
    machine.expect('^BOOT count=')
    machine.expect('^T0000000a')
    return machine


def frozen_snapshot(machine, name, program=imgvm):
    """Pauses, snapshots and goes on. -> what was printed until then"""
    machine.control('pause')
    end = machine.quiet()
    program('snapshot', *(['create'] if program is imgtool else []), machine.image + '@' + name)
    claim(machine.mark() == end, 'a paused guest printed something')
    machine.control('resume')
    return machine.text(0, end)


def goes_on(machine, before, since=0, more=5):
    """What it prints from `since` on continues `before`."""
    wanted = ticks(before)[-1] + more
    machine.expect('^T%08x\n' % wanted, since)
    claim(consecutive(before[before.index('BOOT count'):] + machine.text(since)),
          'after tick %d it does not go on where it was: %r', ticks(before)[-1], machine.text(since)[:200])


def sector(image, lba):
    data = imgtool('read', '-q', image, '--offset', str(lba * SECTOR), '--length', '512').stdout
    claim(data == data[:4] * 128, 'sector %d is not one number', lba)
    return int.from_bytes(data[:4], 'little')


def revert(lab):
    """Live: snapshot, go on, overwrite the disk, go back."""
    image = lab.boot_image()
    with started(image) as machine:
        overwrite(machine)
        old = ask(machine)
        claim(old['first'] == old['last'] == old['gen'] == 1 and old['boots'] == 1, 'at first it has %r', old)
        before = frozen_snapshot(machine, 'one')
        overwrite(machine, 2)
        machine.expect('^T%08x\n' % (ticks(before)[-1] + 20))
        new = ask(machine)
        claim(new['first'] == new['last'] == new['gen'] == 3 and new['note'] > old['note'], 'then it has %r', new)
        for _ in range(3):
            machine.control('pause')
            since = machine.quiet()
            machine.control('revert', snapshot='one')
            machine.control('resume')
            goes_on(machine, before, since)
            back = ask(machine)
            claim(back['first'] == back['last'] == back['gen'] == 1, 'gone back it has %r', back)
            overwrite(machine)
        # While it runs: where exactly it was cannot be told from outside, but between which ticks it was.
        least = last_tick(machine)
        machine.control('snapshot', snapshot='two')
        machine.control('snapshot', '--disk-only', snapshot='three')
        time.sleep(.5)
        most = last_tick(machine)
        overwrite(machine)
        machine.expect('^T%08x\n' % (most + 10))
        since = machine.mark()
        machine.control('revert', snapshot='two')
        # The rest of a line may still come from before.
        machine.expect('(^T[0-9a-f]{8}\n[^T]*){6}', since)
        seen = ticks(machine.text(since))
        turn = [number for number in seen if number <= most + 1]
        claim(turn and least <= turn[0] <= most + 1, 'from tick %d to %d it was snapshotted, and it goes on with %r',
              least, most, seen)
        back = ask(machine)
        claim(back['gen'] == back['first'] == 2, 'gone back it has %r', back)
        # A snapshot without a machine: the disk, and a start from it.
        since = machine.mark()
        machine.control('revert', snapshot='three')
        machine.expect('^BOOT count=00000002', since)
        back = ask(machine)
        claim(back['first'] == 2 and back['gen'] == 0 and back['boots'] == 2, 'started again it has %r', back)
        machine.quit()
    imgtool('check', '-q', image)
    claim(sector(image + '@one', PATTERN_LBA) == 1 and sector(image + '@three', PATTERN_LBA) == 2, 'other content')


def killed(lab):
    """The same beyond the death of imgvm, and a cold start of what was gone back to."""
    image = lab.boot_image()
    with started(image) as machine:
        overwrite(machine)
        before = frozen_snapshot(machine, 'one')
        overwrite(machine)
        machine.kill()
    imgtool('check', '-q', image)
    done = imgvm('run', image + '@one', want=REFUSED)
    claim(b'revert' in done.stderr, 'imgvm run IMAGE@one on a changed image says %r', done.stderr)
    imgtool('revert', '-q', image + '@one')
    claim(sector(image, PATTERN_LBA) == 1, 'the reverted disk has another pattern')
    for _ in range(2):
        with Machine(image, '--revert', snapshot='one') as machine:
            goes_on(machine, before)
            back = ask(machine)
            claim(back['first'] == back['gen'] == 1 and back['boots'] == 1, 'resumed it has %r', back)
            overwrite(machine)
            # A snapshot of a resumed machine, and again beyond a kill.
            frozen_snapshot(machine, 'again')
            machine.kill()
        imgtool('snapshot', 'delete', '-q', image + '@again')
    with Machine(image, '--revert', snapshot='one') as machine:
        goes_on(machine, before)
        second = before + frozen_snapshot(machine, 'second')
        machine.kill()
    with Machine(image, '--revert', snapshot='second') as machine:
        goes_on(machine, second)
        machine.quit()
    imgtool('revert', '-q', image + '@one')
    with Machine(image) as machine:
        machine.expect('^BOOT count=00000002')
        back = ask(machine)
        claim(back['first'] == 1 and back['gen'] == 0, 'started again it has %r', back)
        machine.quit()
    imgtool('check', '-q', image)


def ten(lab):
    """Ten snapshots in a row, each resting on the one before, made by both programs; back to each of them."""
    rng = random.Random(10)
    image = lab.boot_image()
    texts = {}
    with started(image) as machine:
        machine.do('m', 'TOUCHED 00000001\n')
        total = machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1)
        for number in range(1, 11):
            overwrite(machine)
            name = 'snap%d' % number
            texts[number] = frozen_snapshot(machine, name, imgtool if number % 2 else imgvm)
        sizes = {}
        for snap in json.loads(imgtool('snapshot', 'list', '--json', image).stdout)['snapshots']:
            sizes[snap['name']] = snap['vmstate_size']
        claim(len(sizes) == 10 and min(sizes.values()) > 0, 'imgtool snapshot list has %r', sizes)
        order = list(texts)
        rng.shuffle(order)
        for number in order:
            machine.control('pause')
            since = machine.quiet()
            machine.control('revert', snapshot='snap%d' % number)
            machine.control('resume')
            goes_on(machine, texts[number], since, 2)
            back = ask(machine)
            claim(back['first'] == back['last'] == back['gen'] == number, 'back at %d it has %r', number, back)
        claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) == total, 'the touched memory has changed')
        machine.quit()
    # The first one touched 128 MiB; what follows stores what changed since.
    size = os.stat(image).st_blocks * 512
    claim(size < 320 << 20, 'ten snapshots of 128 MiB of memory take %d MiB', size >> 20)
    rng.shuffle(order)
    for number in order[:3]:
        with Machine(image, '--revert', snapshot='snap%d' % number) as machine:
            goes_on(machine, texts[number], 0, 2)
            claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) == total, 'the touched memory has changed')
            machine.quit()
    imgtool('check', '-q', image)


def forgotten(lab):
    """A machine whose memory is mapped from its snapshot lives on when that is deleted and its place used again."""
    image = lab.boot_image()
    with started(image) as machine:
        machine.do('m', 'TOUCHED 00000001\n')
        total = machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1)
        frozen_snapshot(machine, 'one')
        machine.kill()
    with Machine(image, '--revert', snapshot='one') as machine:
        last_tick(machine)
        before = frozen_snapshot(machine, 'two')
        for name in ('one', 'two'):
            machine.control('delete', snapshot=name)
        for _ in range(2):
            overwrite(machine)
            machine.control('snapshot', snapshot='three')
            machine.control('snapshot', '--disk-only', snapshot='four')
            overwrite(machine)
            for name in ('four', 'three'):
                machine.control('delete', snapshot=name)
        claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) == total, 'the memory has changed')
        claim(consecutive(machine.text()) and ticks(machine.text())[0] >= ticks(before)[0], 'it does not go on')
        # Back to what is not there any more.
        machine.control('revert', snapshot='one', want=None)
        machine.control('snapshot', snapshot='last')
        machine.do('m', 'TOUCHED 00000002\n')
        claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) != total, 'the memory has not changed')
        machine.control('revert', snapshot='last')
        machine.control('delete', snapshot='last')
        overwrite(machine)
        machine.control('snapshot', snapshot='after')
        claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) == total, 'the memory has changed')
        machine.kill()
    imgtool('check', '-q', image)
    with Machine(image, '--revert', snapshot='after') as machine:
        claim(machine.do('v', 'SUM ([0-9a-f]{8})\n').group(1) == total, 'the memory has changed')
        machine.quit()


def disk_only(lab):
    """qcow2 holds no machine of ours: its disk goes back, and the guest starts again. Raw has no snapshots at all."""
    image = lab.boot_image('qcow2')
    with started(image) as machine:
        overwrite(machine)
        done = machine.control('snapshot', snapshot='one', want=REFUSED)
        claim(b'--disk-only' in done.stderr, 'a snapshot of a machine in qcow2: %r', done.stderr)
        machine.control('snapshot', '--disk-only', snapshot='one')
        overwrite(machine)
        claim(ask(machine)['first'] == 2, 'the second pattern is not there')
        since = machine.mark()
        machine.control('revert', snapshot='one')
        machine.expect('^BOOT count=00000002', since)
        back = ask(machine)
        claim(back['first'] == 1 and back['gen'] == 0, 'started again it has %r', back)
        machine.control('snapshot', '--disk-only', snapshot='two')
        machine.kill()
    imgtool('check', '-q', '--repair', image)
    imgtool('revert', '-q', image + '@one')
    with Machine(image) as machine:
        machine.expect('^BOOT count=00000002')
        machine.do('p', '')
        machine.ended(OFF)
    claim(sector(image, PATTERN_LBA) == 1, 'the reverted disk has another pattern')
    image = lab.boot_image('raw')
    with started(image, '-f', 'raw') as machine:
        overwrite(machine)
        for options in (), ('--disk-only',):
            done = machine.control('snapshot', *options, snapshot='one', want=None)
            claim(done.returncode not in (0, 1), 'a snapshot of a raw image: %d, %r', done.returncode, done.stderr)
        overwrite(machine)
        machine.quit()
    claim(sector(image, PATTERN_LBA) == 2 and sector(image, NOTE_LBA) > 0, 'the raw disk has another content')


def digest(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def mapped(machine, path):
    """-> what a process has of a file's mappings, in bytes"""
    total, inside = {}, False
    with open('/proc/%d/smaps' % machine.proc.pid, encoding='ascii') as file:
        for line in file:
            word = line.split()[0]
            if '-' in word:
                inside = line.rstrip().endswith(path)
            elif inside and line.endswith(' kB\n'):
                total[word[:-1]] = total.get(word[:-1], 0) + int(line.split()[1]) * 1024
    return total


def transient(lab):
    """A fleet on one snapshot: nothing is written to the image, and the machines' memory is the file's."""
    image = lab.boot_image()
    with started(image) as machine:
        machine.do('m', 'TOUCHED 00000001\n')
        overwrite(machine)
        before = frozen_snapshot(machine, 'golden')
        machine.quit()
    was = digest(image)
    with Machine(image, '--transient', snapshot='golden') as one:
        goes_on(one, before)
        done = imgvm('run', '--transient', image + '@golden', want=REFUSED)
        claim(b'--allow-clone' in done.stderr, 'the second resume says %r', done.stderr)
        with Machine(image, '--transient', '--allow-clone', snapshot='golden') as two:
            goes_on(two, before)
            for machine in (one, two):
                overwrite(machine, 2)
                claim(ask(machine)['first'] == 3, 'the throw-away disk was not written')
                machine.do('v', 'SUM ')
            for machine in (one, two):
                part = mapped(machine, image)
                claim(part.get('Rss', 0) > 100 << 20, 'the guest RAM is not mapped from the image: %r', part)
                claim(part['Private_Dirty'] + part['Private_Clean'] < 16 << 20, 'not shared: %r', part)
            claim(two.proc.poll() is None, 'the second machine has ended')
    claim(digest(image) == was, 'the image was changed')
    # One that begins cold, from the head.
    with Machine(image, '--transient') as machine:
        machine.expect('^BOOT count=00000002')
        overwrite(machine)
        machine.do('p', '')
        machine.ended(OFF)
    claim(digest(image) == was, 'the image was changed')


def disks(lab):
    """Two disks go back together; limits of speed; a disk that cannot be written."""
    image, other = lab.boot_image(), lab.boot_image('qcow2', 'other')
    with Machine(image, '--disk', other) as machine:
        machine.expect('^T00000002')
        overwrite(machine)
        machine.do('d', 'DRIVE 00000081')
        overwrite(machine)
        claim(ask(machine)['first'] == 2, 'the second disk was not written')
        before = frozen_snapshot(machine, 'one')
        for _ in range(2):
            overwrite(machine)
            machine.do('d', 'DRIVE 00000080')
            overwrite(machine)
            machine.control('pause')
            since = machine.quiet()
            machine.control('revert', snapshot='one')
            machine.control('resume')
            goes_on(machine, before, since)
            claim(ask(machine)['first'] == 2, 'the second disk is not back')
        machine.do('d', 'DRIVE 00000080')
        claim(ask(machine)['first'] == 1, 'the first disk is not back')
        machine.kill()
    imgtool('check', '-q', image)
    imgtool('check', '-q', '--repair', other)
    with Machine(image, '--revert', '--disk', other + '@one', snapshot='one') as machine:
        goes_on(machine, before)
        claim(ask(machine)['first'] == 2, 'the second disk is not back')
        machine.quit()
    with Machine(image, '--bps', '4M') as machine:
        machine.expect('^T00000002')
        started = time.monotonic()
        machine.do('h', 'READ ')
        seconds = time.monotonic() - started
        claim(seconds > 2, '12 MiB were read in %.1f s at 4 MiB a second', seconds)
        machine.quit()
    was = digest(image)
    with Machine(image, '--read-only') as machine:
        machine.expect('DISK ERROR')
        machine.quit()
    claim(digest(image) == was, 'a read-only disk was written')


CASES = {'revert': revert, 'killed': killed, 'ten': ten, 'forgotten': forgotten, 'disk-only': disk_only,
         'transient': transient, 'disks': disks}

if __name__ == '__main__':
    main(CASES)
