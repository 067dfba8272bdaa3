# SPDX-License-Identifier: MIT
"""Makes VHD images byte by byte, differencing ones among them, which no tool at hand writes.

Written from the specification and from what Windows, Virtual PC and QEMU write. An object is one file; fixed(), dynamic() and
differencing() fill it, bytes() gives it, and the object says where its structures stand, so that a test can damage them. What a guest sees
is the caller's business: every sector that a block holds is given by the caller as (sector of the disk -> 512 bytes)."""

import random
import struct
import uuid

SECTOR = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
FREE = 0xFFFFFFFF

# Footer and header fields: offset, bytes.
FOOTER = {"features": (8, 4), "version": (12, 4), "data_off": (16, 8), "timestamp": (24, 4), "creator": (28, 4),
          "creator_version": (32, 4), "original": (40, 8), "current": (48, 8), "cylinders": (56, 2), "heads": (58, 1),
          "sectors": (59, 1), "type": (60, 4), "checksum": (64, 4), "saved": (84, 1)}
HEADER = {"data_off": (8, 8), "table_off": (16, 8), "version": (24, 4), "entries": (28, 4), "block": (32, 4),
          "checksum": (36, 4), "parent_timestamp": (56, 4)}


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xFFFFFFFF


def geometry(size):
    """The one of the specification's appendix: sectors per track, heads and cylinders for a size."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // (16 * 255), 16, 255
    spt = 17
    cth = total // spt
    heads = max((cth + 1023) // 1024, 4)
    if cth >= heads * 1024 or heads > 16:
        spt, heads = 31, 16
        cth = total // spt
    if cth >= heads * 1024:
        spt, heads = 63, 16
        cth = total // spt
    return cth // heads, heads, spt


def footer(kind, size, ident, data_off=(1 << 64) - 1, creator=b'win ', chs=None, current=None, original=None, saved=0):
    c, h, s = chs or geometry(size)
    data = bytearray(SECTOR)
    struct.pack_into('>8sIIQI4sI4sQQHBBII16sB', data, 0, b'conectix', 2, 0x10000, data_off, 0x2719000, creator, 0xA0000,
                     b'Wi2k', original or size, size if current is None else current, c, h, s, kind, 0, ident, saved)
    struct.pack_into('>I', data, 64, checksum(data, 64))
    return data


class Image:
    def __init__(self, size, block=2 << 20, ident=None, creator=b'win ', **footer_args):
        self.size, self.block, self.creator, self.footer_args = size, block, creator, footer_args
        self.ident = ident or uuid.uuid4().bytes
        self.b = bytearray()
        self.bitmap_bytes = -(-(block // SECTOR // 8) // SECTOR) * SECTOR
        self.entries = -(-size // block)
        self.header_off = self.table_off = self.tail_off = None
        self.place = {}     # block -> offset of its bitmap

    def __bytes__(self):
        return bytes(self.b)

    def save(self, path):
        with open(path, 'wb') as file:
            file.write(self.b)
        return path

    def fixed(self, sectors):
        self.b = bytearray(self.size)
        for n, data in sectors.items():
            self.b[n * SECTOR:(n + 1) * SECTOR] = data
        self.tail_off = self.size
        self.b += footer(FIXED, self.size, self.ident, creator=self.creator, **self.footer_args)
        return self

    def dynamic(self, sectors, **layout):
        return self._blocks(DYNAMIC, sectors, None, **layout)

    def differencing(self, sectors, parent_ident, locators, name='', **layout):
        """locators: (code, text as bytes) in their order; name: the parent's name in the header."""
        return self._blocks(DIFFERENCING, sectors, (parent_ident, locators, name), **layout)

    def _blocks(self, kind, sectors, parent, full=None, order=None, header_off=512, extra_entries=0, seed=1, junk=True,
                old_footer=False, tail=True, space=None, touched=()):
        """full: the bits of a block are all set (default: of a disk without parent). order: a random.Random that decides in which order
        blocks stand. junk: sectors whose bits are clear hold something. touched: blocks that have a place without a sector."""
        full = kind == DYNAMIC if full is None else full
        rng = random.Random(seed)
        foot = footer(kind, self.size, self.ident, header_off, self.creator, **self.footer_args)
        self.header_off, self.table_off = header_off, -(-max(header_off + 1024, 1536) // SECTOR) * SECTOR
        entries = self.entries + extra_entries
        table_bytes = -(-entries * 4 // SECTOR) * SECTOR
        out = bytearray(self.table_off + table_bytes)
        out[:SECTOR] = foot
        table = [FREE] * (table_bytes // 4)
        header = bytearray(1024)
        struct.pack_into('>8sQQIIII', header, 0, b'cxsparse', (1 << 64) - 1, self.table_off, 0x10000, entries, self.block, 0)
        if parent:
            ident, locators, name = parent
            header[40:56] = ident
            encoded = name.encode('utf-16-be')[:510]
            header[64:64 + len(encoded)] = encoded
            for i, (code, text) in enumerate(locators):
                struct.pack_into('>4sIIIQ', header, 576 + 24 * i, code, 4096 if space is None else space, len(text), 0, len(out))
                out += text + bytes(-len(text) % SECTOR)
        blocks = sorted({n * SECTOR // self.block for n in sectors} | set(touched))
        if order:
            order.shuffle(blocks)
        for block in blocks:
            self._one_block(out, table, sectors, block, full, rng if junk and not full else None)
        struct.pack_into('>%dI' % len(table), out, self.table_off, *table)
        struct.pack_into('>I', header, 36, checksum(header, 36))
        out[header_off:header_off + 1024] = header
        self.tail_off = len(out)
        if tail:
            out += foot[:511] if old_footer else foot
        self.b = out
        return self

    def _one_block(self, out, table, sectors, block, full, junk):
        per_block = self.block // SECTOR
        bitmap = bytearray(b'\xff' * (per_block // 8) + bytes(self.bitmap_bytes - per_block // 8)) if full else \
            bytearray(self.bitmap_bytes)
        data = bytearray(junk.randbytes(self.block) if junk else self.block)
        for i in range(per_block):
            content = sectors.get(block * per_block + i)
            if content is not None:
                data[i * SECTOR:(i + 1) * SECTOR] = content
                bitmap[i // 8] |= 0x80 >> i % 8
        self.place[block] = len(out)
        table[block] = len(out) // SECTOR
        out += bitmap + data

    # ---- damage ----

    def put(self, name, value, tail=True, head=True, fix=True):
        """A footer's field, in the copies that are asked for."""
        at, width = FOOTER[name]
        raw = value if isinstance(value, bytes) else value.to_bytes(width, 'big')
        for base in ([0] if head and self.header_off else []) + ([self.tail_off] if tail else []):
            self.b[base + at:base + at + width] = raw
            if fix:
                struct.pack_into('>I', self.b, base + 64, checksum(self.b[base:base + SECTOR], 64))
        return self

    def put_header(self, name, value, fix=True):
        at, width = HEADER[name]
        base = self.header_off
        self.b[base + at:base + at + width] = value.to_bytes(width, 'big')
        if fix:
            self.seal_header()
        return self

    def seal_header(self):
        base = self.header_off
        struct.pack_into('>I', self.b, base + 36, checksum(self.b[base:base + 1024], 36))

    def put_entry(self, block, sector):
        struct.pack_into('>I', self.b, self.table_off + 4 * block, sector)
        return self
