# SPDX-License-Identifier: MIT
"""
Images of the formats that are only read and keep their disk in pieces: dmg, cloop, bochs, asif. Written from
format-spec/*.md, not with the library; the compressors that no package has (ADC, LZFSE) are here, as simple as the
format allows. Each function returns the bytes of a file.

    pieces_image.py FOLDER      writes one of each kind, and their content as NAME.raw
"""
import base64
import bz2
import lzma
import os
import struct
import sys
import zlib

SECTOR = 512


# ---- compressors ----

def adc(data):
    """Literals, and what a run of one byte can be said with."""
    out, at = bytearray(), 0
    while at < len(data):
        run = 1
        while at + run < len(data) and data[at + run] == data[at] and run < 68:
            run += 1
        if run > 20:
            out += bytes([0x80, data[at]])
            left, at = run - 1, at + run
            if left >= 60:                           # three bytes, far form
                out += bytes([0x40 | 60 - 4, 0, 0])
                left -= 60
            while left >= 3:                         # two bytes, near form
                n = min(left, 18)
                out += bytes([(n - 3) << 2, 0])
                left -= n
            if left:
                out += bytes([0x80 | left - 1]) + data[at - left:at]
        else:
            n = min(128, len(data) - at)
            out += bytes([0x80 | n - 1]) + data[at:at + n]
            at += n
    return bytes(out)


class Fse:
    """The states of one kind of symbol, and how to go backward through them."""

    def __init__(self, freq, nr_states):
        self.freq = list(freq)
        self.by_symbol = {}
        state = 0
        for symbol, f in enumerate(self.freq):
            if not f:
                continue
            shift = nr_states.bit_length() - f.bit_length()
            first = ((2 * nr_states) >> shift) - f
            for k in range(f):
                if k < first:
                    bits, delta = shift, ((f + k) << shift) - nr_states
                else:
                    bits, delta = shift - 1, (k - first) << (shift - 1)
                self.by_symbol.setdefault(symbol, []).append((state, bits, delta))
                state += 1

    def back(self, symbol, following):
        """The state that means symbol and leads to the following one: (state, bits, value of the bits)."""
        for state, bits, delta in self.by_symbol[symbol]:
            if delta <= following < delta + (1 << bits):
                return state, bits, following - delta
        raise AssertionError('no way back')


class Bits:
    """Read from the end, so that what is put last is read first."""

    def __init__(self):
        self.value = self.nr = 0

    def put(self, value, nr):
        self.value |= value << self.nr
        self.nr += nr

    def bytes(self):
        """The bits, and by how much the last byte is not full, as a number from 0 to -7."""
        n = (self.nr + 7) // 8
        return self.value.to_bytes(n, 'little'), self.nr - 8 * n


