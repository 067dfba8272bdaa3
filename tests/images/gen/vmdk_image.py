#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Makes VMDK disks that no tool at hand writes: extents of ESX, and odd ones of hosted products.
#   vmdk_image.py cowd|sesparse|sesparse-dirty EXTENT GUEST   GUEST (raw) in EXTENT: all grains that are not zeros
#   vmdk_image.py odd EXTENT GUEST   KDMV without a second directory, small tables, grains of 4 KiB, in reverse order
import struct
import sys

SECTOR = 512


def grains(guest, size):
    for i in range(0, len(guest), size):
        piece = guest[i:i + size].ljust(size, b'\0')
        if piece.strip(b'\0'):
            yield i // size, piece


def cowd(guest, grain=1):
    capacity, entries = len(guest) // SECTOR, 4096
    tables = -(-capacity // (grain * entries))
    gd = 4
    head = struct.pack('<4sIIIIIII', b'COWD', 1, 3, capacity, grain, gd, tables, 0).ljust(2048, b'\0')
    first = gd + -(-tables * 4 // SECTOR)
    used = sorted({number // entries for number, _ in grains(guest, grain * SECTOR)})
    place = {t: first + n * (entries * 4 // SECTOR) for n, t in enumerate(used)}
    at = first + len(used) * (entries * 4 // SECTOR)
    table = {t: [0] * entries for t in used}
    data = b''
    for number, piece in grains(guest, grain * SECTOR):
        table[number // entries][number % entries] = at
        at += grain
        data += piece
    directory = struct.pack('<%dI' % tables, *(place.get(t, 0) for t in range(tables)))
    return (head + directory.ljust((first - gd) * SECTOR, b'\0') +
            b''.join(struct.pack('<%dI' % entries, *table[t]) for t in used) + data)


def sesparse(guest, dirty=0):
    capacity = len(guest) // SECTOR
    tables = -(-capacity // (8 * 4096))
    used = sorted({number // 4096 for number, _ in grains(guest, 4096)})
    gd, gt = 8, 16
    first = gt + 64 * len(used)
    table = {t: [0] * 4096 for t in used}
    data, n = b'', 0
    for number, piece in grains(guest, 4096):
        table[number // 4096][number % 4096] = 3 << 60 | (n & 0xfff) << 48 | n >> 12
        n += 1
        data += piece
    # a hole that says so, and one that falls through
    for t in used:
        for k, entry in enumerate(table[t]):
            if not entry:
                table[t][k] = (2 << 60, 1 << 60, 0)[k % 3]
    head = struct.pack('<26Q', 0xcafebabe, 0x200000001, capacity, 8, 64, 0, 0, 0, 0, 0,
                       1, 1, 2, 2, 4, 4, gd, 8, gt, 64 * len(used), first, 0, first, 0, first, n * 8).ljust(SECTOR, b'\0')
    volatile = struct.pack('<QQQQ', 0xcafecafe, 0, 0, dirty).ljust(SECTOR, b'\0')
    directory = struct.pack('<%dQ' % tables, *(1 << 60 | used.index(t) if t in used else 0 for t in range(tables)))
    return ((head + volatile).ljust(gd * SECTOR, b'\0') + directory.ljust((gt - gd) * SECTOR, b'\0') +
            b''.join(struct.pack('<4096Q', *table[t]) for t in used) + data)


def odd(guest):
    capacity, grain, entries = len(guest) // SECTOR, 8, 128
    tables = -(-capacity // (grain * entries))
    gd = 1
    first = gd + -(-tables * 4 // SECTOR)
    pieces = list(grains(guest, grain * SECTOR))
    used = sorted({number // entries for number, _ in pieces})
    at = first + len(used)
    table = {t: [0] * entries for t in used}
    data = b''
    for number, piece in reversed(pieces):
        table[number // entries][number % entries] = at
        at += grain
        data += piece
    head = struct.pack('<4sIIQQQQIQQQB4sH', b'KDMV', 1, 1, capacity, grain, 0, 0, entries, 0, gd, first + len(used), 0,
                       b'\n \r\n', 0).ljust(SECTOR, b'\0')
    directory = struct.pack('<%dI' % tables, *(first + used.index(t) if t in used else 0 for t in range(tables)))
    return (head + directory.ljust((first - gd) * SECTOR, b'\0') +
            b''.join(struct.pack('<%dI' % entries, *table[t]) for t in used) + data)


# Fields of a KDMV header: offset, bytes.
FIELDS = {'magic': (0, 4), 'version': (4, 4), 'flags': (8, 4), 'capacity': (12, 8), 'grain': (20, 8), 'desc_off': (28, 8),
          'desc_sectors': (36, 8), 'gtes': (44, 4), 'rgd': (48, 8), 'gd': (56, 8), 'overhead': (64, 8), 'unclean': (72, 1),
          'newlines': (73, 4), 'compress': (77, 2)}


def descriptor(lines, kind, cid=0x12345678, parent=0xffffffff, more=()):
    return '\n'.join(['# Disk DescriptorFile', 'version=1', 'CID=%08x' % cid, 'parentCID=%08x' % parent,
                      'createType="%s"' % kind, *more, '', '# Extent description', *lines, '', '# The Disk Data Base', '#DDB',
                      '', 'ddb.virtualHWVersion = "4"', 'ddb.geometry.cylinders = "4"', 'ddb.geometry.heads = "16"',
                      'ddb.geometry.sectors = "63"', 'ddb.adapterType = "ide"', '']).encode()


class Sparse:
    """A KDMV extent with both directories; grains: number -> bytes, or None for one of zeros; text: its descriptor."""

    def __init__(self, capacity, grain=128, grains=None, text=b'', gtes=512):
        self.capacity, self.grain, self.gtes, grains = capacity, grain, gtes, grains or {}
        self.nr = -(-capacity // grain)
        tables = -(-self.nr // gtes)
        room = -(-len(text) // SECTOR) + 2 if text else 0
        directory, table = -(-tables * 4 // SECTOR), -(-gtes * 4 // SECTOR)
        self.rgd = 1 + room
        self.gd = self.rgd + directory + tables * table
        overhead = -(-(self.gd + directory + tables * table) // grain) * grain
        head = struct.pack('<4sIIQQQQIQQQB4sH', b'KDMV', 1, 7 if None in grains.values() else 3, capacity, grain, 1 if room else 0,
                           room, gtes, self.rgd, self.gd, overhead, 0, b'\n \r\n', 0)
        self.b = bytearray(overhead * SECTOR)
        self.b[:len(head)] = head
        self.b[SECTOR:SECTOR + len(text)] = text
        self.table = [[(d + directory + t * table) * SECTOR for t in range(tables)] for d in (self.rgd, self.gd)]
        for d, places in zip((self.rgd, self.gd), self.table):
            struct.pack_into('<%dI' % tables, self.b, d * SECTOR, *(at // SECTOR for at in places))
        for number, piece in grains.items():
            if piece is None:
                self.put_entry(number, 1)
                continue
            self.put_entry(number, len(self.b) // SECTOR)
            self.b += piece.ljust(grain * SECTOR, b'\0')

    def put_entry(self, number, value, copies=(0, 1)):
        for c in copies:
            struct.pack_into('<I', self.b, self.table[c][number // self.gtes] + 4 * (number % self.gtes), value)

    def put(self, name, value):
        at, width = FIELDS[name]
        self.b[at:at + width] = value.to_bytes(width, 'little')


def main():
    kind, extent, source = sys.argv[1:]
    with open(source, 'rb') as f:
        guest = f.read()
    make = {'cowd': cowd, 'sesparse': sesparse, 'sesparse-dirty': lambda g: sesparse(g, 1), 'odd': odd}[kind]
    with open(extent, 'wb') as f:
        f.write(make(guest))


if __name__ == '__main__':
    main()
