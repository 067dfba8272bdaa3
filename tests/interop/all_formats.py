#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Every format into every format, and around through all of them: the disk stays the same bit for bit, of the same size, and as sparse as it was.

    all_formats.py [--formats A,B:OPTIONS,...]             a small disk of holes, data and odd sizes, from each to each
    all_formats.py --guest [--raw FILE] [--formats ...]    a Debian guest goes through all formats in turn, and is booted from the raw image at the end

A format of the list that this build cannot create is left out, and said so. What qemu-img 7.2 reads right it reads too, and has to see the
same. IMGTOOL names imgtool.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from qcow2_boot import Guest, debian_image, take_boot_files    # noqa: E402
from qcow2_lab import IMGTOOL, WRAPPER, Wrong, imgtool, need_tools, run    # noqa: E402

MIB = 1 << 20
# As a conversion is asked for them: format, or format:options.
PAIRS = ('raw,limg,qcow2,vdi,vdi:subformat=fixed,vhd,vhd:subformat=fixed,vhdx,vhdx:subformat=fixed,vmdk,vmdk:subformat=monolithicFlat,'
         'vmdk:subformat=twoGbMaxExtentSparse,vmdk:subformat=streamOptimized,parallels')
CHAIN = 'vmdk,vhdx,vdi,vhd,parallels,qcow2,limg'
NEEDED = {'raw', 'limg', 'qcow2', 'vdi', 'vhd'}
QEMU = {'raw': 'raw', 'qcow2': 'qcow2', 'vdi': 'vdi', 'vhd': 'vpc', 'vhdx': 'vhdx', 'vmdk': 'vmdk', 'parallels': 'parallels'}
SUFFIX = {'parallels': 'hdd'}
# What a format may take beside the data: tables, headers and a log, and the parts of blocks that a host cannot leave out.
BESIDE = 3 * MIB


def split(entry):
    format_, _, options = entry.partition(':')
    return format_, ['-o', options] if options else []


def can_create(entry, folder):
    path = os.path.join(folder, 'probe.' + split(entry)[0])
    made = subprocess.run([*WRAPPER, IMGTOOL, 'create', '-q', '-f', split(entry)[0], *split(entry)[1], path, '1M'],
                          capture_output=True, check=False)
    for name in os.listdir(folder):
        if name.startswith('probe'):
            os.unlink(os.path.join(folder, name))
    if made.returncode and split(entry)[0] in NEEDED:
        raise Wrong('%s cannot be created: %s' % (entry, made.stderr.decode(errors='replace')))
    if made.returncode:
        print('LEFT OUT: %s: %s' % (entry, made.stderr.decode(errors='replace').strip().replace(folder + '/', '')))
    return made.returncode == 0


def usable(text, folder):
    return [entry for entry in text.split(',') if can_create(entry, folder)]


