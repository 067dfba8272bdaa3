#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
An independent reader of streamOptimized VMDK, written from format-spec/vmdk-stream.md and the technical note. It shares
nothing with the library, and expands by Python's zlib.

    vmdk_stream_reader.py hash FILE      sha256 of the disk
    vmdk_stream_reader.py raw FILE OUT
    vmdk_stream_reader.py verify FILE    every rule, for both dialects
    vmdk_stream_reader.py strict FILE    and that each byte is where our writer has to put it: what ESXi takes

The content is found by the tables alone, the rules of the stream by the markers alone.
"""
import hashlib
import re
import struct
import sys
import zlib

SECTOR = 512
AT_END = (1 << 64) - 1
EOS, TABLE, DIRECTORY, FOOTER = range(4)


class Bad(Exception):
    pass


def need(what, truth, *more):
    if not truth:
        raise Bad(' '.join([what, *map(str, more)]))


class Header:
    def __init__(self, raw):
        (self.magic, self.version, self.flags, self.capacity, self.grain, self.text_off, self.text_sectors, self.entries, self.second,
         self.first, self.overhead, self.unclean, self.newlines, self.method) = struct.unpack_from('<4sIIQQQQIQQQB4sH', raw)
        self.raw = raw
        need('no header', self.magic == b'KDMV')
        need('version', 1 <= self.version <= 3, self.version)
        need('not compressed', self.flags & 0x10000 and self.method == 1, hex(self.flags))
        need('transferred as text', not self.flags & 1 or self.newlines == b'\n \r\n')
        need('grain', self.grain >= 1 and self.grain & (self.grain - 1) == 0, self.grain)
        need('entries', self.entries == 512, self.entries)


class Stream:
    def __init__(self, path):
        with open(path, 'rb') as file:
            self.d = file.read()
        self.head = self.h = Header(self.d[:SECTOR])
        tail = self.d[-3 * SECTOR:]
        self.footer = tail[8:16] == struct.pack('<II', 0, FOOTER) and tail[SECTOR:SECTOR + 4] == b'KDMV'
        need('VMDK-40 no footer', self.footer or self.head.first != AT_END)
        if self.footer:
            self.h = Header(tail[SECTOR:2 * SECTOR])
            need('VMDK-40 the footer leads nowhere', self.h.first != AT_END)
        self.markers = bool(self.h.flags & 0x20000)
        self.size = self.h.capacity * SECTOR
        self.grain = self.h.grain * SECTOR
        self.nr_grains = -(-self.h.capacity // self.h.grain)

    def words(self, sector, number):
        at = sector * SECTOR
        need('VMDK-47 a table outside the file', at + 4 * number <= len(self.d), hex(at))
        return struct.unpack_from('<%dI' % number, self.d, at)

    def tables(self, first):
        number = -(-self.nr_grains // 512)
        for place in self.words(first, number) if number else ():
            yield self.words(place, 512) if place else (0,) * 512

    def entries(self):
        """(grain, sector of the file) of all that have one."""
        grain = 0
        for table in self.tables(self.h.first):
            for place in table:
                if place and grain < self.nr_grains:
                    yield grain, place
                grain += 1

    def expand(self, grain, place):
        at, there = place * SECTOR, min(self.grain, self.size - grain * self.grain)
        if place == 1 and self.h.flags & 4:
            return bytes(there)
        if self.markers:
            need('VMDK-47 a grain outside the file', at + 12 <= len(self.d), hex(at))
            lba, length = struct.unpack_from('<QI', self.d, at)
            need('VMDK-42 the grain at', lba == grain * self.h.grain, hex(at), 'is for', lba)
            need('VMDK-41 the grain at', 0 < length and at + 12 + length <= len(self.d), hex(at))
            data = self.d[at + 12:at + 12 + length]
        else:
            data = self.d[at:at + 2 * self.grain]
        stream = zlib.decompressobj()
        try:
            out = stream.decompress(data, self.grain + 1)
        except zlib.error as error:
            raise Bad('VMDK-43 the grain at %#x: %s' % (at, error)) from error
        need('VMDK-43 the grain at', stream.eof and (not self.markers or not stream.unused_data), hex(at), 'does not end')
        need('VMDK-43 the grain at', len(out) in (self.grain, there), hex(at), 'has', len(out))
        return out[:there]

    def content(self):
        """Pieces of the disk, in order."""
        done = 0
        for grain, place in self.entries():
            yield from zeros(grain * self.grain - done)
            out = self.expand(grain, place)
            yield out
            done = grain * self.grain + len(out)
        yield from zeros(self.size - done)

    def verify(self):
        for _ in self.content():
            pass
        if self.footer:
            for name in 'version flags capacity grain text_off text_sectors entries second overhead unclean newlines method'.split():
                need('VMDK-40', getattr(self.head, name) == getattr(self.h, name), name)
            need('VMDK-40 two directories', self.head.first in (AT_END, self.h.first))
            need('VMDK-41 no end', not any(self.d[-SECTOR:]))
        if self.h.flags & 2 and self.h.second:
            need('VMDK-46', list(self.tables(self.h.first)) == list(self.tables(self.h.second)))
        if self.markers:
            self.walk()

    def walk(self):
        places, at, last = dict(self.entries()), self.head.overhead * SECTOR, -1
        while at + 16 <= len(self.d):
            value, length, kind = struct.unpack_from('<QII', self.d, at)
            if length:
                need('VMDK-45 the grain at', value % self.h.grain == 0 and places.get(value // self.h.grain) == at // SECTOR,
                     hex(at))
                need('VMDK-44 the grain at', value > last, hex(at))
                last = value
                at = -(-(at + 12 + length) // SECTOR) * SECTOR
            elif kind == EOS:
                need('VMDK-41 an end at', not self.footer or at + SECTOR == len(self.d), hex(at))
                return
            else:
                need('VMDK-41 a marker at', kind in (TABLE, DIRECTORY, FOOTER), hex(at))
                at += SECTOR + value * SECTOR
        need('VMDK-41 no end', not self.footer)

    def strict(self):
        """Builds the file again from what it holds: nothing may stand elsewhere, and nothing be left over."""
        h = self.head
        need('version', h.version == 3)
        need('flags', h.flags == 0x30001, hex(h.flags))
        need('directories', h.second == 0 and h.first == AT_END)
        need('head', h.text_off == 1 and h.overhead % 128 == 0 and h.unclean == 0 and h.text_sectors < h.overhead)
        need('padding of the header', not any(h.raw[79:]))
        self.strict_text()
        want = bytearray(self.d[:h.overhead * SECTOR])
        need('padding of the head', not any(want[(1 + h.text_sectors) * SECTOR:]))
        places = dict(self.entries())
        number = -(-self.nr_grains // 512)
        directory = [0] * number
        for table in range(number):
            entries = [0] * 512
            for grain in range(512 * table, 512 * table + 512):
                if grain not in places:
                    continue
                entries[grain % 512] = len(want) // SECTOR
                length = struct.unpack_from('<I', self.d, places[grain] * SECTOR + 8)[0]
                want += struct.pack('<QI', grain * h.grain, length)
                want += self.d[places[grain] * SECTOR + 12:places[grain] * SECTOR + 12 + length]
                want += bytes(-len(want) % SECTOR)
                need('a grain of zeros', any(self.expand(grain, places[grain])), grain)
            if any(entries):
                want += marker(4, TABLE)
                directory[table] = len(want) // SECTOR
                want += struct.pack('<512I', *entries)
        sectors = -(-4 * number // SECTOR)
        want += marker(sectors, DIRECTORY)
        first = len(want) // SECTOR
        want += struct.pack('<%dI' % number, *directory)
        want += bytes(-len(want) % SECTOR)
        want += marker(1, FOOTER) + h.raw[:56] + struct.pack('<Q', first) + h.raw[64:] + bytes(SECTOR)
        need('the file has other bytes than it should', want == self.d,
             next((hex(i) for i, (a, b) in enumerate(zip(want, self.d)) if a != b), 'length'))

    def strict_text(self):
        raw = self.d[SECTOR:(1 + self.h.text_sectors) * SECTOR]
        text = raw.rstrip(b'\0').decode('ascii')
        need('padding of the descriptor', b'\0' not in raw.rstrip(b'\0'))
        need('first line', text.startswith('# Disk DescriptorFile\n'))
        for pattern in (r'version=1', r'CID=[0-9a-f]{8}', r'parentCID=ffffffff', r'createType="streamOptimized"',
                        r'RW %d SPARSE "[^"/\\]+"' % self.h.capacity, r'ddb\.adapterType = "(ide|buslogic|lsilogic|legacyESX)"',
                        r'ddb\.geometry\.cylinders = "\d+"', r'ddb\.geometry\.heads = "\d+"', r'ddb\.geometry\.sectors = "\d+"',
                        r'ddb\.longContentID = "[0-9a-f]{32}"', r'ddb\.toolsVersion = "\d+"', r'ddb\.virtualHWVersion = "\d+"',
                        r'ddb\.uuid = "60 00 C2 9[0-9a-f]( [0-9a-f]{2}){3} [0-9a-f]{2}-[0-9a-f]{2}( [0-9a-f]{2}){7}"'):
            need('no line', len(re.findall('^%s$' % pattern, text, re.M)) == 1, pattern)
        cid = re.search('^CID=(.*)$', text, re.M).group(1)
        need('the content id', re.search('longContentID = ".*%s"' % cid, text))


def marker(sectors, kind):
    return struct.pack('<QII', sectors, 0, kind) + bytes(SECTOR - 16)


def zeros(count):
    while count > 0:
        yield bytes(min(count, 1 << 20))
        count -= min(count, 1 << 20)


def main():
    if len(sys.argv) < 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        stream = Stream(sys.argv[2])
        if sys.argv[1] == 'hash':
            digest = hashlib.sha256()
            for piece in stream.content():
                digest.update(piece)
            print(digest.hexdigest())
        elif sys.argv[1] == 'raw':
            with open(sys.argv[3], 'wb') as file:
                for piece in stream.content():
                    file.write(piece)
        else:
            stream.verify()
            if sys.argv[1] == 'strict':
                stream.strict()
    except Bad as bad:
        print('%s: %s' % (sys.argv[2], bad))
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
