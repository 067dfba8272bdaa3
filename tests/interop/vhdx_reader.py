#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
An independent reader of VHDX, chains and logs included, written from [MS-VHDX].

    vhdx_reader.py digest FILE      sha256 of what the guest sees
    vhdx_reader.py raw FILE         the same to stdout
    vhdx_reader.py verify FILE      headers, regions, metadata, table, bitmaps and log are as a strict reader wants them; of this file alone
    vhdx_reader.py judge FILE       verify, then the digest and the log's GUID
    vhdx_reader.py log FILE         what the log would change: one line for each descriptor
    vhdx_reader.py guids FILE       the GUIDs of the last writing of the file and of its data, and of the log

A log that counts is replayed in memory. A parent is looked for by the paths on record, and must carry the data write GUID on record.
"""
import hashlib
import os
import struct
import sys
import uuid

MIB = 1 << 20
SECTOR = 4096
BAT = '2dc27766-f623-4200-9d64-115e9bfd4a08'
META = '8b7ca206-4790-4b9a-b8fe-575f050f886e'
PARAMETERS, SIZE = 'caa16737-fa36-4d43-b3b6-33f0aa44e76b', '2fa54224-cd1b-4876-b211-5dbed83bf4b8'
LOGICAL, PHYSICAL = '8141bf1d-a96f-4709-ba47-f233a8faab5f', 'cda348c7-445d-4471-9cc9-e9885251c556'
LOCATOR = 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c'
LOCATOR_TYPE = 'b04aefb7-d19e-4a81-b789-25b8e9445913'
PRESENT, PARTLY = 6, 7
NULL = str(uuid.UUID(int=0))


class Bad(Exception):
    """The file is no VHDX, or a damaged one."""


def _crc_table():
    out = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
        out.append(i)
    return out


CRC = _crc_table()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xffffffff


def sum_holds(data):
    return struct.unpack_from('<I', data, 4)[0] == crc32c(data[:4] + bytes(4) + data[8:])


def guid(data, at):
    return str(uuid.UUID(bytes_le=bytes(data[at:at + 16])))


class Vhdx:
    def __init__(self, path):
        self.path = path
        self.file = open(path, 'rb')
        self.bytes = os.path.getsize(path)
        if self._raw(0, 8) != b'vhdxfile':
            raise Bad('no signature')
        self.over = []
        self.entries = []
        self._headers()
        if self.log_guid != NULL:
            self._replay()
        self._regions()
        self._metadata()
        self._parent = None

    def _raw(self, off, size):
        self.file.seek(off)
        return self.file.read(size).ljust(size, b'\0')

    def read(self, off, size):
        out = bytearray(self._raw(off, size))
        for at, data in self.over:
            length = len(data) if isinstance(data, bytes) else data
            first, end = max(at, off), min(at + length, off + size)
            if first < end:
                out[first - off:end - off] = data[first - at:end - at] if isinstance(data, bytes) else bytes(end - first)
        return bytes(out)

    def _headers(self):
        self.good = []
        best = None
        for off in (65536, 131072):
            data = self._raw(off, SECTOR)
            ok = data[:4] == b'head' and sum_holds(data)
            self.good.append(ok)
            number = struct.unpack_from('<Q', data, 8)[0]
            if ok and (best is None or number > best[0]):
                best = (number, data)
        if best is None:
            raise Bad('no header holds')
        self.sequence, data = best
        self.file_write, self.data_write, self.log_guid = guid(data, 16), guid(data, 32), guid(data, 48)
        log_version, version, self.log_bytes, self.log_off = struct.unpack_from('<HHIQ', data, 64)
        if (log_version, version) != (0, 1):
            raise Bad('versions')
        if self.log_off % MIB or self.log_bytes % MIB or self.log_off < MIB:
            raise Bad('the place of the log')

    # ---- the log ----

    def _entry(self, at):
        ring = lambda size: (self._raw(self.log_off + at, min(size, self.log_bytes - at)) +
                             self._raw(self.log_off, max(0, size - (self.log_bytes - at))))
        head = self._raw(self.log_off + at, 64)
        if head[:4] != b'loge' or guid(head, 32) != self.log_guid:
            return None
        size, tail, sequence, nr = struct.unpack_from('<IIQI', head, 8)
        if size % SECTOR or not size or size > self.log_bytes or tail % SECTOR or tail >= self.log_bytes or not sequence:
            return None
        data = ring(size)
        sectors = 1 if nr <= 126 else 1 + -(-(nr - 126) // 128)
        if not sum_holds(data) or sectors * SECTOR > size:
            return None
        changes, body = [], sectors * SECTOR
        for i in range(nr):
            d = data[64 + 32 * i:96 + 32 * i]
            off, number = struct.unpack_from('<QQ', d, 16)
            if number != sequence or off % SECTOR:
                return None
            if d[:4] == b'zero':
                changes.append((off, struct.unpack_from('<Q', d, 8)[0]))
                continue
            sector = data[body:body + SECTOR]
            body += SECTOR
            high, low = struct.unpack_from('<I', sector, 4)[0], struct.unpack_from('<I', sector, 4092)[0]
            if d[:4] != b'desc' or sector[:4] != b'data' or high << 32 | low != sequence:
                return None
            changes.append((off, d[8:16] + sector[8:4092] + d[4:8]))
        flushed, last = struct.unpack_from('<QQ', head, 48)
        return {'at': at, 'bytes': size, 'tail': tail, 'sequence': sequence, 'changes': changes, 'flushed': flushed, 'last': last}

    def _replay(self):
        found, best = {}, None
        for at in range(0, self.log_bytes, SECTOR):
            if self._raw(self.log_off + at, 4) == b'loge':
                entry = self._entry(at)
                if entry:
                    found[at] = entry
        for head in found.values():
            sequence, entry = [], found.get(head['tail'])
            while entry and len(sequence) <= len(found):
                sequence.append(entry)
                if entry is head:
                    break
                following = found.get((entry['at'] + entry['bytes']) % self.log_bytes)
                entry = following if following and following['sequence'] == entry['sequence'] + 1 else None
            if sequence and sequence[-1] is head and (best is None or head['sequence'] > best[-1]['sequence']):
                best = sequence
        if best is None:
            return
        if best[-1]['flushed'] > self.bytes:
            raise Bad('the file is shorter than the log says')
        self.bytes = max(self.bytes, best[-1]['last'])
        self.entries = best
        for entry in best:
            self.over += entry['changes']

    # ---- regions, metadata ----

    def _regions(self):
        tables = [self._raw(off, 65536) for off in (196608, 262144)]
        good = [t[:4] == b'regi' and sum_holds(t) for t in tables]
        if not any(good):
            raise Bad('no region table holds')
        self.regions_same = all(good) and tables[0] == tables[1]
        table = tables[0] if good[0] else tables[1]
        self.regions = {}
        for i in range(struct.unpack_from('<I', table, 8)[0]):
            off, size, required = struct.unpack_from('<QII', table, 32 + 32 * i)
            name = guid(table, 16 + 32 * i)
            if name not in (BAT, META) and required & 1:
                raise Bad('a region that is required')
            if off % MIB or size % MIB or off < MIB or off + size > self.bytes:
                raise Bad('the place of a region')
            self.regions[name] = (off, size)
        if BAT not in self.regions or META not in self.regions:
            raise Bad('a region is missing')

    def _metadata(self):
        base, size = self.regions[META]
        table = self.read(base, 65536)
        if table[:8] != b'metadata':
            raise Bad('no metadata')
        self.items = {}
        for i in range(struct.unpack_from('<H', table, 10)[0]):
            off, length, flags = struct.unpack_from('<III', table, 48 + 32 * i)
            if off < 65536 or off + length > size:
                raise Bad('the place of an item')
            self.items[guid(table, 32 + 32 * i)] = (self.read(base + off, length), flags)
        value = lambda name, how: struct.unpack(how, self.items[name][0])
        self.block, flags = value(PARAMETERS, '<II')
        self.fixed, self.has_parent = bool(flags & 1), bool(flags & 2)
        self.size, self.sector, self.physical = value(SIZE, '<Q')[0], value(LOGICAL, '<I')[0], value(PHYSICAL, '<I')[0]
        if self.block & self.block - 1 or not MIB <= self.block <= 256 * MIB:
            raise Bad('block size')
        if self.sector not in (512, 4096) or self.size % self.sector or not self.size or self.size > 64 << 40:
            raise Bad('sizes')
        self.ratio = (1 << 23) * self.sector // self.block
        self.nr = -(-self.size // self.block)
        chunks = -(-self.nr // self.ratio)
        slots = chunks * (self.ratio + 1) if self.has_parent else self.nr + (self.nr - 1) // self.ratio
        off, size = self.regions[BAT]
        if slots * 8 > size:
            raise Bad('the table is too short')
        self.table = struct.unpack('<%dQ' % slots, self.read(off, slots * 8))

    def locator(self):
        data = self.items[LOCATOR][0]
        if guid(data, 0) != LOCATOR_TYPE:
            raise Bad('type of the parent locator')
        out = {}
        for i in range(struct.unpack_from('<H', data, 18)[0]):
            key, value, key_bytes, value_bytes = struct.unpack_from('<IIHH', data, 20 + 12 * i)
            if key < 20 or value < 20 or key + key_bytes > len(data) or value + value_bytes > len(data):
                raise Bad('an entry of the parent locator')
            out[data[key:key + key_bytes].decode('utf-16-le')] = data[value:value + value_bytes].decode('utf-16-le')
        return out

    @property
    def parent(self):
        if self.has_parent and self._parent is None:
            self._open_parent()
        return self._parent

    def _open_parent(self):
        keys = self.locator()
        wanted = {keys['parent_linkage'].strip('{}').lower(), keys.get('parent_linkage2', '').strip('{}').lower()}
        names = [keys[k].replace('\\', '/') for k in ('relative_path', 'volume_path', 'absolute_win32_path') if k in keys]
        folder = os.path.dirname(os.path.abspath(self.path))
        for name in names:
            for path in (os.path.join(folder, name), os.path.join(folder, os.path.basename(name))):
                if not os.path.exists(path):
                    continue
                parent = Vhdx(path)
                if parent.data_write not in wanted:
                    raise Bad('the parent has another data write GUID')
                if parent.sector != self.sector:
                    raise Bad('the parent has other sectors')
                self._parent = parent
                return
        raise Bad('no parent')

    # ---- content ----

    def slot(self, block):
        return block + block // self.ratio

    def bitmap(self, block):
        entry = self.table[block // self.ratio * (self.ratio + 1) + self.ratio]
        if entry & 7 != PRESENT:
            raise Bad('block %d has no bitmap' % block)
        size = self.block // self.sector // 8
        return self.read((entry & ~(MIB - 1)) + block % self.ratio * size, size)

    def below(self, off, size):
        if self.parent is None or off >= self.parent.size:
            return bytes(size)
        return self.parent.content(off, min(size, self.parent.size - off)).ljust(size, b'\0')

    def content_of(self, block, off, size):
        entry = self.table[self.slot(block)]
        state, place = entry & 7, entry & ~(MIB - 1)
        if state == 0:
            return self.below(block * self.block + off, size)
        if state in (1, 2, 3):
            return bytes(size)
        if state == PRESENT:
            return self.read(place + off, size)
        if state != PARTLY or not self.has_parent:
            raise Bad('state %d of block %d' % (state, block))
        bits = self.bitmap(block)
        out = bytearray(self.below(block * self.block + off, size))
        at = off
        while at < off + size:
            sector = at // self.sector
            end = sector + 1
            mine = bits[sector // 8] >> sector % 8 & 1
            while end * self.sector < off + size and bits[end // 8] >> end % 8 & 1 == mine:
                end += 1
            to = min(end * self.sector, off + size)
            if mine:
                out[at - off:to - off] = self.read(place + at, to - at)
            at = to
        return bytes(out)

    def content(self, off, size):
        out = b''
        while size > 0:
            n = min(size, self.block - off % self.block)
            out += self.content_of(off // self.block, off % self.block, n)
            off += n
            size -= n
        return out

    def pieces(self):
        for off in range(0, self.size, MIB):
            yield self.content(off, min(MIB, self.size - off))

    def digest(self):
        out = hashlib.sha256()
        for piece in self.pieces():
            out.update(piece)
        return out.hexdigest()

    # ---- strictness ----

    def verify(self):
        if not all(self.good):
            raise Bad('a copy of the header does not hold')
        if not self.regions_same:
            raise Bad('the region tables differ')
        for name in (PARAMETERS, SIZE, LOGICAL, PHYSICAL, LOCATOR):
            if name in self.items and not self.items[name][1] & 4:
                raise Bad('an item that is not marked as required')
        ours = self._raw(8, 12) == 'libimg'.encode('utf-16-le')    # QEMU's fixed images have blocks without a place
        taken = [(0, MIB), (self.log_off, self.log_bytes)] + list(self.regions.values())
        for at, entry in enumerate(self.table):
            state, place = entry & 7, entry & ~(MIB - 1)
            if entry & 0xffff8:
                raise Bad('reserved bits of entry %d' % at)
            is_bitmap = at % (self.ratio + 1) == self.ratio
            if is_bitmap and state not in (0, PRESENT) or is_bitmap and entry and not self.has_parent:
                raise Bad('state %d of a bitmap' % state)
            if not is_bitmap and at - at // (self.ratio + 1) >= self.nr and entry:
                raise Bad('entry %d lies behind the disk' % at)
            if state in (PRESENT, PARTLY):
                taken.append((place, MIB if is_bitmap else self.block))
            if state == PARTLY:
                self.bitmap(at - at // (self.ratio + 1))
            if ours and self.fixed and not is_bitmap and state != PRESENT:
                raise Bad('block %d of a fixed image has no place' % at)
        taken.sort()
        for (a, n), (b, _) in zip(taken, taken[1:]):
            if a + n > b:
                raise Bad('0x%x and 0x%x overlap' % (a, b))
        if taken[-1][0] + taken[-1][1] > self.bytes:
            raise Bad('an entry leads out of the file')
        for entry in self.entries:
            if entry['flushed'] % MIB or entry['last'] % MIB:
                raise Bad('file sizes in the log are no MiB')
            self._verify_changes(entry)
        if self.has_parent and ('relative_path' not in self.locator() and 'absolute_win32_path' not in self.locator()):
            raise Bad('the parent locator has no path')

    def _verify_changes(self, entry):
        """2.3: the log is for metadata alone."""
        own = list(self.regions.values())
        own += [(e & ~(MIB - 1), MIB) for i, e in enumerate(self.table) if i % (self.ratio + 1) == self.ratio and e & 7 == PRESENT]
        for off, data in entry['changes']:
            size = len(data) if isinstance(data, bytes) else data
            if not any(a <= off and off + size <= a + n for a, n in own):
                raise Bad('the log changes 0x%x, which is no metadata' % off)


def main():
    verb, path = sys.argv[1:3]
    try:
        image = Vhdx(path)
        if verb == 'verify':
            image.verify()
        elif verb == 'judge':
            image.verify()
            print(image.digest(), image.log_guid)
        elif verb == 'digest':
            print(image.digest())
        elif verb == 'raw':
            for piece in image.pieces():
                sys.stdout.buffer.write(piece)
        elif verb == 'guids':
            print(image.file_write, image.data_write, image.log_guid)
        elif verb == 'log':
            for entry in image.entries:
                for off, data in entry['changes']:
                    print(entry['sequence'], hex(off), 'data' if isinstance(data, bytes) else 'zeros %d' % data)
        else:
            sys.exit(__doc__)
    except (Bad, KeyError, struct.error) as why:
        sys.exit('%s: %s' % (path, why))


if __name__ == '__main__':
    main()
