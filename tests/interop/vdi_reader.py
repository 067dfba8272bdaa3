#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
An independent reader of VDI files, written from format-spec/vdi.md: chains by UUID, any block size, extra bytes, both
versions. It shares nothing with the library and holds whole images in memory: for tests.

    vdi_reader.py hash FILE [PARENT...]     sha256 of what the guest sees; parents from the nearest on
    vdi_reader.py verify FILE               every rule of the specification that a file alone can break
    vdi_reader.py raw FILE OUT [PARENT...]
"""
import hashlib
import struct
import sys

MAGIC = 0xbeda107f
FREE, ZERO = 0xffffffff, 0xfffffffe
NULL = bytes(16)


class Bad(Exception):
    pass


class Vdi:
    def __init__(self, path):
        with open(path, 'rb') as file:
            self.data = file.read()
        self.path = path
        magic, self.version = struct.unpack_from('<II', self.data, 64)
        if magic != MAGIC:
            raise Bad('VDI-1: no magic')
        if self.version == 0x10001:
            self.header_1()
        elif self.version == 2:
            self.header_0()
        else:
            raise Bad('VDI-1: version 0x%x' % self.version)
        self.entries = struct.unpack_from('<%dI' % self.nr_blocks, self.data, self.map_off)
        self.place = self.extra + self.block

    def header_1(self):
        self.header_bytes, self.type, self.flags = struct.unpack_from('<III', self.data, 72)
        self.comment = self.data[84:340].split(b'\0')[0]
        self.map_off, self.data_off = struct.unpack_from('<II', self.data, 340)
        self.disk, self.block, self.extra, self.nr_blocks, self.count = struct.unpack_from('<QIIII', self.data, 368)
        self.uuid, self.modification, self.parent, self.parent_modification = struct.unpack_from(
            '<16s16s16s16s', self.data, 392)

    def header_0(self):
        self.header_bytes = 348
        self.type, self.flags = struct.unpack_from('<II', self.data, 72)
        self.comment = self.data[80:336].split(b'\0')[0]
        self.disk, self.block, self.nr_blocks, self.count = struct.unpack_from('<QIII', self.data, 352)
        self.extra = 0
        self.uuid, self.modification, self.parent = struct.unpack_from('<16s16s16s', self.data, 372)
        self.parent_modification = NULL
        self.map_off = 72 + 348
        self.data_off = self.map_off + 4 * self.nr_blocks

    def size(self):
        return self.disk // 512 * 512

    def read(self, parents=()):
        """All that the guest sees."""
        size, below = self.size(), b''
        if self.type == 4:
            if not parents:
                raise Bad('its parent is missing')
            parent = parents[0]
            if parent.uuid != self.parent:
                raise Bad('VDI-10: another parent')
            if self.parent_modification not in (NULL, parent.modification):
                raise Bad('VDI-10: the parent was changed')
            below = parent.read(parents[1:])
        out = bytearray(self.nr_blocks * self.block)
        out[:min(len(below), size)] = below[:size]
        for block, entry in enumerate(self.entries):
            at = block * self.block
            if entry == FREE:
                continue
            if entry == ZERO:
                out[at:at + self.block] = bytes(self.block)
                continue
            off = self.data_off + entry * self.place + self.extra
            got = self.data[off:off + self.block]
            if len(got) < min(self.block, size - at):
                raise Bad('VDI-6: block %d leads out of the file' % block)
            out[at:at + self.block] = got.ljust(self.block, b'\0')
        return bytes(out[:size])

    def verify(self):
        if self.version == 0x10001 and self.header_bytes < 384 or self.type not in (1, 2, 4) or self.flags & ~1:
            raise Bad('VDI-2: header of %d bytes, type %d, flags 0x%x' % (self.header_bytes, self.type, self.flags))
        if self.block < 512 or self.block & (self.block - 1) or self.extra & (self.extra - 1):
            raise Bad('VDI-3: block 0x%x extra 0x%x' % (self.block, self.extra))
        if self.disk < 512 or self.nr_blocks * self.block < self.disk:
            raise Bad('VDI-4: disk 0x%x in %d blocks' % (self.disk, self.nr_blocks))
        if not (self.map_off >= 72 + min(self.header_bytes, 384) or self.version == 2) or \
                self.map_off + 4 * self.nr_blocks > min(self.data_off, len(self.data)):
            raise Bad('VDI-5: map at 0x%x, data at 0x%x' % (self.map_off, self.data_off))
        places = [e for e in self.entries if e < ZERO]
        if places and self.data_off + max(places) * self.place + self.extra >= len(self.data):
            raise Bad('VDI-6: place %d is out of the file' % max(places))
        if len(set(places)) != len(places):
            raise Bad('VDI-7: a place has two owners')
        if places and self.count <= max(places):
            raise Bad('VDI-8: %d places are counted, the last one is %d' % (self.count, max(places)))
        if self.count != len(places):
            raise Bad('VDI-8: leak: %d places are counted, %d are used' % (self.count, len(places)))
        if NULL in (self.uuid, self.modification):
            raise Bad('VDI-9: null UUID')
        if (self.type == 4) != (self.parent != NULL):
            raise Bad('VDI-10: type %d and parent %s' % (self.type, self.parent.hex()))


def main(args):
    verb, path, *rest = args
    image = Vdi(path)
    if verb == 'verify':
        image.verify()
        return
    out = rest.pop(0) if verb == 'raw' else None
    content = image.read([Vdi(p) for p in rest])
    if out:
        with open(out, 'wb') as file:
            file.write(content)
    else:
        print(hashlib.sha256(content).hexdigest(), path)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except (Bad, struct.error) as why:
        sys.exit('%s: %s' % (sys.argv[2], why))
