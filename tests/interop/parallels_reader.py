#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
An independent reader of Parallels disks, written from docs/interop/parallels.rst and prl-xml.rst of QEMU: expandable
images, and bundles with split storages and snapshots.

    parallels_reader.py verify NAME              structure, rule by rule
    parallels_reader.py hash NAME [SNAPSHOT]     sha256 of what the guest sees, and the size in bytes

NAME is an image, a bundle's folder, or its DiskDescriptor.xml; SNAPSHOT a GUID as in the descriptor.
"""
import hashlib
import os
import struct
import sys
import xml.etree.ElementTree

SECTOR = 512
V1, V2 = b'WithoutFreeSpace', b'WithouFreSpacExt'
EXT_MAGIC = 0xAB234CEF23DCEA87
TOP = '{5fbaabe3-6958-40ff-92a7-860e329aab41}'
NONE = '{00000000-0000-0000-0000-000000000000}'


class Bad(Exception):
    pass


def want(condition, what):
    if not condition:
        raise Bad(what)


class Plain:
    def __init__(self, path, size):
        self.file, self.size, self.cluster = open(path, 'rb'), size, 1 << 20    # pylint: disable=consider-using-with

    def holds(self, _index):
        return True

    def read(self, index):
        self.file.seek(index * self.cluster)
        return self.file.read(self.cluster).ljust(self.cluster, b'\0')

    def verify(self):
        want(os.fstat(self.file.fileno()).st_size >= self.size, 'a plain storage is shorter than its range')


class Expandable:
    def __init__(self, path):
        self.file = open(path, 'rb')    # pylint: disable=consider-using-with
        head = self.file.read(64)
        want(len(head) == 64, 'no header')
        (self.magic, version, self.heads, self.cylinders, tracks, self.entries, self.sectors, self.in_use, self.data,
         self.flags, self.ext) = struct.unpack('<16sIIIIIQIIIQ', head)
        want(self.magic in (V1, V2), 'magic')
        want(version == 2, 'version')
        want(tracks, 'clusters of no sectors')
        if self.magic == V1:
            want(self.sectors >> 32 == 0, 'a size of more than 32 bits')
        self.size, self.cluster = self.sectors * SECTOR, tracks * SECTOR
        self.unit = SECTOR if self.magic == V1 else self.cluster
        self.file.seek(64)
        raw = self.file.read(4 * self.entries)
        want(len(raw) == 4 * self.entries, 'the table is cut off')
        self.bat = struct.unpack('<%dI' % self.entries, raw)
        self.data_off = self.data * SECTOR or (64 + 4 * self.entries + SECTOR - 1) // SECTOR * SECTOR
        want(self.entries * self.cluster >= self.size, 'the table is too short')

    def holds(self, index):
        return index < self.entries and self.bat[index] != 0

    def read(self, index):
        if not self.holds(index):
            return None
        self.file.seek(self.bat[index] * self.unit)
        return self.file.read(self.cluster).ljust(self.cluster, b'\0')

    def extension(self):
        """Clusters of the Format Extension."""
        off = self.ext * SECTOR
        self.file.seek(off)
        data = self.file.read(self.cluster)
        magic, = struct.unpack_from('<Q', data)
        want(magic == EXT_MAGIC, 'magic of the extension')
        want(hashlib.md5(data[24:]).digest() == data[8:24], 'checksum of the extension')
        yield off
        at = 24
        while True:
            magic, _flags, size, _ = struct.unpack_from('<QQII', data, at)
            if magic == 0:
                return
            at += 24
            if magic == 0x20385FAE252CB34A:
                sectors, _, granularity, l1 = struct.unpack_from('<Q16sII', data, at)
                want(sectors == self.sectors and granularity & (granularity - 1) == 0, 'a bitmap of another disk')
                for entry in struct.unpack_from('<%dQ' % l1, data, at + 32):
                    if entry > 1:
                        yield entry * SECTOR
            at = (at + size + 7) // 8 * 8

    def verify(self):
        end = os.fstat(self.file.fileno()).st_size
        table_end = 64 + 4 * self.entries
        want(self.data_off >= table_end, 'data before the end of the table')
        if self.magic == V2:
            want(self.data and self.data_off % self.cluster == 0, 'data_off of version 2')
        places = [e * self.unit for e in self.bat if e]
        if self.ext:
            places += list(self.extension())
        seen = set()
        for off in places:
            want(self.data_off <= off < end, 'a cluster at 0x%x lies out of the data area' % off)
            want((off - self.data_off) % self.cluster == 0, 'a cluster at 0x%x is out of line' % off)
            want(off not in seen, 'two clusters at 0x%x' % off)
            seen.add(off)
        if self.flags & 1:
            want(not places, 'not empty')


class Storage:
    """One range of the disk: its images, from the snapshot that is looked at down to the root."""

    def __init__(self, start, end, layers):
        self.start, self.end, self.layers = start, end, layers

    def content(self, out):
        """Its bytes, cluster by cluster, to the function out."""
        left, clusters = self.end - self.start, {layer.cluster for layer in self.layers}
        step = min(clusters)
        for at in range(0, left, step):
            data = None
            for layer in self.layers:
                data = layer.read(at // layer.cluster)
                if data is not None:
                    data = data[at % layer.cluster:][:step]
                    break
            out((data or bytes(step))[:min(step, left - at)])


class Disk:
    def __init__(self, name, snapshot=None):
        if os.path.isdir(name):
            name = os.path.join(name, 'DiskDescriptor.xml')
        with open(name, 'rb') as file:
            head = file.read(16)
        if head in (V1, V2):
            image = Expandable(name)
            self.storages, self.size, self.images = [Storage(0, image.size, [image])], image.size, [image]
            return
        self.folder, self.images, self.storages = os.path.dirname(name) or '.', [], []
        root = xml.etree.ElementTree.parse(name).getroot()
        want(root.tag == 'Parallels_disk_image' and root.get('Version') == '1.0', 'no descriptor')
        par = root.find('Disk_Parameters')
        self.size = int(par.findtext('Disk_size')) * SECTOR
        want(int(par.findtext('Padding', '0')) == 0, 'padding')
        self.size_by_chs = SECTOR
        for what in ('Cylinders', 'Heads', 'Sectors'):
            self.size_by_chs *= int(par.findtext(what))
        chain = self.chain(root, snapshot)
        for storage in root.find('StorageData').findall('Storage'):
            self.add(storage, chain)

    @staticmethod
    def chain(root, snapshot):
        snaps = root.find('Snapshots')
        parents = {s.findtext('GUID').strip().lower(): s.findtext('ParentGUID').strip().lower()
                   for s in snaps.findall('Shot')}
        at = (snapshot or snaps.findtext('TopGUID') or TOP).strip().lower()
        chain = []
        while at != NONE:
            want(at in parents and at not in chain, 'no chain of snapshots')
            chain.append(at)
            at = parents[at]
        return chain

    def add(self, storage, chain):
        start, end = int(storage.findtext('Start')) * SECTOR, int(storage.findtext('End')) * SECTOR
        images = {i.findtext('GUID').strip().lower(): i for i in storage.findall('Image')}
        layers = []
        for guid in chain:
            want(guid in images, 'a storage has no image of ' + guid)
            path = os.path.join(self.folder, images[guid].findtext('File'))
            kind = images[guid].findtext('Type')
            want(kind in ('Plain', 'Compressed'), 'type ' + kind)
            layers.append(Plain(path, end - start) if kind == 'Plain' else Expandable(path))
            if kind == 'Compressed':
                want(layers[-1].cluster == int(storage.findtext('Blocksize')) * SECTOR, 'Blocksize')
        self.images += layers
        self.storages.append(Storage(start, end, layers))

    def verify(self):
        for image in self.images:
            image.verify()
        if hasattr(self, 'folder'):
            want(self.size_by_chs == self.size, 'the geometry is that of another size')
        at = 0
        for storage in self.storages:
            want(storage.start == at, 'storages do not follow each other')
            at = storage.end
            for layer in storage.layers:
                want(layer.size == storage.end - storage.start, 'an image is not as large as its storage')
        want(at == self.size, 'the storages are not the whole disk')

    def hash(self):
        digest = hashlib.sha256()
        for storage in self.storages:
            storage.content(digest.update)
        return digest.hexdigest()


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ('verify', 'hash'):
        sys.exit(__doc__)
    try:
        disk = Disk(*sys.argv[2:4])
        if sys.argv[1] == 'verify':
            disk.verify()
        else:
            print(disk.hash(), disk.size)
    except (Bad, struct.error, xml.etree.ElementTree.ParseError, AttributeError, ValueError) as bad:
        sys.exit('%s: %s' % (sys.argv[2], bad))


if __name__ == '__main__':
    main()
