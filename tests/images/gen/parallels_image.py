# SPDX-License-Identifier: MIT
"""
Parallels disks, made from nothing, as no tool at hand writes them: both magics, any size of clusters, clusters in any
order, Format Extensions with dirty bitmaps, bundles with split storages and trees of snapshots, damage. From
docs/interop/parallels.rst and prl-xml.rst of QEMU.
"""
import hashlib
import os
import random
import struct

V1, V2 = b'WithoutFreeSpace', b'WithouFreSpacExt'
IN_USE, CLOSED, PD17 = 0x746F6E59, 0x312E3276, 0x37316470
EXT_MAGIC, BITMAP = 0xAB234CEF23DCEA87, 0x20385FAE252CB34A
TOP = '{5fbaabe3-6958-40ff-92a7-860e329aab41}'
NONE = '{00000000-0000-0000-0000-000000000000}'


class Image:
    """One expandable image. Fields are as on disk; change what you like before save()."""

    def __init__(self, size=1 << 20, cluster=65536, magic=V2, seed=1, below=None, tight=False):
        self.rng = random.Random(seed)
        self.size, self.cluster, self.magic, self.below = size, cluster, magic, below
        self.nr = -(-size // cluster)
        self.heads, self.cylinders, self.version, self.flags, self.in_use = 16, size // 512 // 512, 2, 0, CLOSED
        self.sectors, self.ext_off = size // 512, 0
        end = 64 + 4 * self.nr
        self.data_off = -(-end // 512) * 512 if tight and magic == V1 else -(-end // cluster) * cluster
        self.data_field = 0 if tight and magic == V1 else self.data_off // 512
        self.place = {}         # block -> number of its place
        self.content = {}       # block -> bytes
        self.more = {}          # number of a place -> bytes: what no block is in
        self.patches = []       # (offset, bytes), over all else
        self.next = 0

    def take(self):
        self.next += 1
        return self.next - 1

    def write(self, block, data=None):
        """One whole cluster; random by default."""
        self.content[block] = data if data is not None else self.rng.randbytes(self.cluster)
        if block not in self.place:
            self.place[block] = self.take()
        return self

    def shuffle(self):
        """Places in another order than blocks."""
        places = list(self.place.values())
        self.rng.shuffle(places)
        self.place = dict(zip(self.place, places))
        return self

    def offset(self, place):
        return self.data_off + place * self.cluster

    def entry(self, place):
        return self.offset(place) // (512 if self.magic == V1 else self.cluster)

    def extend(self, sections=None, bitmaps=1, flags=0, granularity=128):
        """A Format Extension; sections: (magic, flags, data) in place of dirty bitmaps."""
        if sections is None:
            sections = []
            for _ in range(bitmaps):
                place = self.take()
                self.more[place] = b'\xff' * self.cluster
                bits = -(-self.sectors // granularity)
                l1 = [self.offset(place) // 512] + [0] * (-(-bits // (8 * self.cluster)) - 1)
                sections.append((BITMAP, flags, struct.pack('<Q16sII', self.sectors, self.rng.randbytes(16), granularity,
                                                            len(l1)) + struct.pack('<%dQ' % len(l1), *l1)))
        body = b''
        for magic, flag, data in sections:
            body += struct.pack('<QQII', magic, flag, len(data), 0) + data + bytes(-len(data) % 8)
        body = (body + bytes(24)).ljust(self.cluster - 24, b'\0')
        place = self.take()
        self.more[place] = struct.pack('<Q', EXT_MAGIC) + hashlib.md5(body).digest() + body
        self.ext_off = self.offset(place) // 512
        return self

    def header(self):
        return struct.pack('<16sIIIIIQIIIQ', self.magic, self.version, self.heads, self.cylinders, self.cluster // 512,
                           self.nr, self.sectors, self.in_use, self.data_field, self.flags, self.ext_off)

    def read(self):
        """What the guest sees."""
        below = self.below.read() if self.below else b''
        out = bytearray(below[:self.size].ljust(self.size, b'\0'))
        for block, data in self.content.items():
            out[block * self.cluster:(block + 1) * self.cluster] = data
        return bytes(out[:self.size])

    def save(self, name):
        entries = [self.entry(self.place[b]) if b in self.place else 0 for b in range(self.nr)]
        with open(name, 'wb') as file:
            file.write(self.header() + struct.pack('<%dI' % self.nr, *entries))
            file.truncate(self.data_off)
            for block, place in self.place.items():
                file.seek(self.offset(place))
                file.write(self.content[block])
            for place, data in self.more.items():
                file.seek(self.offset(place))
                file.write(data)
            for off, data in self.patches:
                file.seek(off)
                file.write(data)


def sample(size=1 << 20, cluster=65536, seed=1, part=0.5, **more):
    """Random clusters in a random order, some of them zeros."""
    image = Image(size, cluster, seed=seed, **more)
    blocks = [b for b in range(image.nr) if image.rng.random() < part] or [0]
    image.rng.shuffle(blocks)
    for block in blocks:
        image.write(block, bytes(cluster) if image.rng.random() < .1 else None)
    return image


class Raw:
    """A plain storage."""

    cluster = 1 << 20

    def __init__(self, size, seed=1):
        self.size, self.data = size, random.Random(seed).randbytes(size)

    def read(self):
        return self.data

    def save(self, name):
        with open(name, 'wb') as file:
            file.write(self.data)


def guid(number):
    return '{%08x-1111-2222-3333-444444444444}' % number


class Bundle:
    """
    storages: of each one its images by GUID, the root first: [{GUID: Image}]; parents: GUID -> the one below it. Parts of
    the descriptor can be replaced before save().
    """

    def __init__(self, storages, parents=None, top=None, blocksize=None):
        self.storages, self.top = storages, top
        self.parents = parents or {TOP: NONE}
        ends, at = [], 0
        for images in storages:
            at += next(iter(images.values())).size
            ends.append(at)
        self.ends, self.size = ends, at
        self.blocksize = blocksize
        self.hashes = True      # for who saves it
        self.padding, self.encryption, self.files = '0', NONE, {}
        self.replace = []       # (old, new) in the text

    def file(self, number, name):
        return self.files.get((number, name), 'disk.hdd.%d.%s.hds' % (number, name))

    def text(self):
        out = ['<?xml version="1.0" encoding="UTF-8"?>', '<Parallels_disk_image Version="1.0">', '<Disk_Parameters>',
               '<Disk_size>%d</Disk_size><Cylinders>%d</Cylinders><Heads>1</Heads><Sectors>1</Sectors>'
               % (self.size // 512, self.size // 512),
               '<Padding>%s</Padding><Encryption><Engine>%s</Engine><Data></Data></Encryption>' % (self.padding,
                                                                                                  self.encryption),
               '<UID>{0610bb35-447e-4aae-aa79-f1571d969081}</UID><Name>disk</Name></Disk_Parameters>', '<StorageData>']
        start = 0
        for number, images in enumerate(self.storages):
            block = self.blocksize or next((i.cluster for i in images.values() if not isinstance(i, Raw)), 1 << 20)
            out.append('<Storage><Start>%d</Start><End>%d</End><Blocksize>%d</Blocksize>'
                       % (start // 512, self.ends[number] // 512, block // 512))
            for name, image in images.items():
                out.append('<Image><GUID>%s</GUID><Type>%s</Type><File>%s</File></Image>'
                           % (name, 'Plain' if isinstance(image, Raw) else 'Compressed', self.file(number, name)))
            out.append('</Storage>')
            start = self.ends[number]
        out += ['</StorageData>', '<Snapshots>']
        if self.top:
            out.append('<TopGUID>%s</TopGUID>' % self.top)
        for name, parent in self.parents.items():
            out.append('<Shot><GUID>%s</GUID><ParentGUID>%s</ParentGUID></Shot>' % (name, parent))
        out += ['</Snapshots>', '</Parallels_disk_image>', '']
        text = '\n'.join(out)
        for old, new in self.replace:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text

    def read(self, name=None):
        """The content at a GUID; None: the head. Images read through what is below them."""
        return b''.join(images[name or self.top or TOP].read() for images in self.storages)

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        for number, images in enumerate(self.storages):
            for name, image in images.items():
                image.save(os.path.join(folder, self.file(number, name)))
        with open(os.path.join(folder, 'DiskDescriptor.xml'), 'w', encoding='utf-8') as file:
            file.write(self.text())
