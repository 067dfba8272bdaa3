#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
An independent reader of VHD, chains included, written from the specification and from format-spec/vhd.md.

    vhd_reader.py digest FILE       sha256 of what the guest sees
    vhd_reader.py raw FILE          the same to stdout
    vhd_reader.py verify FILE       footers, header, table and bitmaps are as a strict reader wants them

A parent is looked for beside the child by the names that the child records, and must carry the unique id on record.
"""
import hashlib
import os
import struct
import sys
import uuid

SECTOR = 512
FREE = 0xFFFFFFFF
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
MAX_GEOMETRY = (65535, 16, 255)


class Bad(Exception):
    """The file is no VHD, or a damaged one."""


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xFFFFFFFF


class Footer:
    def __init__(self, data):
        if data[:8] != b'conectix':
            raise Bad('no footer')
        data = data.ljust(SECTOR, b'\0')
        (self.features, self.version, self.data_off, _, self.creator, _, _, _, self.current, c, h, s, self.type,
         self.sum, self.ident) = struct.unpack_from('>IIQI4sI4sQQHBBII16s', data, 8)
        self.geometry = (c, h, s)
        self.good = self.sum == checksum(data, 64)
        self.raw = bytes(data)

    @property
    def size(self):
        c, h, s = self.geometry
        if self.creator in (b'vpc ', b'qemu') and self.geometry != MAX_GEOMETRY and c * h * s:
            return c * h * s * SECTOR
        return self.current


class Vhd:
    def __init__(self, path):
        self.path = path
        self.file = open(path, 'rb')
        self.bytes = os.path.getsize(path)
        self.head = self._footer(0)
        self.tail = self._footer(self.bytes - SECTOR) or self._footer(self.bytes - SECTOR + 1)
        self.footer = self._choose()
        self.size, self.type = self.footer.size, self.footer.type
        self.parent = None
        if self.type != FIXED:
            self._load_header()
        if self.type == DIFFERENCING:
            self.parent = self._find_parent()

    def at(self, off, length):
        self.file.seek(off)
        data = self.file.read(length)
        if len(data) < length:
            raise Bad('%s: cut off at 0x%x' % (self.path, off + len(data)))
        return data

    def _footer(self, off):
        if off < 0:
            return None
        self.file.seek(off)
        data = self.file.read(SECTOR)
        return Footer(data) if data[:8] == b'conectix' else None

    def _choose(self):
        head, tail = self.head, self.tail
        head_counts = head and head.good and head.type in (DYNAMIC, DIFFERENCING)
        if tail and tail.good and tail.type == FIXED:
            if head_counts:
                raise Bad('an image in an image')
            return tail
        if head_counts:
            if tail and tail.good and tail.ident != head.ident:
                raise Bad('an image in an image')
            return head
        if not (tail and tail.good):
            raise Bad('no good footer')
        return tail

    def _load_header(self):
        off = self.footer.data_off
        data = self.at(off, 1024)
        if data[:8] != b'cxsparse' or struct.unpack_from('>I', data, 36)[0] != checksum(data, 36):
            raise Bad('%s: no good header' % self.path)
        self.table_off, version, self.entries, self.block = struct.unpack_from('>QIII', data, 16)
        if version != 0x10000:
            raise Bad('%s: header version 0x%x' % (self.path, version))
        self.parent_ident = data[40:56]
        self.name = data[64:576].decode('utf-16-be').split('\0')[0]
        self.locators = []
        for i in range(8):
            code, _, length, _, where = struct.unpack_from('>4sIIIQ', data, 576 + 24 * i)
            if length:
                self.locators.append((code, self.at(where, length)))
        self.blocks = -(-self.size // self.block)
        self.table = struct.unpack('>%dI' % self.entries, self.at(self.table_off, 4 * self.entries))
        self.bitmap_bytes = -(-(self.block // SECTOR // 8) // SECTOR) * SECTOR

    def _names(self):
        for wanted in (b'W2ru', b'W2ku', b'MacX'):
            for code, text in self.locators:
                if code != wanted:
                    continue
                if code == b'MacX':
                    yield text.decode().replace('file://localhost', '').replace('file://', '')
                    continue
                name = text.decode('utf-16-le').split('\0')[0]
                if code == b'W2ru' or name.startswith('/'):
                    yield name.replace('\\', '/')
                else:
                    yield name.replace('\\', '/').rpartition('/')[2]
        yield self.name.replace('\\', '/').rpartition('/')[2]

    def _find_parent(self):
        folder = os.path.dirname(os.path.abspath(self.path))
        for name in self._names():
            path = os.path.join(folder, name)
            if name and os.path.exists(path):
                parent = Vhd(path)
                if parent.footer.ident != self.parent_ident:
                    raise Bad('%s is %s, not the parent of %s' % (path, uuid.UUID(bytes=parent.footer.ident), self.path))
                return parent
        raise Bad('%s: no parent: %s' % (self.path, list(self._names())))

    def read_block(self, number, length):
        """The content of this and all lower layers, by this layer's blocks."""
        start = number * self.block
        entry = self.table[number]
        if entry == FREE:
            return self.below(start, length)
        off = entry * SECTOR
        bits, data = self.at(off, self.bitmap_bytes), bytearray(self.at(off + self.bitmap_bytes, length))
        i = 0
        while i * SECTOR < length:
            if bits[i // 8] & (0x80 >> i % 8):
                i += 1
                continue
            first = i
            while i * SECTOR < length and not bits[i // 8] & (0x80 >> i % 8):
                i += 1
            at, end = first * SECTOR, min(i * SECTOR, length)
            data[at:end] = self.below(start + at, end - at)
        return bytes(data)

    def below(self, start, length):
        return self.parent.read(start, length) if self.parent else bytes(length)

    def read(self, start, length):
        """Zeros behind the disk."""
        there = max(0, min(length, self.size - start))
        out = bytearray()
        if self.type == FIXED:
            out += self.at(start, there) if there else b''
        else:
            while len(out) < there:
                number, within = divmod(start + len(out), self.block)
                whole = min(self.block, self.size - number * self.block)
                out += self.read_block(number, whole)[within:within + there - len(out)]
        return bytes(out) + bytes(length - there)

    def pieces(self):
        step = 1 << 20 if self.type == FIXED else self.block
        for off in range(0, self.size, step):
            yield self.read(off, min(step, self.size - off))

    # ---- what a strict reader wants ----

    def verify(self):
        if not (self.tail and self.tail.good) or len(self.tail.raw) != SECTOR:
            raise Bad('the footer at the end is not good')
        if self.footer.version != 0x10000 or self.footer.features & 2 == 0 or self.size % SECTOR:
            raise Bad('the footer has no such version or features')
        if self.type == FIXED:
            if self.bytes != self.size + SECTOR or self.footer.data_off != (1 << 64) - 1:
                raise Bad('a fixed disk is its data and its footer')
            return
        if not (self.head and self.head.good) or self.head.raw != self.tail.raw:
            raise Bad('the footer and its copy differ')
        self._verify_table()
        if self.type == DYNAMIC and (self.locators or self.name or any(self.parent_ident)):
            raise Bad('a dynamic disk names a parent')
        if self.parent:
            self.parent.verify()

    def _verify_table(self):
        if self.entries != self.blocks:
            raise Bad('%d entries for %d blocks' % (self.entries, self.blocks))
        end = self.table_off + 4 * self.entries
        places = sorted(e * SECTOR for e in self.table if e != FREE)
        for place, following in zip(places, places[1:] + [self.bytes - SECTOR]):
            if place + self.bitmap_bytes + self.block > following:
                raise Bad('the place at 0x%x overlaps what follows' % place)
            if place < end and place + self.bitmap_bytes + self.block > self.table_off:
                raise Bad('the place at 0x%x overlaps the table' % place)
            if self.type == DYNAMIC and self.at(place, self.block // SECTOR // 8).strip(b'\xff'):
                raise Bad('the bitmap at 0x%x is not full' % place)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ('digest', 'raw', 'verify'):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        image = Vhd(sys.argv[2])
        if sys.argv[1] == 'verify':
            image.verify()
            return 0
        digest = hashlib.sha256()
        for piece in image.pieces():
            if sys.argv[1] == 'raw':
                sys.stdout.buffer.write(piece)
            digest.update(piece)
        if sys.argv[1] == 'digest':
            print(digest.hexdigest())
        return 0
    except (Bad, UnicodeDecodeError) as wrong:
        print('vhd_reader: %s' % wrong, file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
