#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
How a machine ends and what can be told to it: resets, power-off, time limits, signals, pause and resume, status, a
second machine on the same image; GRUB as a guest that is not ours; and QEMU as somebody else who starts our images.

    machine_life.py [--keep] [CASE...]
"""
import os
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from machine import (BUSY, OFF, PATIENCE, QUIT, RESET, STUCK, TIMEOUT, Machine, ask, claim, imgtool,    # noqa: E402
                     imgvm, last_tick, main, overwrite)
from guests import Skipped, grub_disk    # noqa: E402


def ends(lab):
    """Every way in which a machine is reset or ends, and the exit status that tells which."""
    image = lab.boot_image()
    boots = 1
    with Machine(image) as machine:
        machine.expect('^BOOT count=00000001')
        for command in 'ci9':
            machine.expect('^T00000002', machine.text().rindex('BOOT count'))
            boots += 1
            machine.do(command, 'BOOT count=%08x' % boots)
        since = machine.mark()
        machine.control('reset')
        boots += 1
        machine.expect('BOOT count=%08x' % boots, since)
        machine.do('p', '')
        machine.ended(OFF)
    with Machine(image, '--no-reboot') as machine:
        machine.expect('^BOOT count=')
        machine.send('c')
        machine.ended(RESET)
    with Machine(image, '--no-reboot') as machine:
        machine.expect('^BOOT count=')
        machine.send('x')
        if machine.proc.wait(PATIENCE) == STUCK:
            print('this KVM gives up at a triple fault instead of telling of it')
        else:
            machine.ended(RESET)
    with Machine(image, '--timeout', '3') as machine:
        machine.ended(TIMEOUT, 30)
    with Machine(image) as machine:
        machine.expect('^BOOT count=')
        machine.quit()
    for number in (signal.SIGTERM, signal.SIGINT):
        with Machine(image) as machine:
            machine.expect('^BOOT count=')
            machine.proc.send_signal(number)
            machine.ended(QUIT)
    imgtool('check', '-q', image)


def control(lab):
    """Pause, resume, status, and what is refused."""
    image = lab.boot_image()
    imgvm('status', image, want=None)
    with Machine(image, '--memory', '64M') as machine:
        machine.expect('^T00000005')
        status = machine.status()
        claim(status['state'] == 'running', 'status of a running machine: %r', status)
        machine.control('pause')
        machine.quiet()
        claim(machine.status()['state'] == 'paused', 'status of a paused machine')
        tick = last_tick(machine)
        size = machine.mark()
        time.sleep(1)
        claim(machine.mark() == size, 'a paused machine prints')
        machine.control('resume')
        machine.expect('^T%08x\n' % (tick + 3))
        claim(machine.control('powerdown', want=None).returncode != 0, 'a guest without ACPI took the power button')
        # The image is held: by a machine that answers.
        done = imgvm('run', image, want=BUSY)
        claim(done.stderr, 'a second machine on one image says nothing')
        imgtool('write', '-q', image, '--offset', '0', want=BUSY, stdin=bytes(512))
        machine.control('snapshot', snapshot='a')
        machine.control('snapshot', snapshot='a', want=None)
        machine.control('revert', snapshot='none', want=None)
        overwrite(machine)
        claim(ask(machine)['gen'] == 1, 'refusals changed the guest')
        imgtool('snapshot', 'rename', image + '@a', 'b')
        imgtool('snapshot', 'delete', image + '@b')
        machine.quit()
    claim(b'"b"' not in imgtool('snapshot', 'list', '--json', image).stdout, 'the deleted snapshot is there')
    claim(imgvm('status', image, want=None).returncode != 0, 'a machine that has ended has a status')


def grub(lab):
    """GRUB writes its environment block; what it has in memory and on disk goes back together."""
    raw = grub_disk(lab.path('grub.raw'))
    image = lab.path('grub.limg')
    imgtool('convert', '-q', '-f', 'raw', '-O', 'limg', raw, image)
    with Machine(image) as machine:
        started = time.monotonic()
        machine.expect('GRUB SAVED 1\r?\n', timeout=240)
        machine.expect('GRUB COMMAND')
        print('GRUB took %.1f s' % (time.monotonic() - started))
        prompt = 'GRUB COMMAND'
        machine.do('before\r', 'SAVED note=before[^$]*' + prompt)
        machine.do('remember\r', prompt)
        machine.control('snapshot', snapshot='one')
        machine.do('after\r', 'SAVED note=after[^$]*' + prompt)
        machine.do('remember\r', prompt)
        machine.do('show\r', 'FILE boots=1 note=after memory=11\\.[^$]*' + prompt)
        machine.control('revert', snapshot='one')
        machine.do('show\r', 'FILE boots=1 note=before memory=1\\.[^$]*' + prompt)
        machine.kill()
    with Machine(image, '--revert', snapshot='one') as machine:
        machine.do('show\r', 'FILE boots=1 note=before memory=1\\.[^$]*' + prompt)
        machine.do('again\r', 'SAVED note=again[^$]*' + prompt)
        machine.quit()
    # Another reader of ext2 finds the file that GRUB wrote.
    imgtool('convert', '-q', '--force', '-O', 'raw', image, raw)
    with open(raw, 'rb') as file:
        file.seek(1 << 20)
        with open(lab.path('fs'), 'wb') as out:
            shutil.copyfileobj(file, out)
    env = dict(os.environ, PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')
    subprocess.run(['e2fsck', '-fn', lab.path('fs')], check=True, env=env, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    text = subprocess.run(['debugfs', '-R', 'cat /grubenv', lab.path('fs')], check=True, env=env,
                          capture_output=True).stdout
    claim(b'boots=1\n' in text and b'note=again\n' in text, 'the environment block has %r', text)


class Qemu(Machine):
    """The same over QEMU, which emulates the processor."""

    def __init__(self, image, fmt):
        super().__init__(image, command=[
            'qemu-system-x86_64', '-accel', 'tcg', '-machine', 'pc,graphics=off', '-display', 'none', '-nodefaults',
            '-m', '128', '-serial', 'stdio', '-drive', 'file=%s,format=%s,if=virtio' % (image, fmt)])


def elsewhere(lab):
    """The image after a machine's life, converted to qcow2, in QEMU."""
    if not shutil.which('qemu-system-x86_64'):
        raise Skipped('qemu-system-x86_64 is missing (Debian package qemu-system-x86): scripts/setup')
    image = lab.boot_image()
    with Machine(image) as machine:
        machine.expect('^T00000004')
        overwrite(machine)
        machine.control('snapshot', snapshot='one')
        overwrite(machine)
        machine.control('revert', snapshot='one')
        machine.quit()
    qcow2 = lab.path('disk.qcow2')
    imgtool('convert', '-q', '-O', 'qcow2', image, qcow2)
    with Qemu(qcow2, 'qcow2') as machine:
        machine.expect('^BOOT count=00000002')
        machine.expect('^T00000004')
        there = ask(machine)
        claim(there['first'] == there['last'] == 1 and there['gen'] == 0, 'QEMU finds %r', there)
        overwrite(machine)
        machine.do('p', '')
        machine.ended(0)
    # And back again.
    imgtool('check', '-q', qcow2)
    with Machine(qcow2) as machine:
        machine.expect('^BOOT count=00000003')
        machine.quit()


CASES = {'ends': ends, 'control': control, 'grub': grub, 'elsewhere': elsewhere}

if __name__ == '__main__':
    main(CASES)
