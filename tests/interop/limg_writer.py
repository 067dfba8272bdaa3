#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
limg_writer: makes small valid limg images from format-spec/limg.md alone.

It is the other half of the proof that the document is complete: what this writes, the engine must open, and what
limg_reader.py reads, this must be able to write. It keeps everything in memory, allocates by counting upwards and knows
nothing of crash safety: an image is built by calls that follow the life of a disk (write, snapshot, revert, delete) and
written in one go by save(). Nothing here is shared with limg_reader.py.

    limg_writer.py FILE [--seed N] [--clean]    writes a random image and prints the content's sha256 of every state
    limg_writer.py FILE --example               writes the image that the document shows
"""
import argparse
import hashlib
import random
import struct
import zlib

import xxhash
import zstandard

AU = 4096
GROUP = 32768
LEAF = 256
FAN = 64
NONE, ZERO, RAW, ZSTD, DEFLATE = range(5)
ADDR_MASK = (1 << 38) - 1
CATALOG, DISK, VMSTATE, FREEMAP = 0, 1, 2, 15
EMPTY_POINTER = bytes(40)


def xxh64(data, seed=0):
    return xxhash.xxh3_64_intdigest(data, seed)


def xxh128(data):
    return xxhash.xxh3_128_digest(data)[::-1]


def word(state, addr, birth):
    return addr | birth << 38 | state << 60


def fixed_aus(g):
    """AUs of group g, relative to its start, that are never allocated."""
    fixed = {2, 3}
    if g % 256 == 0:
        fixed |= {4, 5}
    if g % 65536 == 0:
        fixed |= {6, 7}
    if g == 0:
        fixed |= {0, 1, 8, 9, 192, 193}
    return fixed


def levels_for(blocks):
    levels = 0
    while LEAF * FAN ** levels < blocks:
        levels += 1
    return levels


class State:
    """The content of the head or of a snapshot: for each volume a size and a sparse array of entries."""

    def __init__(self):
        self.size = {DISK: 0, VMSTATE: 0}
        self.entries = {DISK: {}, VMSTATE: {}}  # block -> (word, csum)
        self.nodes = {}    # (volume, level, index) -> (pointer, content), filled by save()
        self.roots = {}    # volume -> 56 bytes, filled by save()

    def copy(self):
        other = State()
        other.size = dict(self.size)
        other.entries = {v: dict(e) for v, e in self.entries.items()}
        return other


class Snapshot:
    def __init__(self, ident, name, state, parent, epoch, uuid, vmstate):
        self.id, self.name, self.state = ident, name, state
        self.parent, self.epoch, self.uuid, self.vmstate = parent, epoch, uuid, vmstate
        self.deleted = False
        self.cursor = (0, 0)    # volume, block
        self.created = 1_700_000_000_000_000_000 + ident


class Writer:
    def __init__(self, size, block_shift=12, unit_shift=17, uuid=None, rng=None):
        self.rng = rng or random.Random(1)
        self.block_shift, self.unit_shift = block_shift, max(unit_shift, block_shift)
        self.block = 1 << block_shift
        self.unit = 1 << self.unit_shift
        self.uuid = uuid or self.rng.randbytes(16)
        self.epoch, self.generation = 1, self.rng.choice((1, 2, 7))
        self.next_id, self.head_parent = 1, 0
        self.head = State()
        self.head.size[DISK] = size
        self.snaps = []          # records in slot order; None: free record
        self.memory = {}         # AU -> 4096 bytes
        self.next_au = 10
        self.backing = bytes(1376)
        self.ring = None         # (address, AUs, start offset, sequence, salt, previous checksum)
        self.slot_of_free = 0    # version of free-space pages
        self.codec = 3

    # -- space ------------------------------------------------------------------------------------------------------

    def alloc(self, count):
        while True:
            start = self.next_au
            clash = [a for a in range(start, start + count) if a % GROUP in fixed_aus(a // GROUP)]
            if not clash:
                self.next_au += count
                return start
            self.next_au = clash[-1] + 1

    def put(self, au, data):
        data = bytes(data) + bytes(-len(data) % AU)
        for i in range(0, len(data), AU):
            self.memory[au + i // AU] = data[i:i + AU]

    # -- content ----------------------------------------------------------------------------------------------------

    def write(self, off, data, volume=DISK, compress=None):
        """Writes whole blocks (the last may be cut by the end of the volume); whole units where compress is a state."""
        size = self.head.size[volume]
        if volume == VMSTATE:
            size = self.head.size[volume] = max(size, off + len(data))
        assert off % self.block == 0 and off + len(data) <= size
        data = bytes(data) + bytes(-len(data) % self.block)
        entries = self.head.entries[volume]
        step = self.unit if compress else self.block
        if compress:
            assert off % self.unit == 0
            data += bytes(-len(data) % self.unit)
        for at in range(0, len(data), step):
            piece = data[at:at + step]
            first = (off + at) // self.block
            if compress and self.write_unit(entries, first, piece, compress, size):
                continue
            for i in range(0, len(piece), self.block):
                block = first + i // self.block
                if block * self.block >= size:
                    break
                plain = piece[i:i + self.block]
                addr = self.alloc(self.block // AU)
                self.put(addr, plain)
                entries[block] = (word(RAW, addr, self.epoch), xxh64(plain))

    def write_unit(self, entries, first, plain, state, size):
        if state == ZSTD:
            payload = zstandard.ZstdCompressor(level=3).compress(plain)
        else:
            deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
            payload = deflate.compress(plain) + deflate.flush()
        aus = (16 + len(payload) + AU - 1) // AU
        if aus * AU >= self.unit:
            return False
        addr = self.alloc(aus)
        self.put(addr, struct.pack('<IIQ', len(payload), 0, xxh64(payload)) + payload)
        for i in range(self.unit // self.block):
            if (first + i) * self.block < size:
                csum = xxh64(plain[i * self.block:(i + 1) * self.block])
                entries[first + i] = (word(state, addr, self.epoch), csum & ~0xff | aus)
        return True

    def zero(self, off, length, volume=DISK):
        for block in range(off // self.block, (off + length + self.block - 1) // self.block):
            self.head.entries[volume][block] = (word(ZERO, 0, self.epoch), 0)

    def unmap(self, off, length, volume=DISK):
        for block in range(off // self.block, (off + length + self.block - 1) // self.block):
            self.head.entries[volume].pop(block, None)

    # -- snapshots --------------------------------------------------------------------------------------------------

    def find(self, name):
        return next(s for s in self.snaps if s and s.name == name and not s.deleted)

    def snapshot(self, name, vmstate=True):
        snap = Snapshot(self.next_id, name, self.head.copy(), self.head_parent, self.epoch, self.rng.randbytes(16),
                        vmstate)
        self.next_id += 1
        self.head_parent = snap.id
        self.epoch += 1
        if None in self.snaps:
            self.snaps[self.snaps.index(None)] = snap
        else:
            self.snaps.append(snap)

    def revert(self, name):
        snap = self.find(name)
        self.head = snap.state.copy()
        if not snap.vmstate:
            self.head.size[VMSTATE], self.head.entries[VMSTATE] = 0, {}
        self.head_parent = snap.id
        self.epoch += 1

    def children(self, ident):
        kids = [s for s in self.snaps if s and s.parent == ident]
        return kids, len(kids) + (self.head_parent == ident)

    def delete(self, name, cursor=None):
        """Marks deleted; reclaims at once where it has at most one child. cursor, (volume, block): only up to there."""
        snap = self.find(name)
        snap.deleted, snap.name = True, ''
        if cursor:
            snap.cursor = cursor
            return
        kids, count = self.children(snap.id)
        if count > 1:
            return
        if kids:
            kids[0].parent = snap.parent
        elif count:
            self.head_parent = snap.parent
        self.snaps[self.snaps.index(snap)] = None

    # -- backing ----------------------------------------------------------------------------------------------------

    def set_backing(self, name, fmt, pin, size, uuid=bytes(16), snap_uuid=bytes(16), digest=bytes(16), mtime=0,
                    snap_name=''):
        flags = 1 | (2 if snap_name else 0)
        self.backing = struct.pack('<II16s16s16s16sQqII256s1024s', flags, len(name.encode()), fmt.encode(), uuid,
                                   snap_uuid, digest, size, mtime, pin, len(snap_name.encode()), snap_name.encode(),
                                   name.encode())
        assert len(self.backing) == 1376

    # -- trees ------------------------------------------------------------------------------------------------------

    def identity(self, kind, level, index):
        return xxh64(self.uuid + struct.pack('<IIQ', kind, level, index))

    def store_node(self, page, kind, level, index, logical, count, epoch, state, parent):
        """Stores a node, or takes the parent's where it is the same; returns the pointer."""
        key = (kind, level, index)
        old = parent and parent.nodes.get(key)
        if old and old[1] == page:
            state.nodes[key] = old
            return old[0]
        addr = self.alloc(1)
        self.put(addr, page)
        pointer = struct.pack('<QQ16sQ', word(2, addr, epoch), xxh64(page, self.identity(kind, level, index)), logical,
                              count)
        state.nodes[key] = (pointer, page)
        return pointer

    def zero_pointer(self, kind, level, index, epoch, state, parent):
        key = (kind, level, index)
        old = parent and parent.nodes.get(key)
        if old and old[1] is None:
            state.nodes[key] = old
            return old[0]
        pointer = struct.pack('<QQ16sQ', word(1, 0, epoch), 0, b'\1' + bytes(15), 0)
        state.nodes[key] = (pointer, None)
        return pointer

    def build(self, kind, entries, blocks, epoch, state, parent):
        """Builds a tree bottom-up; returns (levels, root pointer)."""
        pointers = {}
        for index in sorted({b // LEAF for b in entries}):
            inside = min(LEAF, blocks - index * LEAF)
            leaf = [entries.get(index * LEAF + i, (0, 0)) for i in range(LEAF)]
            if kind != CATALOG and all(w >> 60 == ZERO for w, _ in leaf[:inside]):
                pointers[index] = self.zero_pointer(kind, 0, index, epoch, state, parent)
                continue
            page = b''.join(struct.pack('<QQ', *e) for e in leaf)
            marks = [(c & ~0xff | 2) if w >> 60 >= RAW else w >> 60 for w, c in leaf]
            count = sum(w >> 60 >= RAW for w, _ in leaf)
            pointers[index] = self.store_node(page, kind, 0, index, xxh128(struct.pack('<256Q', *marks)), count, epoch,
                                              state, parent)
        levels = levels_for(blocks)
        for level in range(1, levels + 1):
            upper = {}
            span = LEAF * FAN ** (level - 1)
            for index in sorted({i // FAN for i in pointers}):
                kids = [pointers.get(index * FAN + i, EMPTY_POINTER) for i in range(FAN)]
                inside = min(FAN, (blocks - index * FAN * span + span - 1) // span)
                if all(struct.unpack_from('<Q', k)[0] >> 60 == 1 for k in kids[:inside]):
                    upper[index] = self.zero_pointer(kind, level, index, epoch, state, parent)
                    continue
                page = struct.pack('<IBBHQ48x', 0x444e494c, level, kind, 0, index) + b''.join(kids)
                page += bytes(AU - len(page))
                logical = xxh128(b''.join(k[16:32] for k in kids))
                count = sum(struct.unpack_from('<Q', k, 32)[0] for k in kids)
                upper[index] = self.store_node(page, kind, level, index, logical, count, epoch, state, parent)
            pointers = upper
        return levels, pointers.get(0, EMPTY_POINTER)

    def build_state(self, state, epoch, parent):
        for volume in (DISK, VMSTATE):
            blocks = (state.size[volume] + self.block - 1) // self.block
            levels, root = self.build(volume, state.entries[volume], blocks, epoch, state, parent)
            state.roots[volume] = struct.pack('<QB7x', state.size[volume], levels) + root

    def logical_root(self, root):
        return xxh128(struct.pack('<QQ', *struct.unpack_from('<QB', root)) + root[32:48])

    def catalog(self):
        pages = {}
        for slot, snap in enumerate(self.snaps):
            if not snap:
                continue
            page = pages.setdefault(slot // 8, bytearray(AU))
            name = snap.name.encode()
            record = struct.pack('<QII16sQQqQII56s56s72x256s', snap.id, 2 if snap.deleted else 1, len(name), snap.uuid,
                                 snap.parent, snap.epoch, snap.created, snap.cursor[1], snap.cursor[0], snap.vmstate,
                                 snap.state.roots[DISK], snap.state.roots[VMSTATE], name)
            page[slot % 8 * 512:slot % 8 * 512 + 512] = record
        entries = {}
        for index, page in pages.items():
            addr = self.alloc(1)
            self.put(addr, page)
            entries[index] = (word(RAW, addr, self.epoch), xxh64(page))
        blocks = (len(self.snaps) + 7) // 8
        levels, root = self.build(CATALOG, entries, blocks, self.epoch, State(), None)
        return struct.pack('<QB7x', blocks * AU, levels) + root

    # -- what is in use ---------------------------------------------------------------------------------------------

    def reachable(self, state, cursor=(0, 0)):
        """AUs of a state's tree from cursor on."""
        used = set()
        for (volume, level, index), (pointer, page) in state.nodes.items():
            if page is None:
                continue
            span = LEAF * FAN ** level
            if cursor[0] > volume or cursor[0] == volume and cursor[1] >= (index + 1) * span:
                continue
            used.add(struct.unpack_from('<Q', pointer)[0] & ADDR_MASK)
        for volume, entries in state.entries.items():
            for block, (w, csum) in entries.items():
                if w >> 60 < RAW or cursor[0] > volume or cursor[0] == volume and cursor[1] > block:
                    continue
                count = self.block // AU if w >> 60 == RAW else csum & 0xff
                used.update(range(w & ADDR_MASK, (w & ADDR_MASK) + count))
        return used

    # -- journal ----------------------------------------------------------------------------------------------------

    def journal_record(self, seq, previous, stable, kind, deltas):
        """deltas: (volume, block, [(word, csum)...])"""
        body = b''
        for volume, block, items in deltas:
            body += struct.pack('<QQIBxxx', block, items[0][0], len(items), volume)
            if items[0][0] >> 60 >= RAW:
                body += b''.join(struct.pack('<Q', c) for _, c in items)
        length = (96 + len(body) + 16 + AU - 1) // AU * AU
        head = struct.pack('<II16sQQ16sQIIII', 0x4e524a4c, length, self.uuid, self.ring['salt'], seq, previous, stable,
                           kind, len(deltas), len(body), 0) + struct.pack('<QQ', self.head.size[DISK], 0)
        data = head + body + bytes(length - 16 - len(head) - len(body))
        return data + xxh128(data)

    def start_journal(self, aus=16, offset=0, seq=1):
        """From here on journal() calls are not part of the tree: call after all other changes."""
        self.ring = {'addr': self.alloc(aus), 'aus': aus, 'start': offset, 'seq': seq, 'salt': self.rng.getrandbits(64),
                     'previous': self.rng.randbytes(16)}
        for i in range(aus):
            self.put(self.ring['addr'] + i, self.rng.choice((bytes(AU), self.rng.randbytes(AU))))
        self.ring['base'] = self.head.copy()
        self.ring['position'], self.ring['next'], self.ring['last'] = offset, seq, self.ring['previous']

    def journal(self, stable=None):
        """Appends one record with everything that changed in the head since the last one."""
        ring, deltas = self.ring, []
        old, new = ring['base'].entries[DISK], self.head.entries[DISK]
        for block in sorted(old.keys() | new.keys()):
            if old.get(block) != new.get(block):
                deltas.append((DISK, block, [new.get(block, (0, 0))]))
        seq = ring['next']
        record = self.journal_record(seq, ring['last'], seq - 1 if stable is None else stable, 1, self.merge(deltas))
        if ring['position'] + len(record) + AU > ring['aus'] * AU:
            wrap = self.journal_record(seq, ring['last'], seq - 1, 2, [])
            self.append(wrap)
            ring['position'] = 0
            record = self.journal_record(seq + 1, ring['last'], seq, 1, self.merge(deltas))
        self.append(record)
        ring['base'] = self.head.copy()

    def merge(self, deltas):
        """Joins neighbours that one delta can say."""
        out = []
        for volume, block, (item,) in deltas:
            if out:
                pvolume, pblock, items = out[-1]
                follows = pvolume == volume and block == pblock + len(items) and block // LEAF == pblock // LEAF
                step = self.block // AU * len(items) if items[0][0] >> 60 == RAW else 0
                if follows and item[0] == items[0][0] + step:
                    items.append(item)
                    continue
            out.append((volume, block, [item]))
        return out

    def append(self, record):
        ring = self.ring
        self.put(ring['addr'] + ring['position'] // AU, record)
        ring['position'] += len(record)
        ring['last'] = record[-16:]
        ring['next'] += 1

    # -- the file ---------------------------------------------------------------------------------------------------

    def save(self, path):
        base = self.ring['base0'] if self.ring else self.head
        by_id = {s.id: s for s in self.snaps if s}
        used = set()
        for snap in sorted(by_id.values(), key=lambda s: s.id):
            parent = by_id.get(snap.parent)
            self.build_state(snap.state, snap.epoch, parent and parent.state)
            used |= self.reachable(snap.state, snap.cursor)
        parent = by_id.get(self.head_parent)
        self.build_state(base, self.epoch, parent and parent.state)
        used |= self.reachable(base)
        before = self.next_au
        catalog = self.catalog()
        used |= set(range(before, self.next_au)) - {a for a in range(before, self.next_au)
                                                   if a % GROUP in fixed_aus(a // GROUP)}
        if self.ring:
            used |= set(range(self.ring['addr'], self.ring['addr'] + self.ring['aus']))
        groups = (self.next_au + GROUP - 1) // GROUP
        root, nr_used = self.free_map(used, groups)
        journal = bytes(48)
        if self.ring:
            r = self.ring
            journal = struct.pack('<QQQQQ16s', r['salt'], r['addr'], r['aus'], r['start'], r['seq'], r['previous'])
        else:
            journal = bytes(56)
        file_aus = max(194, self.next_au)
        sb = b'LIMG\r\n\x1a\0' + struct.pack('<IIQQQ16sQBBBbI', 1, AU, 0, 0, 0, self.uuid, self.generation,
                                             self.block_shift, self.unit_shift, self.codec, 0, 0)
        sb += struct.pack('<QQQQQ', file_aus * AU, self.epoch, self.head_parent, self.next_id, len(self.snaps))
        sb += journal + base.roots[DISK] + base.roots[VMSTATE] + catalog + root
        sb += struct.pack('<QQQq', groups, nr_used, 0, 1_700_000_000_000_000_000)
        sb += bytes(512 - len(sb)) + self.backing
        sb += bytes(4080 - len(sb))
        with open(path, 'wb') as out:
            out.truncate(file_aus * AU)
            for au, page in self.memory.items():
                # What a reclaim freed is overwritten, so that a reader that follows it is found out.
                out.seek(au * AU)
                out.write(page if au in self.kept or au in used else b'\xdd' * AU)
            # The other slot holds the generation before, unless there was none. Nobody reads what it names.
            for generation in range(max(1, self.generation - 1), self.generation + 1):
                page = sb[:56] + struct.pack('<Q', generation) + sb[64:]
                for au in (generation % 2, 192 + generation % 2):
                    out.seek(au * AU)
                    out.write(page + xxh128(page))

    def free_map(self, used, groups):
        """Writes the bitmaps and tables; returns the root entry and the number of AUs in use."""
        self.kept = set()
        total = 0
        entries = {}
        for g in range(groups):
            mine = {a - g * GROUP for a in used if a // GROUP == g} | fixed_aus(g)
            total += len(mine)
            if g and mine == fixed_aus(g):
                continue
            page = bytearray(AU)
            for au in mine:
                page[au // 8] |= 1 << au % 8
            entries[g] = self.free_page(g * GROUP + 2, page, 0, g, GROUP - len(mine))
        for level, place in ((1, 4), (2, 6), (3, 8)):
            upper = {}
            for index in sorted({i // 256 for i in entries}):
                page = b''.join(entries.get(index * 256 + i, bytes(16)) for i in range(256))
                upper[index] = self.free_page(index * 256 ** level * GROUP + place, page, level, index, 0)
            entries = upper
        # Journal data lives in space that is free in the checkpoint.
        if self.ring:
            for mapped in self.head.entries.values():
                for w, csum in mapped.values():
                    if w >> 60 >= RAW:
                        count = self.block // AU if w >> 60 == RAW else csum & 0xff
                        self.kept |= set(range(w & ADDR_MASK, (w & ADDR_MASK) + count))
        return entries[0], total

    def free_page(self, au, page, level, index, free):
        version = self.slot_of_free
        self.put(au + version, page)
        self.kept.add(au + version)
        return struct.pack('<QIBBH', xxh64(bytes(page), self.identity(FREEMAP, level, index)), free, version, 1, 0)

    # -- truth ------------------------------------------------------------------------------------------------------

    def content(self, state, volume=DISK, below=b''):
        """Plain content of a state, from the memory image."""
        size = state.size[volume]
        out = bytearray(below[:size].ljust(size, b'\0')) if volume == DISK else bytearray(size)
        for block, (w, csum) in state.entries[volume].items():
            addr, kind = w & ADDR_MASK, w >> 60
            start, end = block * self.block, min((block + 1) * self.block, size)
            if kind == ZERO:
                out[start:end] = bytes(end - start)
                continue
            count = self.block // AU if kind == RAW else csum & 0xff
            data = b''.join(self.memory[addr + i] for i in range(count))
            if kind != RAW:
                payload = data[16:16 + struct.unpack_from('<I', data)[0]]
                plain = (zstandard.ZstdDecompressor().decompress(payload) if kind == ZSTD
                         else zlib.decompress(payload, -15))
                inside = block * self.block % self.unit
                data = plain[inside:inside + self.block]
            out[start:end] = data[:end - start]
        return bytes(out)


def compressible(rng, length):
    words = [rng.randbytes(7) for _ in range(20)]
    return b''.join(rng.choice(words) for _ in range(length // 7 + 1))[:length]


def random_image(seed, clean=False):
    """A random life of a small disk; returns the writer."""
    rng = random.Random(seed)
    shift = rng.choice((12, 12, 12, 14, 16))
    size = rng.choice((0, 512, 4096 * 3 + 512, 1 << 20, (1 << 20) + 512 * 77, 5 << 20, 20 << 20))
    w = Writer(size, shift, rng.choice((16, 17, 18, 20)), rng=rng)
    w.slot_of_free = rng.randrange(2)
    names = iter('s%d' % i for i in range(100))

    def change():
        blocks = (w.head.size[DISK] + w.block - 1) // w.block
        if not blocks:
            return
        at = rng.randrange(blocks)
        length = rng.randint(1, min(blocks - at, 40))
        size = w.head.size[DISK]
        kind = rng.random()
        if kind < .4:
            w.write(at * w.block, rng.randbytes(min(length * w.block, size - at * w.block)))
        elif kind < .7:
            off = at * w.block // w.unit * w.unit
            data = compressible(rng, min(w.unit * rng.randint(1, 2), size - off))
            w.write(off, data, compress=rng.choice((ZSTD, DEFLATE)))
        elif kind < .85:
            w.zero(at * w.block, length * w.block)
        else:
            w.unmap(at * w.block, length * w.block)

    for _ in range(rng.randrange(25)):
        what = rng.random()
        live = [s.name for s in w.snaps if s and not s.deleted]
        if what < .6:
            change()
        elif what < .75:
            w.snapshot(next(names), rng.random() < .5)
        elif what < .82 and live:
            w.revert(rng.choice(live))
        elif what < .9 and live:
            w.delete(rng.choice(live))
        elif what < .95:
            w.write(rng.randrange(4) * w.block, rng.randbytes(rng.randint(1, 3 * w.block)), VMSTATE)
        else:
            w.zero(0, w.head.size[DISK])
    # One reclaim that is half done.
    half = [s for s in w.snaps if s and not s.deleted and w.children(s.id)[1] == 1]
    if half and rng.random() < .5:
        snap = rng.choice(half)
        blocks = (snap.state.size[DISK] + w.block - 1) // w.block
        w.delete(snap.name, cursor=(rng.choice((1, 1, 2)), 0))
        if snap.cursor[0] == 1:
            snap.cursor = (1, rng.randrange(0, blocks + 1, LEAF))
    if not clean and rng.random() < .6:
        w.start_journal(rng.choice((2, 16, 64)), 0, rng.randrange(1, 1000))
        w.ring['base0'] = w.head.copy()
        if w.ring['aus'] > 2:
            for _ in range(rng.randrange(4)):
                change()
                w.journal()
    return w


def example():
    """The image that the document shows in hexadecimal."""
    w = Writer(16384, uuid=bytes(range(0x10, 0x20)), rng=random.Random(0))
    w.generation = 1
    w.write(0, b'limg' * 1024)
    w.zero(8192, 4096)
    w.snapshot('first', vmstate=False)
    w.snaps[0].uuid, w.snaps[0].created = bytes(range(0x20, 0x30)), 1_700_000_000_000_000_000
    w.write(4096, b'head' * 1024)
    return w


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('file')
    parser.add_argument('--example', action='store_true', help='the image of the document')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--clean', action='store_true', help='without a journal')
    args = parser.parse_args()
    w = example() if args.example else random_image(args.seed, args.clean)
    w.save(args.file)
    print('head', hashlib.sha256(w.content(w.head)).hexdigest())
    for snap in w.snaps:
        if snap and not snap.deleted:
            print(snap.name, hashlib.sha256(w.content(snap.state)).hexdigest())


if __name__ == '__main__':
    main()
