#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
A Debian guest lives on an image that goes through our hands: converted and compressed, snapshotted, reverted, overlaid
and committed by us, and started by QEMU in between. The guest keeps a list of its starts in a file; what it shows on its
console must be what the image's history says.

    qcow2_boot.py [--raw FILE] [--keep]

The raw image is that of scripts/make-debian-image; kernel and initrd are taken out of it. QEMU emulates the processor, so
that no KVM is needed, and a start takes a minute or so. IMGTOOL names imgtool.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from qcow2_lab import Wrong, imgtool, need_tools, run    # noqa: E402

START_SECONDS = 900
GUEST = r'''/bin/sh -c 'echo GUEST-HAS $(cat /root/starts) GUEST-END; echo %s >> /root/starts; sync' '''


def debian_image():
    made = subprocess.run([os.path.join(HERE, '..', '..', 'scripts', 'make-debian-image')], stdout=subprocess.PIPE,
                          check=False)
    lines = made.stdout.decode().split()
    if made.returncode or not lines:
        print('SKIPPED: scripts/make-debian-image makes no image here')
        sys.exit(77)
    return lines[-1]


def take_boot_files(raw, folder):
    """The kernel and its initrd, out of the file system."""
    listing = run('debugfs', '-R', 'ls -p /boot', raw).stdout.decode()
    names = [line.split('/')[5] for line in listing.splitlines() if line.count('/') > 5]
    files = []
    for start in ('vmlinuz-', 'initrd.img-'):
        found = sorted(name for name in names if name.startswith(start))
        if not found:
            print('SKIPPED: %s has no kernel in /boot (it was made without debootstrap)' % raw)
            sys.exit(77)
        files.append(os.path.join(folder, found[-1]))
        run('debugfs', '-R', 'dump /boot/%s %s' % (found[-1], files[-1]), raw)
    return files


class Guest:
    def __init__(self, folder, boot_files):
        self.folder, (self.kernel, self.initrd) = folder, boot_files
        self.starts = 0

    def start(self, image, format_, expected):
        """Starts the guest on the image; it must show the expected list of earlier starts, adds one, and powers off."""
        self.starts += 1
        name = 'start%d' % self.starts
        log = os.path.join(self.folder, name + '.log')
        command = GUEST.strip() % name
        append = 'root=/dev/vda rw console=ttyS0 quiet systemd.run="%s"' % command.replace('"', '\\"')
        begun = time.monotonic()
        with open(log, 'wb') as out:
            try:
                subprocess.run(['qemu-system-x86_64', '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', '768',
                                '-nodefaults', '-display', 'none', '-serial', 'stdio', '-no-reboot',
                                '-kernel', self.kernel, '-initrd', self.initrd, '-append', append,
                                '-device', 'virtio-rng-pci',
                                '-drive', 'file=%s,format=%s,if=virtio,discard=unmap' % (image, format_)],
                               stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=START_SECONDS,
                               check=True)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as failure:
                raise Wrong('the guest does not start and end well: %s; its console is %s' % (failure, log)) from None
        with open(log, 'rb') as file:
            text = file.read().decode(errors='replace')
        if 'GUEST-HAS' not in text:
            raise Wrong('the guest does not come to run its command; its console is %s' % log)
        seen = text.split('GUEST-HAS', 1)[1].split('GUEST-END')[0].split()
        if seen != expected:
            raise Wrong('the guest on %s remembers %s, not %s' % (image, seen, expected))
        print('boot: %s on %s remembers %s (%.0f s)' % (name, os.path.basename(image), seen or 'nothing',
                                                        time.monotonic() - begun))
        sys.stdout.flush()
        return expected + [name]


def history(folder, raw):
    disk, over = os.path.join(folder, 'disk.qcow2'), os.path.join(folder, 'over.qcow2')
    guest = Guest(folder, take_boot_files(raw, folder))

    def check(*images):
        for image in images:
            imgtool('check', '-q', image)
            run('qemu-img', 'check', '-q', image)

    imgtool('convert', '-q', '-f', 'raw', '-O', 'qcow2', '-c', 'zstd', raw, disk)
    check(disk)
    run('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'qcow2', raw, disk)
    imgtool('snapshot', 'create', disk + '@fresh')
    first = guest.start(disk, 'qcow2', [])
    check(disk)
    imgtool('snapshot', 'create', disk + '@first')
    guest.start(disk, 'qcow2', first)
    imgtool('revert', '-q', disk + '@first')
    check(disk)
    now = guest.start(disk, 'qcow2', first)
    imgtool('create', '-q', '-f', 'qcow2', '-b', disk, over)
    now = guest.start(over, 'qcow2', now)
    check(disk, over)
    imgtool('commit', '-q', over)
    os.unlink(over)
    check(disk)
    guest.start(disk, 'qcow2', now)
    check(disk)
    imgtool('compare', '-q', '-f', 'raw', raw, disk + '@fresh')
    out = os.path.join(folder, 'out.raw')
    imgtool('convert', '-q', '-O', 'raw', disk, out)
    run('e2fsck', '-fn', out)
    print('boot: %d starts of the guest, file system clean, first snapshot as converted' % guest.starts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--raw', help='this image instead of that of scripts/make-debian-image')
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    if not shutil.which('qemu-system-x86_64'):
        print('SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86; scripts/setup --all)')
        return 77
    need_tools('qemu-img', 'debugfs', 'e2fsck')
    raw = args.raw or debian_image()
    folder = tempfile.mkdtemp(prefix='boot.', dir=os.environ.get('TMPDIR', '/var/tmp'))
    try:
        history(folder, raw)
    except Wrong as wrong:
        print('FAILED: %s (files kept in %s)' % (wrong, folder))
        return 1
    if not args.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
