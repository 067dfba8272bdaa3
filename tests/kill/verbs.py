# SPDX-License-Identifier: MIT
"""
More verbs for kill.py: those of one format only, repair, raw files, and a device that is there already. A verb that a format
does not have is left out of its turn: it names the formats that have it in `formats`.
"""
import glob
import json
import os
import struct
import subprocess

from lab import BACKED, DISK, SECTOR, Failed, run

RUN = 40    # clusters that a round leaks for the repair, or blocks


def only(*formats):
    def mark(verb):
        verb.formats = formats
        return verb
    return mark


# -- bitmaps ----------------------------------------------------------------------------------------------------------


def bitmaps(path):
    return {b['name']: b for b in json.loads(run('bitmap', 'list', '--json', path).stdout)['bitmaps']}


@only('qcow2')
def verb_bitmap(r):
    """They are as before, as after, or inconsistent, which says so itself; disk and snapshots do not change."""
    base = r.path('base.img')
    run('bitmap', 'add', '-g', '4K', base, 'one')
    run('bitmap', 'add', '-g', '512', '--disabled', base, 'two')
    with open(r.path('new.bin'), 'rb') as file:
        run('write', '-q', base, '--offset', '1M', stdin=file.read())
    head, before = r.content('base.img'), bitmaps(base)
    action = r.rng.choice((['add', base, 'three'], ['remove', base, 'one'], ['clear', base, 'one'],
                           ['merge', base, 'two', 'one'], ['disable', base, 'one'], ['enable', base, 'two']))
    whole = r.killed('bitmap', 'bitmap', *action)
    r.check('base.img')
    after, name = bitmaps(base), action[2]
    for other, said in before.items():
        if other == name or other in after and after[other]['state'] == 'inconsistent':
            continue
        if after.get(other) != said:
            raise Failed('bitmap %s killed: %s was %s and is %s' % (action[0], other, said, after.get(other)))
    state = after.get(name, {}).get('state')
    if whole:
        want = {'add': 'enabled', 'remove': None, 'clear': 'enabled', 'merge': 'disabled', 'disable': 'disabled',
                'enable': 'enabled'}[action[0]]
        dirty = {'clear': 0, 'merge': before['one']['dirty_bytes']}.get(action[0])
        if state != want or dirty is not None and after[name]['dirty_bytes'] != dirty:
            raise Failed('bitmap %s ended well, and says %s' % (action[0], after.get(name)))
    elif state is None and action[0] not in ('add', 'remove'):
        raise Failed('bitmap %s lost %s' % (action[0], name))
    elif state == 'enabled' and action[0] == 'merge' or state == 'unsupported':
        raise Failed('bitmap %s left %s' % (action[0], after[name]))
    if r.content('base.img') != head:
        raise Failed('bitmap %s changed the disk' % action[0])
    for left in bitmaps(base):
        run('bitmap', 'remove', base, left)
    r.check('base.img')
    r.snapshots_whole()


# -- options and repair -----------------------------------------------------------------------------------------------


@only('qcow2')
def verb_amend(r):
    name, options = r.rng.choice((('base.img', 'lazy_refcounts=on'), ('base.img', 'size=%d' % (DISK + (4 << 20))),
                                  ('plain.img', 'compat=0.10')))
    before = r.lab.head
    if name == 'plain.img':    # a disk with zero clusters, which version 2 does not have
        run('create', '-q', '-f', 'qcow2', '-b', 'base.img', r.path(name))
        run('write', '-q', r.path(name), '--offset', '2M', stdin=bytes(12 << 20))
        before = r.content(name)
    args = ['amend', '-q', '-o', options, r.path(name)]
    whole = r.killed('amend ' + options[:4], *args)
    r.check(name)
    for again in (False, True):
        got = r.content(name)
        if got[:DISK] != before or any(got[DISK:]) or again and options[:4] == 'size' and len(got) == DISK:
            raise Failed('amend %s changed the content' % options)
        if not whole and not again:
            run(*args)
    said = json.loads(run('info', '--json', r.path(name)).stdout)['format_specific']
    if options == 'lazy_refcounts=on' and not said['lazy_refcounts'] or options == 'compat=0.10' and said['compat'] != '0.10':
        raise Failed('amend %s, run again, says %s' % (options, said))
    r.check(name, 'base.img')
    r.snapshots_whole()