L_BITS = [0] * 16 + [2, 3, 5, 8]
L_BASE = list(range(16)) + [16, 20, 28, 60]
M_BITS = [0] * 16 + [3, 5, 8, 11]
M_BASE = list(range(16)) + [16, 24, 56, 312]
D_BITS = [i // 4 for i in range(64)]
D_BASE = [sum(1 << b for b in D_BITS[:i]) for i in range(64)]


def symbol_of(value, base, bits):
    for i in range(len(base) - 1, -1, -1):
        if base[i] <= value < base[i] + (1 << bits[i]):
            return i, value - base[i]
    raise AssertionError('%d is too large' % value)


def put_freq(f):
    """(value, number of bits) of a frequency."""
    table = {0: (0b0, 2), 1: (0b10, 2), 2: (0b001, 3), 3: (0b101, 3), 4: (0b00011, 5), 5: (0b01011, 5), 6: (0b10011, 5),
             7: (0b11011, 5)}
    if f in table:
        return table[f]
    if f < 24:
        return 0b0111 | (f - 8) << 4, 8
    return 0b1111 | (f - 24) << 4, 14


def share(counts, nr_states):
    """Frequencies that add up to the states, none of what occurs 0."""
    total = sum(counts)
    freq = [0 if not c else max(1, c * nr_states // total) for c in counts]
    while sum(freq) > nr_states:
        freq[freq.index(max(freq))] -= 1
    freq[freq.index(max(freq))] += nr_states - sum(freq)
    return freq


def find_matches(data, limit=9000):
    """Triples (literals, match, distance), greedy, by a table of what was seen."""
    seen, out, at, start = {}, [], 0, 0
    while at + 4 <= len(data) and len(out) < limit:
        key = bytes(data[at:at + 4])
        last = seen.get(key)
        seen[key] = at
        if last is None:
            at += 1
            continue
        n = 4
        while n < 2000 and at + n < len(data) and data[last + n] == data[at + n]:
            n += 1
        out.append((at - start, n, at - last))
        at += n
        start = at
    out.append((len(data) - start, 0, 1))
    flat = []
    for literals, match, distance in out:        # L is 315 at most
        while literals > 300:
            flat.append((300, 0, 1))
            literals -= 300
        flat.append((literals, match, distance))
    return flat


def lzfse_block(data):
    """One block "bvx2" of at most 30,000 bytes."""
    triples = find_matches(data)
    literals, at = bytearray(), 0
    for n, match, _ in triples:
        literals += data[at:at + n]
        at += n + match
    literals += bytes(-len(literals) % 4)
    coded, last = [], 0
    for n, match, distance in triples:
        coded.append((symbol_of(n, L_BASE, L_BITS), symbol_of(match, M_BASE, M_BITS),
                      symbol_of(0 if distance == last else distance, D_BASE, D_BITS)))
        last = distance
    kinds = []
    for i, (nr, states) in enumerate(((20, 64), (20, 64), (64, 256))):
        kinds.append(Fse(share([sum(c[i][0] == s for c in coded) for s in range(nr)], states), states))
    letter = Fse(share([literals.count(s) for s in range(256)] if literals else [1] + [0] * 255, 1024), 1024)

    bits, state = Bits(), [0, 0, 0, 0]
    for i in range(len(literals) - 1, -1, -1):
        state[i % 4], n, value = letter.back(literals[i], state[i % 4])
        bits.put(value, n)
    literal_data, literal_bits = bits.bytes()
    literal_state = state

    bits, state = Bits(), [0, 0, 0]
    for triple in reversed(coded):
        for i in (2, 1, 0):
            symbol, extra = triple[i]
            state[i], n, value = kinds[i].back(symbol, state[i])
            width = (L_BITS, M_BITS, D_BITS)[i][symbol]
            bits.put(extra, width)
            bits.put(value, n)
    match_data, match_bits = bits.bytes()

    freqs = Bits()
    for f in kinds[0].freq + kinds[1].freq + kinds[2].freq + letter.freq:
        freqs.put(*put_freq(f))
    table, _ = freqs.bytes()
    v0 = len(literals) | len(literal_data) << 20 | len(coded) << 40 | (literal_bits + 7) << 60
    v1 = sum(s << 10 * i for i, s in enumerate(literal_state)) | len(match_data) << 40 | (match_bits + 7) << 60
    v2 = 32 + len(table) | state[0] << 32 | state[1] << 42 | state[2] << 52
    return b'bvx2' + struct.pack('<IQQQ', len(data), v0, v1, v2) + table + literal_data + match_data


def lzvn_block(data):
    """Every kind of operation where it fits; up to three literals go with a match."""
    out, at, last = bytearray(), 0, 0
    for literals, match, distance in find_matches(data):
        n = at
        while literals > (3 if match >= 3 else 0):
            part = min(literals, 271 if literals > 15 else 15)
            out += (bytes([0xe0, part - 16]) if part > 15 else bytes([0xe0 | part])) + data[n:n + part]
            n += part
            literals -= part
        at = n + literals + match
        while match > 0:
            op, take = None, bytes(data[n:n + literals])
            most = (10, 8, 6, 4)[literals]    # the codes above are other operations
            if distance == last and literals:
                part = min(match, most)
                op = bytes([literals << 6 | (part - 3) << 3 | 6])
            if op is None and not literals and (match < 3 or distance == last):
                part = min(match, 271 if match > 15 else 15)
                op = bytes([0xf0, part - 16]) if part > 15 else bytes([0xf0 | part])
            if op is None:
                part = min(match, most)
                if distance < 1536:
                    op = bytes([literals << 6 | (part - 3) << 3 | distance >> 8, distance & 255])
                elif distance < 1 << 14:
                    part = min(match, 34)
                    op = (bytes([0xa0 | literals << 3 | (part - 3) >> 2]) +
                          struct.pack('<H', (distance << 2 | (part - 3) & 3) & 0xffff))
                else:
                    op = bytes([literals << 6 | (part - 3) << 3 | 7]) + struct.pack('<H', distance)
            out += op + take
            n, literals, last, match = n + literals, 0, distance, match - part
    out += b'\x0e\x16\x06' + bytes(7)
    return b'bvxn' + struct.pack('<II', len(data), len(out)) + bytes(out)


def lzfse(data, plain=b''):
    """Blocks of every kind; plain: that so much is stored as it is."""
    out, at = bytearray(), 0
    if plain:
        out += b'bvx-' + struct.pack('<I', len(plain)) + plain
        at = len(plain)
    for i in range(at, len(data), 30000):
        part = data[i:i + 30000]
        out += lzvn_block(part) if (i // 30000) % 3 == 1 else lzfse_block(part)
    return bytes(out + b'bvx$')


# ---- dmg ----

ZERO, PLAIN, IGNORE, ADC, ZLIB, BZIP2, LZFSE, XZ = 0, 1, 2, 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008
COMMENT, END = 0x7ffffffe, 0xffffffff
PACK = {ADC: adc, ZLIB: zlib.compress, BZIP2: bz2.compress, XZ: lzma.compress, LZFSE: lzfse, PLAIN: bytes}


class Dmg:
    """tables: a list of (first sector, [(type, content or number of bytes), ...])."""

    def __init__(self, tables, resource_fork=False, data_off=0, nr_sectors=None):
        self.runs = []      # (table, type, first sector, sectors, offset, bytes); changed before build()
        self.data = bytearray(data_off)
        self.data_off, self.fork = data_off, resource_fork
        self.first, self.sums, self.end = [], [], 0
        for t, (first, runs) in enumerate(tables):
            at, crc = 0, 0
            for kind, content in runs:
                if kind in (ZERO, IGNORE):
                    n, packed = content, b''
                    crc = zlib.crc32(bytes(n), crc) if kind == ZERO else crc
                else:
                    n, packed = len(content), PACK[kind](content)
                    crc = zlib.crc32(content, crc)
                self.runs.append([t, kind, at, n // SECTOR, len(self.data) - data_off if packed else 0, len(packed)])
                self.data += packed
                at += n // SECTOR
            self.first.append((first, at))
            self.sums.append(crc)
            self.end = max(self.end, first + at)
        self.nr_sectors = self.end if nr_sectors is None else nr_sectors
        self.segments = 1

    def table(self, t):
        first, nr = self.first[t]
        runs = [r for r in self.runs if r[0] == t]
        out = b'mish' + struct.pack('>IQQQII', 1, first, nr, 0, 2056, t) + bytes(24)
        out += struct.pack('>III', 2, 32, self.sums[t]) + bytes(124) + struct.pack('>I', len(runs) + 1)
        for _, kind, at, sectors, off, size in runs:
            out += struct.pack('>IIQQQQ', kind, 0, at, sectors, off, size)
        return out + struct.pack('>IIQQQQ', END, 0, nr, 0, 0, 0)

    def plist(self):
        items = ''.join('<dict><key>Attributes</key><string>0x0050</string><key>CFName</key><string>p &amp; q</string>'
                        '<key>Data</key><data>\n%s</data><key>ID</key><string>%d</string></dict>' %
                        (base64.encodebytes(self.table(t)).decode(), t) for t in range(len(self.first)))
        return ('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" '
                '"http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n<!-- > --><plist version="1.0"><dict>'
                '<key>resource-fork</key><dict><key>blkx</key><array>%s</array><key>plst</key><array><dict>'
                '<key>Data</key><data>AAAA</data></dict></array></dict></dict></plist>\n' % items).encode()

    def resources(self):
        data = b''.join(struct.pack('>I', len(self.table(t))) + self.table(t) for t in range(len(self.first)))
        data += struct.pack('>I', 3) + b'abc'
        return struct.pack('>IIII', 256, 256 + len(data), len(data), 0) + bytes(240) + data

    def build(self, list_bytes=None):
        body = bytes(self.data)
        extra = list_bytes if list_bytes is not None else self.resources() if self.fork else self.plist()
        place = (len(body), len(extra))
        master = zlib.crc32(b''.join(struct.pack('>I', s) for s in self.sums))
        k = b'koly' + struct.pack('>IIIQQQQQII', 4, 512, 1, 0, self.data_off, len(body) - self.data_off,
                                  *(place if self.fork else (0, 0)), 1, self.segments)
        k += bytes(16) + struct.pack('>III', 2, 32, zlib.crc32(body[self.data_off:])) + bytes(124)
        k += struct.pack('>QQ', *((0, 0) if self.fork else place)) + bytes(120)
        k += struct.pack('>III', 2, 32, master) + bytes(124) + struct.pack('>IQ', 1, self.nr_sectors) + bytes(12)
        assert len(k) == 512
        return body + extra + k

    def content(self, tables):
        out = bytearray(max(self.nr_sectors, self.end) * SECTOR)
        for first, runs in tables:
            at = first * SECTOR
            for kind, content in runs:
                if kind in (ZERO, IGNORE):
                    at += content
                else:
                    out[at:at + len(content)] = content
                    at += len(content)
        return bytes(out)


# ---- cloop, bochs, asif ----

def cloop(content, block=65536):
    script = b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n'
    parts = [zlib.compress(content[i:i + block].ljust(block, b'\0')) for i in range(0, len(content), block)]
    out = script.ljust(128, b'\0') + struct.pack('>II', block, len(parts))
    at = len(out) + 8 * (len(parts) + 1)
    for part in parts:
        out += struct.pack('>Q', at)
        at += len(part)
    return out + struct.pack('>Q', at) + b''.join(parts)


def bochs(content, version=2, extent=4096, spare=3):
    """Extents in the order of the disk but the last one first; sectors of zeros are not held."""
    nr = -(-len(content) // extent)
    held = [i for i in range(nr) if any(content[i * extent:(i + 1) * extent])]
    order = held[-1:] + held[:-1]
    bitmap_bytes = max(1, extent // SECTOR // 8)
    head = b'Bochs Virtual HD Image'.ljust(32, b'\0') + b'Redolog'.ljust(16, b'\0') + b'Growing'.ljust(16, b'\0')
    head += struct.pack('<IIIII', version << 16, 512, nr + spare, bitmap_bytes, extent)
    head += struct.pack('<Q', len(content)) if version == 1 else struct.pack('<IQ', 0, len(content))
    out = bytearray(head.ljust(512, b'\0'))
    for i in range(nr + spare):
        out += struct.pack('<I', order.index(i) if i in held else 0xffffffff)
    for i in order:
        data = content[i * extent:(i + 1) * extent].ljust(extent, b'\0')
        bits = bytearray(-(-bitmap_bytes // SECTOR) * SECTOR)
        for s in range(extent // SECTOR):
            if any(data[s * SECTOR:(s + 1) * SECTOR]):
                bits[s // 8] |= 1 << s % 8
            else:
                data = data[:s * SECTOR] + b'\xee' * SECTOR + data[(s + 1) * SECTOR:]    # nobody may read it
        out += bits + data
    return bytes(out)


def asif(content, chunk=65536, max_bytes=None, flags=0, state=1):
    """Small chunks: of 64 KiB a table has 3 groups of 2048 and covers 384 MiB."""
    group = chunk * 4 // (chunk // SECTOR)
    groups = chunk // 8 // (group + 1)
    covers = group * groups * chunk
    max_bytes = max_bytes or 3 * covers
    nr_tables = -(-max_bytes // covers)
    directory = -(-(8 * (nr_tables + 1)) // SECTOR) * SECTOR
    parts = [content[i:i + chunk].ljust(chunk, b'\0') for i in range(0, len(content), chunk)]
    held = [i for i, p in enumerate(parts) if any(p)]
    first = -(-(512 + 2 * directory) // chunk)
    tables, data, at = {}, bytearray(), first
    for i in held:
        tables.setdefault(i // (group * groups), {})
    where = {}
    for t in tables:
        where[t] = at
        at += 1
    for i in held:
        within = i % (group * groups)
        tables[i // (group * groups)][within // group * (group + 1) + within % group] = state << 62 | at
        data += parts[i]
        at += 1
    head = b'shdw' + struct.pack('>IIIQQ', 1, 512, flags, 512, 512 + directory) + bytes(range(16))
    head += struct.pack('>QQIHHQ', len(content) // SECTOR, max_bytes // SECTOR, chunk, SECTOR, 0, 0xffffffff)
    new = struct.pack('>Q', 2) + b''.join(struct.pack('>Q', where.get(t, 0)) for t in range(nr_tables))
    old = struct.pack('>Q', 1)
    out = bytearray(head.ljust(512, b'\0') + old.ljust(directory, b'\0') + new.ljust(directory, b'\0'))
    out += bytes(first * chunk - len(out))
    for entries in tables.values():
        table = bytearray(chunk)
        for i, entry in entries.items():
            struct.pack_into('>Q', table, 8 * i, entry)
        out += table
    return bytes(out + data)


# ---- one of each ----

def sample_content(size, seed=7):
    """Text that packs well, zeros, and noise."""
    words = [b'disk ', b'image ', b'block ', b'sector ', b'of ', b'a ', b'host\n']
    out = bytearray()
    while len(out) < size:
        seed = (seed * 1103515245 + 12345) & 0x7fffffff
        kind = seed >> 16 & 15
        if kind == 0:
            out += bytes((seed >> 8 & 31) * SECTOR)
        elif kind == 1:
            for _ in range(400):
                seed = (seed * 1103515245 + 12345) & 0x7fffffff
                out += bytes([seed >> 16 & 255])
        else:
            for _ in range(40):
                seed = (seed * 1103515245 + 12345) & 0x7fffffff
                out += words[(seed >> 16) % len(words)]
    return bytes(out[:size])


def dmg_tables(text):
    """All kinds of pieces in two partitions with a gap between them."""
    quarter = len(text) // 4 // SECTOR * SECTOR
    parts = [text[i * quarter:(i + 1) * quarter] for i in range(4)]
    return [(0, [(ZLIB, parts[0]), (ZERO, 5 * SECTOR), (ADC, parts[1]), (IGNORE, 3 * SECTOR), (PLAIN, parts[2])]),
            (3000, [(BZIP2, parts[3]), (LZFSE, parts[0]), (XZ, parts[1]), (PLAIN, parts[2][:SECTOR])])]


def samples():
    """(name, file, content)"""
    text = sample_content(1 << 19)
    tables = dmg_tables(text)
    for name, args in (('list', {}), ('fork', {'resource_fork': True}), ('moved', {'data_off': 4096}),
                       ('longer', {'nr_sectors': 9000})):
        image = Dmg(tables, **args)
        yield name + '.dmg', image.build(), image.content(tables)
    yield 'p.cloop', cloop(text, 32768), text
    yield 'one.bochs', bochs(text, version=1), text
    yield 'two.bochs', bochs(text[:-SECTOR], version=2, extent=65536), text[:-SECTOR]
    far = text + bytes(500 << 20) + text[:SECTOR * 3]
    yield 'far.asif', asif(far), far


def main():
    for name, data, content in samples():
        with open(os.path.join(sys.argv[1], name), 'wb') as file:
            file.write(data)
        with open(os.path.join(sys.argv[1], name + '.raw'), 'wb') as file:
            file.write(content)


if __name__ == '__main__':
    main()
