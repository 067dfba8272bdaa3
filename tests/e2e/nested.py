#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Linux on imgvm, anywhere: QEMU emulates a machine whose processor has SVM; in it Debian's kernel has a real KVM, and
there imgvm runs another Debian kernel with its root on a limg image. What happens inside is proof.sh; here its steps
are counted, and the image that comes out is judged by e2fsck and started by QEMU.

    nested.py [--keep] [--verbose]

IMGVM and IMGTOOL name the programs. Takes one to three minutes; nothing of it needs /dev/kvm or root.
"""
import os
import re
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guests    # noqa: E402
from machine import IMGTOOL, IMGVM, Wrong, claim, imgtool, main    # noqa: E402

STEPS = ('a triple fault is a reset', 'booted with two processors', 'snapshotted by imgtool', 'destroyed',
         'reverted, files and processes go on', 'killed and resumed in another process', 'powered off by its button',
         'cold start of the reverted image', 'killed when .* was synced', 'killed when .* was synced', 'powered off')
BIOS = '/usr/share/seabios/bios.bin'
SECONDS = 1500    # of a very busy machine; 60 of an idle one


def boot(command, log, seconds=SECONDS, until=None):
    """Runs QEMU to its end, or until it has printed something. -> what it printed"""
    text = bytearray()
    with open(log, 'wb') as errors:
        proc = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        timer = threading.Timer(seconds, proc.kill)
        timer.start()
        try:
            for line in proc.stdout:
                text += line
                errors.write(line)
                errors.flush()
                if '--verbose' in sys.argv:
                    sys.stdout.write(line.decode(errors='replace'))
                    sys.stdout.flush()
                if until and until.search(line):
                    proc.kill()
        except BaseException:
            proc.kill()
            raise
        finally:
            proc.wait()
            timer.cancel()
    return text.decode(errors='replace').replace('\r', '')


def whole(image, lab, snapshot=None):
    """e2fsck on the exported disk. A disk of a running guest first has its journal replayed, as after a power cut."""
    raw = lab.path('exported.raw')
    imgtool('convert', '-q', '--force', '-O', 'raw', image + ('@' + snapshot if snapshot else ''), raw)
    if snapshot:
        subprocess.run(['e2fsck', '-fp', '-E', 'journal_only', raw], env=guests.sbin_env(), check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = subprocess.run(['e2fsck', '-fn', raw], env=guests.sbin_env(), check=False, capture_output=True)
    claim(done.returncode == 0, 'e2fsck finds in %s@%s: %s', image, snapshot, done.stdout.decode())
    os.unlink(raw)


def nested(lab):
    kernel = guests.cloud_kernel()
    root = guests.linux_root(lab.path('root.raw'))
    initrd = guests.linux_initrd(kernel, lab.path('l2.gz'))
    imgtool('convert', '-q', '-f', 'raw', '-O', 'limg', root, lab.path('root.limg'))
    files = {'root.limg': lab.path('root.limg'), 'boot.limg': lab.boot_image(), 'bios.bin': BIOS, 'l2.gz': initrd,
             'vmlinuz': kernel.vmlinuz, 'proof': os.path.join(guests.HERE, 'proof.sh')}
    disk = guests.work_disk(lab.path('work.raw'), files, 1024)
    outer = guests.nested_initrd(kernel, lab.path('l1.gz'), [IMGVM, IMGTOOL])
    text = boot(guests.nested_command(kernel, outer, disk), lab.path('qemu.log'))
    if 'L1 NO-KVM' in text:
        raise guests.Skipped("this QEMU's SVM is not enough for KVM: %s" % text[-300:])
    at = 0
    for step in STEPS:
        found = re.search('^PROOF %s.*$' % step, text[at:], re.M)
        if not found:
            raise Wrong('the step %r is missing: %s' % (step, text[-3000:]))
        at += found.end()
    claim('L1 END 0' in text, 'the proof ended otherwise: %s', text[-3000:])
    print('\n'.join(line for line in text.splitlines() if re.match('PROOF|L2 READ|the machine', line)))

    image = guests.take_file(disk, 'root.limg', lab.path('after.limg'))
    imgtool('check', '-q', image)
    whole(image, lab)
    whole(image, lab, 'good')
    imgtool('convert', '-q', '-O', 'qcow2', image, lab.path('after.qcow2'))
    text = boot(['qemu-system-x86_64', '-accel', 'tcg', '-m', '256', '-nodefaults', '-display', 'none', '-no-reboot',
                 '-serial', 'stdio', '-kernel', kernel.vmlinuz, '-initrd', initrd, '-append', 'console=ttyS0 quiet',
                 '-drive', 'if=virtio,format=qcow2,file=' + lab.path('after.qcow2')], lab.path('qemu.log'),
                until=re.compile(b'^L2 (FILES|NO-ROOT)'))
    claim('L2 START 5' in text and 'L2 FILES 300 boot' in text, 'QEMU on the converted image: %s', text[-1000:])
    print('QEMU started the converted image')


if __name__ == '__main__':
    main({'nested': nested}, ready=lambda: guests.need(('qemu-system-x86_64', 'qemu-system-x86'),
                                                       ('debugfs', 'e2fsprogs'), ('e2fsck', 'e2fsprogs')))