def leak_clusters(path):
    """Counts of clusters behind the end of a qcow2 file that nobody refers to."""
    with open(path, 'r+b') as file:
        header = file.read(104)
        bits, = struct.unpack_from('>I', header, 20)
        table, = struct.unpack_from('>Q', header, 48)
        file.seek(table)
        block, = struct.unpack('>Q', file.read(8))
        end = (os.path.getsize(path) + (1 << bits) - 1) >> bits
        file.seek(block + 2 * end)
        file.write(struct.pack('>H', 1) * RUN)
        file.truncate((end + RUN) << bits)


def damage_spare(path):
    """One of two copies of limg's superblock, both slots."""
    with open(path, 'r+b') as file:
        for off in (60, 4096 + 60):
            file.seek(off)
            byte = file.read(1)[0]
            file.seek(off)
            file.write(bytes([byte ^ 1]))


def count_too_many(path):
    """A VDI whose header counts places that no block is in."""
    with open(path, 'r+b') as file:
        file.seek(388)
        count = struct.unpack('<I', file.read(4))[0]
        file.seek(388)
        file.write(struct.pack('<I', count + 3))


def change_copy(path):
    """A VMDK whose first grain table is not what its copy is."""
    if os.path.exists(path + '-s001.vmdk'):
        path += '-s001.vmdk'
    with open(path, 'r+b') as file:
        file.seek(48)
        directory, = struct.unpack('<Q', file.read(8))    # the second one
        file.seek(directory * 512)
        table, = struct.unpack('<I', file.read(4))
        file.seek(table * 512 + 3)
        byte = file.read(1)[0]
        file.seek(table * 512 + 3)
        file.write(bytes([byte ^ 1]))


def leave_open(path):
    """A Parallels image that was not closed, with clusters at its end that are nobody's."""
    path = (sorted(glob.glob(glob.escape(path) + '.*.hds')) or [path])[0]
    with open(path, 'r+b') as file:
        file.seek(44)
        file.write(struct.pack('<I', 0x746F6E59))
        file.truncate(os.path.getsize(path) + (RUN << 20))


def damage_footer(path):
    """The footer of a VHD, which has a copy at the head."""
    with open(path, 'r+b') as file:
        file.seek(-100, os.SEEK_END)
        file.write(b'x')


def damage_older_header(path):
    """Of the two headers of a VHDX the one that does not count."""
    with open(path, 'r+b') as file:
        numbers = []
        for off in (65536, 131072):
            file.seek(off + 8)
            numbers.append(struct.unpack('<Q', file.read(8))[0])
        file.seek(65600 if numbers[0] < numbers[1] else 131136)
        file.write(b'x')


def verb_repair(r):
    path = r.path('base.img')
    {'qcow2': leak_clusters, 'limg': damage_spare, 'vdi': count_too_many, 'vhd': damage_footer, 'vmdk': change_copy,
     'vhdx': damage_older_header,
     'parallels': leave_open}[r.lab.format](path)
    if run('check', '-q', path, want=None).returncode == 0:
        raise Failed('what is to be repaired is not seen')
    r.killed('repair', 'check', '-q', '--repair', path)
    if r.content('base.img') != r.lab.head:
        raise Failed('a killed repair changed the disk')
    run('check', '-q', '--repair', path)
    run('check', '-q', path)
    r.check('base.img', reader=r.lab.format == 'limg')
    if r.content('base.img') != r.lab.head:
        raise Failed('a repair changed the disk')
    r.snapshots_whole()


# -- raw files and devices --------------------------------------------------------------------------------------------


@only(*BACKED)
def verb_create(r):
    """An overlay: there, and as its parent, or not there."""
    args = ['create', '-q', '-f', r.lab.format, *r.lab.make, '-b', 'base.img', r.path('new.img')]
    if not r.killed('make', *args) and not os.path.exists(r.path('new.img')):
        run(*args)
    r.check('new.img', 'base.img')
    if r.content('new.img') != r.lab.head:
        raise Failed('a new overlay is not what its parent is')


@only('limg', 'qcow2')
def verb_convert_snapshots(r):
    """All of it or nothing, under the name."""
    dst = r.path('all.img')
    args = ['convert', '-q', '-O', r.lab.format, '--snapshots', r.path('base.img'), dst]
    whole = r.killed('snapshots', *args)
    if not whole and not os.path.exists(dst):
        run(*args)
    r.check('all.img')
    if r.content('all.img') != r.lab.head or '"two"' not in run('snapshot', 'list', '--json', dst).stdout.decode():
        raise Failed('a converted image is not what it was made of')
    r.snapshots_whole()