def sparse_disk(path, size, pieces):
    """pieces: (offset, bytes, kind). -> bytes of data."""
    with open(path, 'wb') as file:
        file.truncate(size)
        for off, count, kind in pieces:
            file.seek(off)
            if kind == 'zeros':
                file.write(bytes(count))
            else:
                noise = hashlib.shake_128(b'%d' % off).digest(min(count, MIB))
                file.write((noise * (count // len(noise) + 1))[:count])
    return os.stat(path).st_blocks * 512


def disks(folder):
    """Holes and data in turns, odd sectors at both ends, zeros that are written, less than a sector of everything."""
    every = [(i * 1536 * 1024 + 512 * (i % 7), 4096 + 512 * (i % 3), 'noise') for i in range(24)]
    yield 'odd', 41 * MIB + 3 * 512, [(0, 512, 'noise'), (3 * MIB - 512, MIB + 1024, 'noise'), (9 * MIB, 2 * MIB, 'zeros'),
                                      (41 * MIB + 512, 1024, 'noise')] + every
    yield 'empty', 33 * MIB, []
    yield 'tiny', 512, [(0, 512, 'noise')]


def file_sum(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(MIB), b''):
            digest.update(block)
    return digest.hexdigest()


def taken(folder, name):
    """By all files of an image: what its own name begins."""
    stem = name.rsplit('.', 1)[0]
    return sum(os.stat(os.path.join(folder, f)).st_blocks * 512 for f in os.listdir(folder) if f == name or f.startswith(stem + '-'))


def remove(folder, name):
    stem = name.rsplit('.', 1)[0]
    for f in os.listdir(folder):
        if f == name or f.startswith(stem + '-'):
            path = os.path.join(folder, f)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def file_name(stem, entry):
    format_ = split(entry)[0]
    return '%s.%s' % (stem, SUFFIX.get(format_, format_))


def convert(folder, source, source_format, name, entry):
    format_, options = split(entry)
    imgtool('convert', '-q', '-f', source_format, '-O', format_, *options, os.path.join(folder, source), os.path.join(folder, name))


def check_copy(folder, name, entry, want, deep):
    """want: digest, size, bytes that may be allocated (None: as many as there are)."""
    path, format_ = os.path.join(folder, name), split(entry)[0]
    if imgtool('checksum', '-q', '-f', format_, path).stdout.split()[0].decode() != want[0]:
        raise Wrong('another content')
    if json.loads(imgtool('info', '--json', '-f', format_, path).stdout)['virtual_size'] != want[1]:
        raise Wrong('another size')
    if want[2] is not None and taken(folder, name) > want[2]:
        raise Wrong('takes %d bytes on the host, of a disk that takes %d and %d beside it' % (taken(folder, name), want[2] - BESIDE, BESIDE))
    if not deep:
        return
    if format_ != 'raw':
        imgtool('check', '-q', '-f', format_, path)
    if format_ in QEMU:
        out = os.path.join(folder, 'judge')
        run('qemu-img', 'convert', '-f', QEMU[format_], '-O', 'raw', path, out)
        if file_sum(out) != want[0]:
            raise Wrong('qemu-img reads something else')
        os.unlink(out)


def all_pairs(folder, entries, fewer):
    """fewer: each has two targets, and is the target of two."""
    done = 0
    for kind, size, pieces in disks(folder):
        raw = os.path.join(folder, 'disk.raw')
        data = sparse_disk(raw, size, pieces)
        want = file_sum(raw), size, data + BESIDE
        for at, a in enumerate(entries):
            targets = [entries[(at + step) % len(entries)] for step in (1, 5)] if fewer else entries
            source, b = file_name('a', a), None
            try:
                convert(folder, 'disk.raw', 'raw', source, a)
                check_copy(folder, source, a, want, True)
                for b in targets if kind == 'odd' else ():
                    target = file_name('b', b)
                    convert(folder, source, split(a)[0], target, b)
                    check_copy(folder, target, b, want, False)
                    remove(folder, target)
                    done += 1
                remove(folder, source)
            except Wrong as wrong:
                raise Wrong('%s disk, %s%s: %s' % (kind, a, ' to ' + b if b else '', wrong)) from None
        done += len(entries)
    print('%d conversions among %s: same content, same size, sparse' % (done, ', '.join(entries)))


def guest_journey(folder, raw, entries):
    room = os.stat(raw).st_blocks * 512
    before, before_format = raw, 'raw'
    for entry in entries + ['raw']:
        name, format_ = file_name('disk-of-%s' % entry.split(':')[0], entry), split(entry)[0]
        begun = time.monotonic()
        convert(folder, before, before_format, name, entry)
        path = os.path.join(folder, name)
        imgtool('compare', '-q', '-f', 'raw', '-F', format_, raw, path)
        size = json.loads(imgtool('info', '--json', '-f', format_, path).stdout)['virtual_size']
        if size != os.path.getsize(raw):
            raise Wrong('%s: the disk has %d bytes' % (entry, size))
        if format_ in QEMU:
            run('qemu-img', 'compare', '-q', '-f', 'raw', '-F', QEMU[format_], raw, path)
        print('guest: %s to %s: same %d bytes, %.0f MiB on the host (raw %.0f) (%.1f s)' %
              (before_format, entry, size, taken(folder, name) / MIB, room / MIB, time.monotonic() - begun), flush=True)
        if before != raw:
            remove(folder, os.path.basename(before))
        before, before_format = path, format_
    run('cmp', raw, before)
    guest = Guest(folder, take_boot_files(before, folder))
    guest.start(before, 'raw', [])
    print('guest: raw, %s, raw: bit for bit, and it boots' % ', '.join(entries))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--formats')
    parser.add_argument('--guest', action='store_true')
    parser.add_argument('--raw')
    parser.add_argument('--sanitized', action='store_true', help='a few pairs only')
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    need_tools('qemu-img', *(('debugfs',) if args.guest else ()))
    if args.guest and not shutil.which('qemu-system-x86_64'):
        print('SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86; scripts/setup --all)')
        return 77
    folder = tempfile.mkdtemp(prefix='all-formats.', dir=os.environ.get('TMPDIR', '/var/tmp'))
    try:
        entries = usable(args.formats or (CHAIN if args.guest else PAIRS), folder)
        if args.guest:
            guest_journey(folder, args.raw or debian_image(), entries)
        else:
            all_pairs(folder, entries, args.sanitized)
    except Wrong as wrong:
        print('FAILED: %s (files kept in %s)' % (wrong, folder))
        return 1
    if not args.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