@only('limg')
def verb_stream(r):
    """From front to back: as a file it is there whole or not at all; what went to stdout says itself that it is cut off."""
    dst, part = r.path('dst.vmdk'), r.path('part.vmdk')
    args = ['convert', '-q', '-O', 'vmdk', '-o', 'subformat=streamOptimized', r.path('base.img')]
    whole = r.killed('stream', *args, dst)
    if not whole and not os.path.exists(dst):
        run(*args, dst)
    run('check', '-q', dst)
    if r.content('dst.vmdk') != r.lab.head:
        raise Failed('a stream that was published is not whole')
    with open(dst, 'rb') as file:
        stream = file.read()
    for end in r.rng.sample(range(512, len(stream)), 3):
        with open(part, 'wb') as file:
            file.write(stream[:end])
        if run('checksum', '-q', part, want=None).returncode not in (3, 4):
            raise Failed('a stream of which %d bytes of %d are there is read' % (end, len(stream)))


def verb_raw(r):
    """A raw file: written in place sector by sector, made under another name, resized."""
    raw, rng = r.path('src.raw'), r.rng
    with open(raw, 'rb') as file:
        old = file.read()
    with open(r.path('new.bin'), 'rb') as file:
        new = file.read()
    what = rng.choice(('write', 'resize', 'convert'))
    if what == 'convert':
        dst = r.path('dst.raw')
        whole = r.killed('raw convert', 'convert', '-q', '-O', 'raw', r.path('base.img'), dst)
        if whole or os.path.exists(dst):
            with open(dst, 'rb') as file:
                if file.read() != r.lab.head:
                    raise Failed('a raw file was published that is not whole')
        return
    if what == 'resize':
        size = rng.choice((DISK + (8 << 20), 20 << 20))
        r.killed('raw resize', 'resize', '-q', '-f', 'raw', '--shrink', raw, str(size))
        with open(raw, 'rb') as file:
            got = file.read()
        if len(got) not in (len(old), size) or got != (old + bytes(size))[:len(got)]:
            raise Failed('resize of a raw file changed the content')
        return
    off = rng.randrange(0, (DISK - len(new)) // SECTOR) * SECTOR
    whole = r.killed('raw write', 'write', '-q', '-f', 'raw', raw, '--offset', str(off), stdin=r.path('new.bin'))
    with open(raw, 'rb') as file:
        got = file.read()
    end = off + len(new)
    if got[:off] != old[:off] or got[end:] != old[end:] or whole and got[off:end] != new:
        raise Failed('a write to a raw file is not where it belongs')
    for at in range(off, end, SECTOR):
        if got[at:at + SECTOR] not in (new[at - off:at - off + SECTOR], old[at:at + SECTOR]):
            raise Failed('sector at 0x%x of a raw file is neither old nor new' % at)


def verb_device(r):
    """Into a device: a part of it may be there, nothing behind it; run again it is all there, and the source is whole."""
    disk = r.path('disk')
    with open(disk, 'wb') as file:
        file.truncate(DISK)
        file.seek(0)
        file.write(r.rng.randbytes(1 << 20) * (DISK >> 20))
        file.write(b'behind the end' * 100)
        file.truncate(DISK + (1 << 20))
    made = subprocess.run(['losetup', '--find', '--show', disk], capture_output=True, check=False)
    if made.returncode:
        r.lab.no_device = True
        return
    device = made.stdout.decode().strip()
    args = ['convert', '-q', '-O', 'raw', '--force', r.path('base.img'), device]
    try:
        r.killed('device', *args)
        r.check('base.img')
        run(*args)
        with open(device, 'rb') as file:
            got = file.read()
        if got[:DISK] != r.lab.head or got[DISK:DISK + 1400] != b'behind the end' * 100 or any(got[DISK + 1400:]):
            raise Failed('a device, run again, does not hold the image and its old end')
    finally:
        subprocess.run(['losetup', '-d', device], check=False)


MORE_VERBS = [verb_create, verb_bitmap, verb_amend, verb_repair, verb_convert_snapshots, verb_stream, verb_raw, verb_device]
