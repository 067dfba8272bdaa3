#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
limg_reader: an independent reader of the limg image format, written from format-spec/limg.md alone.

It shares no code with the library and serves as a judge in its tests. It never writes to an image and takes no
locks; an image that was not closed is replayed in memory. Section numbers in comments are those of the document.

    limg_reader.py list FILE                    snapshots
    limg_reader.py extract FILE[@SNAP] OUT      content as a raw file, backing chain included
    limg_reader.py hash FILE[@SNAP]             sha256 of the content
    limg_reader.py verify FILE                  every checksum, every invariant, the free-space map

Exit 0, or 4 with one line for each problem. With --vmstate, extract and hash take the machine state, not the disk.
"""
import argparse
import hashlib
import mmap
import os
import stat
import struct
import sys
import zlib
from collections import namedtuple

import xxhash
import zstandard

AU = 4096
LEAF, FAN = 256, 64
NONE, ZERO, RAW, ZSTD, DEFLATE = range(5)
ADDR_MASK, BIRTH_MASK = (1 << 38) - 1, (1 << 22) - 1
CATALOG, DISK, VMSTATE, FREEMAP = 0, 1, 2, 15
MAX_DEPTH = 64
ZERO_LOGICAL = b'\1' + bytes(15)
LEAF_WORDS = struct.Struct('<512Q')

xxh64 = xxhash.xxh3_64_intdigest


def xxh128(data):
    return xxhash.xxh3_128_digest(data)[::-1]


class Damage(Exception):
    """Something does not hold: a rule of section 14, the file offset where it was seen, and what."""

    def __init__(self, rule, off, message):
        super().__init__(message)
        self.rule, self.off = rule, off

    def __str__(self):
        place = '' if self.off is None else ' offset 0x%x' % self.off
        return '%s%s: %s' % (self.rule, place, self.args[0])


class Pointer(namedtuple('Pointer', 'word csum logical count')):
    """Node pointer (5)."""

    @classmethod
    def parse(cls, data, off, where):
        pointer = cls(*struct.unpack_from('<QQ16sQ', data, off))
        plain = pointer.csum == 0 and pointer.count == 0 and pointer.addr == 0
        if pointer.state == 0 and (pointer.word or not plain or pointer.logical != bytes(16)):
            raise Damage('LIMG-5', where, 'an empty node pointer is not all zero')
        if pointer.state == 1 and (not plain or pointer.logical != ZERO_LOGICAL):
            raise Damage('LIMG-5', where, 'a zero node pointer carries an address, checksum or count')
        if pointer.state > 2:
            raise Damage('LIMG-5', where, 'undefined node pointer state %d' % pointer.state)
        return pointer

    state = property(lambda self: self.word >> 60)
    addr = property(lambda self: self.word & ADDR_MASK)
    birth = property(lambda self: self.word >> 38 & BIRTH_MASK)


class Volume:
    """A sparse array of blocks (4), with the journal's entries laid over it."""

    def __init__(self, kind, data, off, where, block_shift):
        self.kind = kind
        self.size, self.levels, zero = struct.unpack_from('<QB7s', data, off)
        self.root = Pointer.parse(data, off + 16, where)
        self.block = AU if kind == CATALOG else 1 << block_shift
        self.blocks = (self.size + self.block - 1) // self.block
        self.overlay = {}    # leaf index -> {entry index: (word, csum)}
        if any(zero):
            raise Damage('LIMG-2', where, 'reserved bytes of a volume are not zero')
        if self.levels > 5 or LEAF * FAN ** self.levels < self.blocks:
            raise Damage('LIMG-1', where, 'volume of %d bytes with %d levels' % (self.size, self.levels))


class Snapshot:
    """Snapshot record (7)."""

    def __init__(self, data, off, where, block_shift):
        (self.id, self.state, name_len, self.uuid, self.parent, self.epoch, self.created, self.cursor_block,
         self.cursor_volume, flags) = struct.unpack_from('<QII16sQQqQII', data, off)
        if flags > 1 or any(data[off + 184:off + 256]) or any(data[off + 256 + min(name_len, 256):off + 512]):
            raise Damage('LIMG-2', where, 'reserved bytes of a snapshot record are not zero')
        if self.state not in (1, 2) or name_len > 255 or (name_len == 0) != (self.state == 2):
            raise Damage('LIMG-13', where, 'snapshot record %d has state %d and a name of %d bytes'
                         % (self.id, self.state, name_len))
        if (self.state == 1 and (self.cursor_block or self.cursor_volume) or self.cursor_volume > 2 or
                self.cursor_block % LEAF):
            raise Damage('LIMG-13', where, 'snapshot record %d has a wrong reclaim cursor' % self.id)
        raw = bytes(data[off + 256:off + 256 + name_len])
        try:
            self.name = raw.decode('utf-8')
        except UnicodeDecodeError:
            raise Damage('LIMG-13', where, 'a snapshot name is not UTF-8') from None
        if any(c in '@/\x7f' or ord(c) < 32 for c in self.name):
            raise Damage('LIMG-13', where, 'illegal snapshot name %r' % self.name)
        self.disk = Volume(DISK, data, off + 72, where, block_shift)
        self.vmstate = Volume(VMSTATE, data, off + 128, where, block_shift)
        if self.disk.size % 512:
            raise Damage('LIMG-13', where, 'the disk of snapshot record %d has %d bytes' % (self.id, self.disk.size))
        self.has_vmstate = flags & 1 == 1
        self.where = where

    def __str__(self):
        return 'snapshot %r' % self.name if self.state == 1 else 'deleted snapshot %d' % self.id


Backing = namedtuple('Backing', 'flags format uuid snap_uuid digest size mtime pin snap_name name')


def parse_backing(sb):
    """Section 12."""
    flags, name_len, fmt, uuid, snap_uuid, digest, size, mtime, pin, snap_len = struct.unpack_from(
        '<II16s16s16s16sQqII', sb, 512)
    if not flags & 1:
        if any(sb[512:1888]):
            raise Damage('LIMG-14', 512, 'no backing, but its record is not zero')
        return None
    snap_name, name = bytes(sb[608:608 + snap_len]), bytes(sb[864:864 + name_len])
    fmt = fmt.rstrip(b'\0')
    if (flags > 7 or not 1 <= name_len <= 1023 or snap_len > 255 or pin > 2 or not fmt
            or b'\0' in name + snap_name + fmt or any(sb[608 + snap_len:864]) or any(sb[864 + name_len:1888])):
        raise Damage('LIMG-14', 512, 'the backing record is not sound')
    if not flags & 2 and (any(snap_uuid) or snap_len):
        raise Damage('LIMG-14', 512, 'the backing record names a snapshot without saying so')
    return Backing(flags, fmt.decode('ascii', 'replace'), uuid, snap_uuid, digest, size, mtime, pin,
                   os.fsdecode(snap_name), os.fsdecode(name))


class Image:
    """An opened file: superblock, catalog and, where it was not closed, the journal's deltas (10)."""

    def __init__(self, path):
        self.path = path
        self.problems = []    # damage that does not stop the opening
        self.notes = []
        with open(path, 'rb') as file:
            self.file_size = os.fstat(file.fileno()).st_size
            if self.file_size < 194 * AU:
                raise Damage('LIMG-3', None, 'a file of %d bytes is too short for an image' % self.file_size)
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.map)
        self.load_superblock()
        self.load_catalog()
        self.records = []    # records of the journal that were applied
        if self.ring_aus:
            self.replay()

    # -- superblock (4) ---------------------------------------------------------------------------------------------

    def load_superblock(self):
        copies = {}
        for au in (0, 1, 192, 193):
            copy = self.view[au * AU:au * AU + AU]
            if copy[:8] == b'LIMG\r\n\x1a\0' and xxh128(copy[:4080]) == copy[4080:]:
                copies[au] = copy
        if not copies:
            raise Damage('LIMG-1', 0, 'no valid superblock')
        generation = {au: struct.unpack_from('<Q', c, 56)[0] for au, c in copies.items()}
        au = max(copies, key=lambda a: generation[a])
        sb = self.sb = copies[au]
        self.sb_off = off = au * AU
        self.generation = generation[au]
        if self.generation < 1 or self.generation % 2 != au % 2:
            raise Damage('LIMG-1', off, 'generation %d in the wrong slot' % self.generation)
        other = au ^ 192
        if copies.get(other) != sb:
            state = 'an older one' if generation.get(other, self.generation) < self.generation else 'not valid'
            self.notes.append('LIMG-1 offset 0x%x: redundancy: the other copy of the superblock is %s'
                              % (other * AU, state))
        version, header = struct.unpack_from('<II', sb, 8)
        if version != 1 or header != AU:
            raise Damage('LIMG-1', off + 8, 'version %d, header size %d' % (version, header))
        incompatible, = struct.unpack_from('<Q', sb, 16)
        if incompatible:
            raise Damage('LIMG-1', off + 16, 'unknown incompatible features 0x%x' % incompatible)
        self.uuid = bytes(sb[40:56])
        self.block_shift, self.unit_shift, codec = sb[64], sb[65], sb[66]
        if self.block_shift not in (12, 14, 16) or not max(16, self.block_shift) <= self.unit_shift <= 20:
            raise Damage('LIMG-1', off + 64, 'block_shift %d, unit_shift %d' % (self.block_shift, self.unit_shift))
        if codec not in (0, 3, 4):
            raise Damage('LIMG-1', off + 66, 'unknown default codec %d' % codec)
        if any(sb[68:72]) or any(sb[384:512]) or any(sb[1888:4080]):
            raise Damage('LIMG-2', off, 'reserved bytes of the superblock are not zero')
        (self.file_bytes, self.epoch, self.head_parent, self.next_id, self.slots, self.salt, self.ring_addr,
         self.ring_aus, self.journal_off, self.journal_seq, self.journal_prev) = struct.unpack_from('<10Q16s', sb, 72)
        if self.file_size < self.file_bytes:
            raise Damage('LIMG-3', None, 'the file has %d bytes and must have %d: it was cut'
                         % (self.file_size, self.file_bytes))
        if not 1 <= self.epoch < 1 << 22 or self.next_id < 1:
            raise Damage('LIMG-1', off + 80, 'epoch %d, next snapshot id %d' % (self.epoch, self.next_id))
        self.block, self.unit = 1 << self.block_shift, 1 << self.unit_shift
        self.disk = Volume(DISK, sb, 168, off + 168, self.block_shift)
        self.vmstate = Volume(VMSTATE, sb, 224, off + 224, self.block_shift)
        if self.disk.size % 512:
            raise Damage('LIMG-1', off + 168, 'a disk of %d bytes' % self.disk.size)
        self.catalog = Volume(CATALOG, sb, 280, off + 280, self.block_shift)
        self.groups, self.used_aus, self.hint, self.created = struct.unpack_from('<QQQq', sb, 352)
        self.backing = parse_backing(sb)
        if self.ring_aus:
            if (self.ring_addr + self.ring_aus) * AU > self.file_size:
                raise Damage('LIMG-3', off + 120, 'the journal ring lies outside the file')
            if self.journal_off % AU or self.journal_off > self.ring_aus * AU:
                raise Damage('LIMG-1', off + 136, 'journal offset 0x%x in a ring of 0x%x bytes'
                             % (self.journal_off, self.ring_aus * AU))

    # -- trees (5) --------------------------------------------------------------------------------------------------

    def identity(self, kind, level, index):
        return xxh64(self.uuid + struct.pack('<IIQ', kind, level, index))

    def node(self, pointer, kind, level, index):
        """The 4096 bytes of a node, its checksum and header verified."""
        off = pointer.addr * AU
        if off + AU > self.file_size:
            raise Damage('LIMG-3', off, 'node level %d index %d lies outside the file' % (level, index))
        page = self.view[off:off + AU]
        if xxh64(page, self.identity(kind, level, index)) != pointer.csum:
            raise Damage('LIMG-4', off, 'checksum of node volume %d level %d index %d does not hold'
                         % (kind, level, index))
        if level:
            magic, its_level, its_kind, zero, its_index = struct.unpack_from('<IBBHQ', page)
            if (magic, its_level, its_kind, its_index) != (0x444e494c, level, kind, index):
                raise Damage('LIMG-4', off, 'node names itself volume %d level %d index %d'
                             % (its_kind, its_level, its_index))
            if zero or any(page[16:64]) or any(page[2624:]):
                raise Damage('LIMG-2', off, 'reserved bytes of a node are not zero')
        return page

    def spans(self, volume, first=0, end=None):
        """
        Covers blocks first to end, ascending: (block, count, what), what being None (unallocated), ZERO, or the 512
        words of a leaf, of which block is the first. The journal's entries are laid over.
        """
        end = volume.blocks if end is None else min(end, volume.blocks)
        touched = sorted(volume.overlay)
        if first < end:
            yield from self.subtree(volume, volume.root, volume.levels, 0, first, end, touched)

    def subtree(self, volume, pointer, level, index, first, end, touched):
        span = LEAF * FAN ** level
        start, stop = index * span, min((index + 1) * span, end)
        if stop <= first or start >= end:
            return
        if pointer.state != 2:
            what = ZERO if pointer.state == 1 else None
            at = start
            for leaf in (t for t in touched if start <= t * LEAF < stop):
                if leaf * LEAF > at:
                    yield at, leaf * LEAF - at, what
                inside = max(0, min(LEAF, volume.blocks - leaf * LEAF))
                fill = (pointer.word, 0) if what == ZERO else (0, 0)
                words = list(fill * inside + (0, 0) * (LEAF - inside))
                at = min(stop, leaf * LEAF + LEAF)
                yield leaf * LEAF, at - leaf * LEAF, self.laid_over(volume, leaf, words)
            if at < stop:
                yield at, stop - at, what
            return
        page = self.node(pointer, volume.kind, level, index)
        if level == 0:
            yield start, stop - start, self.laid_over(volume, index, LEAF_WORDS.unpack(page))
            return
        for i in range(FAN):
            child = Pointer.parse(page, 64 + 40 * i, pointer.addr * AU + 64 + 40 * i)
            yield from self.subtree(volume, child, level - 1, index * FAN + i, first, end, touched)

    @staticmethod
    def laid_over(volume, leaf, words):
        if leaf not in volume.overlay:
            return words
        words = list(words)
        for i, entry in volume.overlay[leaf].items():
            words[2 * i:2 * i + 2] = entry
        return words

    # -- data (5, 6) ------------------------------------------------------------------------------------------------

    def unit_plain(self, state, addr, aus):
        """Plaintext of a stored unit, with every rule of section 6 verified."""
        off = addr * AU
        if off + aus * AU > self.file_size:
            raise Damage('LIMG-3', off, 'a compressed unit lies outside the file')
        payload_bytes, zero, csum = struct.unpack_from('<IIQ', self.view, off)
        if zero or (16 + payload_bytes + AU - 1) // AU != aus or aus * AU >= self.unit:
            raise Damage('LIMG-12', off, 'header of a compressed unit: payload of %d bytes in %d AUs'
                         % (payload_bytes, aus))
        payload = self.view[off + 16:off + 16 + payload_bytes]
        if xxh64(payload) != csum:
            raise Damage('LIMG-12', off, 'checksum of a compressed unit does not hold')
        try:
            expander = (zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj() if state == ZSTD
                        else zlib.decompressobj(-15))
            plain = expander.decompress(payload)
            whole = state == ZSTD or expander.eof
            rest = expander.unused_data
        except (zstandard.ZstdError, zlib.error) as error:
            raise Damage('LIMG-12', off, 'a compressed unit does not expand: %s' % error) from None
        if len(plain) != self.unit or rest or not whole:
            raise Damage('LIMG-12', off, 'a compressed unit expands to %d bytes' % len(plain))
        return plain

    def entry_runs(self, volume, block, count, words):
        """Splits a leaf into runs: (block, count, state, word of the first, csums). Checks what the entries show."""
        i = 0
        step = volume.block // AU
        while i < count:
            word = words[2 * i]
            state = word >> 60
            j = i + 1
            if state == RAW:
                follow = word + step
                while j < count and words[2 * j] == follow:
                    j, follow = j + 1, follow + step
            elif state in (NONE, ZERO):
                while j < count and words[2 * j] >> 60 == state:
                    j += 1
            else:
                while j < count and words[2 * j] == word and (block + j) * volume.block % self.unit:
                    j += 1
            csums = words[2 * i + 1:2 * j:2]
            if state > DEFLATE or state != RAW and state > ZERO and volume.kind == CATALOG:
                raise Damage('LIMG-5', None, 'volume %d block %d has state %d' % (volume.kind, block + i, state))
            if state == NONE and (any(words[2 * i:2 * j])) or state == ZERO and (word & ADDR_MASK or any(csums)):
                raise Damage('LIMG-5', None, 'volume %d block %d maps nothing but is not empty'
                             % (volume.kind, block + i))
            yield block + i, j - i, state, word, csums
            i = j

    def run_data(self, volume, block, count, state, word, csums, report):
        """Plaintext of a run of raw or compressed blocks; a block that does not hold is reported, None in its place."""
        addr, size = word & ADDR_MASK, volume.block
        if state == RAW:
            data = self.view[addr * AU:addr * AU + count * size]
            if len(data) != count * size:
                report(Damage('LIMG-3', addr * AU, 'volume %d block %d is mapped outside the file'
                              % (volume.kind, block)))
                yield block, count, None
                return
            bits = 0
        else:
            try:
                if any(c & 255 != csums[0] & 255 for c in csums) or not csums[0] & 255:
                    raise Damage('LIMG-12', addr * AU, 'entries of one unit disagree about its length')
                plain = self.unit_plain(state, addr, csums[0] & 255)
            except Damage as damage:
                report(Damage(damage.rule, damage.off, '%s (volume %d block %d)'
                              % (damage.args[0], volume.kind, block)))
                yield block, count, None
                return
            inside = block * size % self.unit
            data = memoryview(plain)[inside:inside + count * size]
            bits = 8
        good = 0
        for i in range(count):
            if xxh64(data[i * size:(i + 1) * size]) >> bits != csums[i] >> bits:
                if i > good:
                    yield block + good, i - good, data[good * size:i * size]
                place = addr * AU + (i * size if state == RAW else 0)
                report(Damage('LIMG-11', place, 'checksum of volume %d block %d does not hold'
                              % (volume.kind, block + i)))
                yield block + i, 1, None
                good = i + 1
        if count > good:
            yield block + good, count - good, data[good * size:]

    # -- catalog (7) ------------------------------------------------------------------------------------------------

    def load_catalog(self):
        self.snapshots, self.catalog_pages = [], []
        if self.catalog.size < self.slots * 512:
            raise Damage('LIMG-13', self.sb_off + 104, '%d catalog slots in %d bytes' % (self.slots, self.catalog.size))
        for block, count, what in self.spans(self.catalog):
            if what is None or what == ZERO:
                continue
            for run in self.entry_runs(self.catalog, block, count, what):
                if run[2] != RAW:
                    continue
                for at, nr, data in self.run_data(self.catalog, *run, self.fail):
                    where = ((run[3] & ADDR_MASK) + at - run[0]) * AU
                    for i in range(nr * 8):
                        self.load_record(at * 8 + i, data, i * 512, where + i * 512)

    @staticmethod
    def fail(damage):
        raise damage

    def load_record(self, slot, data, off, where):
        if data[off:off + 8] == bytes(8):
            if any(data[off:off + 512]):
                raise Damage('LIMG-2', where, 'a free snapshot record is not zero')
            return
        if slot >= self.slots:
            raise Damage('LIMG-13', where, 'snapshot record in slot %d of %d' % (slot, self.slots))
        self.snapshots.append(Snapshot(data, off, where, self.block_shift))

    def find(self, name):
        for snap in self.snapshots:
            if snap.state == 1 and snap.name == name:
                return snap
        raise Damage('no snapshot', None, repr(name))

    # -- journal (9, 10) --------------------------------------------------------------------------------------------

    def record(self, pos):
        """The record at offset pos of the ring as a dict, or None where there is no valid one of this session."""
        ring = self.view[self.ring_addr * AU:(self.ring_addr + self.ring_aus) * AU]
        if pos + AU > len(ring):
            return None
        magic, length, uuid, salt, seq, prev, stable, kind, nr, delta_bytes, zero, size, zero2 = struct.unpack_from(
            '<II16sQQ16sQIIIIQQ', ring, pos)
        if magic != 0x4e524a4c or uuid != self.uuid or salt != self.salt:
            return None
        if length < AU or length % AU or pos + length > len(ring):
            return None
        data = ring[pos:pos + length]
        if xxh128(data[:-16]) != data[-16:]:
            return None
        return {'off': self.ring_addr * AU + pos, 'pos': pos, 'length': length, 'seq': seq, 'prev': prev,
                'stable': stable, 'kind': kind, 'nr': nr, 'delta_bytes': delta_bytes, 'size': size, 'zero': zero or zero2,
                'data': data, 'csum': bytes(data[-16:])}

    def replay(self):
        chain, pos, seq, prev = [], self.journal_off, self.journal_seq, self.journal_prev
        ring_bytes = self.ring_aus * AU
        while len(chain) <= self.ring_aus:
            record = self.record(pos % ring_bytes)
            if not record or record['seq'] != seq or record['prev'] != prev:
                break
            chain.append(record)
            pos = 0 if record['kind'] == 2 else record['pos'] + record['length']
            seq, prev = seq + 1, record['csum']
        stable = 0
        for at in range(0, ring_bytes, AU):
            record = self.record(at)
            if record and record['seq'] >= self.journal_seq:
                stable = max(stable, record['stable'])
        if seq <= stable:
            self.problems.append(Damage('LIMG-15', self.ring_addr * AU + pos % ring_bytes,
                                        'the journal ends before record %d, but %d was durable' % (seq, stable)))
        for record in chain:
            deltas = self.deltas(record)
            if record['seq'] > stable and not all(self.delta_holds(*d) for d in deltas):
                self.notes.append('journal record %d was not durable: dropped' % record['seq'])
                break
            for volume, block, words, csums in deltas:
                for i, entry in enumerate(zip(words, csums)):
                    leaf = volume.overlay.setdefault((block + i) // LEAF, {})
                    leaf[(block + i) % LEAF] = entry
            self.records.append(record)

    def deltas(self, record):
        """The deltas of a record: (volume, block, words, csums), checked."""
        data, off = record['data'], record['off']
        if record['zero'] or any(data[96 + record['delta_bytes']:-16]):
            raise Damage('LIMG-2', off, 'reserved bytes of a journal record are not zero')
        if record['kind'] not in (1, 2) or record['kind'] == 2 and (record['nr'] or record['length'] != AU):
            raise Damage('LIMG-15', off, 'journal record of kind %d with %d deltas' % (record['kind'], record['nr']))
        if record['size'] != self.disk.size:
            raise Damage('LIMG-15', off, 'journal record for a disk of %d bytes' % record['size'])
        out, at, end = [], 96, 96 + record['delta_bytes']
        for _ in range(record['nr']):
            if at + 24 > min(end, record['length'] - 16):
                raise Damage('LIMG-15', off, 'deltas of a journal record reach beyond it')
            block, word, blocks, kind, zero = struct.unpack_from('<QQIB3s', data, at)
            state, at = word >> 60, at + 24
            if any(zero):
                raise Damage('LIMG-2', off + at, 'reserved bytes of a delta are not zero')
            if kind != DISK or state > DEFLATE:
                raise Damage('LIMG-5', off + at, 'delta for volume %d with state %d' % (kind, state))
            volume = self.disk
            if not blocks or block % LEAF + blocks > LEAF or block + blocks > volume.blocks:
                raise Damage('LIMG-6', off + at, 'delta for blocks %d to %d of volume %d'
                             % (block, block + blocks, kind))
            if word >> 38 & BIRTH_MASK > self.epoch or state == NONE and word or state == ZERO and word & ADDR_MASK:
                raise Damage('LIMG-5', off + at, 'delta with the entry word 0x%x' % word)
            csums = (0,) * blocks
            if state >= RAW:
                if at + 8 * blocks > end:
                    raise Damage('LIMG-15', off, 'deltas of a journal record reach beyond it')
                csums = struct.unpack_from('<%dQ' % blocks, data, at)
                at += 8 * blocks
            step = volume.block // AU if state == RAW else 0
            out.append((volume, block, [word + i * step for i in range(blocks)], csums))
        if at != end:
            raise Damage('LIMG-15', off, 'a journal record has %d bytes of deltas and says %d' % (at - 96, end - 96))
        return out

    def delta_holds(self, volume, block, words, csums):
        bad = []
        entries = [w for pair in zip(words, csums) for w in pair]
        for run in self.entry_runs(volume, block, len(words), entries):
            if run[2] >= RAW:
                for _ in self.run_data(volume, *run, bad.append):
                    pass
        return not bad

    # -- logical hash (5) -------------------------------------------------------------------------------------------

    def logical_root(self, volume):
        logical = self.logical(volume, volume.root, volume.levels, 0) if volume.overlay else volume.root.logical
        return xxh128(struct.pack('<QQ', volume.size, volume.levels) + logical)

    def logical(self, volume, pointer, level, index):
        """Logical hash of a subtree as the next checkpoint would write it."""
        span = FAN ** level
        if not any(index * span <= t < (index + 1) * span for t in volume.overlay):
            return pointer.logical
        if level == 0:
            (_, _, words), = self.subtree(volume, pointer, 0, index, 0, volume.blocks, [index])
            return leaf_logical(words, min(LEAF, volume.blocks - index * LEAF))
        page = self.node(pointer, volume.kind, level, index) if pointer.state == 2 else None
        parts = []
        for i in range(FAN):
            at = index * FAN + i
            child = Pointer.parse(page, 64 + 40 * i, None) if page else pointer
            inside = at * LEAF * FAN ** (level - 1) < volume.blocks
            parts.append(self.logical(volume, child, level - 1, at) if inside else bytes(16))
        kids = [p for i, p in enumerate(parts) if (index * FAN + i) * LEAF * FAN ** (level - 1) < volume.blocks]
        if not any(map(any, kids)):
            return bytes(16)
        return ZERO_LOGICAL if all(k == ZERO_LOGICAL for k in kids) else xxh128(b''.join(parts))


def leaf_logical(words, inside=LEAF):
    states = [w >> 60 for w in words[::2]]
    if not any(states):
        return bytes(16)
    if all(s == ZERO for s in states[:inside]):
        return ZERO_LOGICAL
    return leaf_hash(words)


def leaf_hash(words):
    marks = [c & ~0xff | 2 if w >> 60 >= RAW else w >> 60 for w, c in zip(words[::2], words[1::2])]
    return xxh128(struct.pack('<256Q', *marks))


# -- content of a chain ---------------------------------------------------------------------------------------------


class RawLayer:
    def __init__(self, path):
        self.path = path
        with open(path, 'rb') as file:
            self.size = os.fstat(file.fileno()).st_size
            self.view = memoryview(b'')
            if self.size:
                self.view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def pieces(self, start, end, report):
        for off in range(start, min(end, self.size), 1 << 20):
            data = self.view[off:min(off + (1 << 20), end, self.size)]
            yield off, len(data), data


class LimgLayer:
    """A disk or machine state of an image, on top of its backing."""

    def __init__(self, image, snap=None, kind=DISK, depth=1):
        self.image, self.snap, self.path = image, snap, image.path
        state = snap or image
        self.volume = state.disk if kind == DISK else state.vmstate
        self.size = self.volume.size
        self.parent = None
        if image.backing and kind == DISK:
            self.parent = open_parent(image, depth)

    def pieces(self, start, end, report):
        """(offset, length, data, or None for zeros) covering [start, min(end, size)), ascending."""
        size = self.volume.block
        end = min(end, self.size)
        for block, count, data in self.blocks(start // size, (end + size - 1) // size, report):
            lo, hi = max(start, block * size), min(end, (block + count) * size)
            if lo >= hi:
                continue
            if data is None:
                below = self.parent.size if self.parent else 0
                if lo < min(hi, below):
                    yield from self.parent.pieces(lo, min(hi, below), report)
                if max(lo, below) < hi:
                    yield max(lo, below), hi - max(lo, below), None
            elif data == ZERO:
                yield lo, hi - lo, None
            else:
                yield lo, hi - lo, data[lo - block * size:hi - block * size]

    def blocks(self, first, end, report):
        """(block, count, None | ZERO | data) of this layer."""
        image, volume = self.image, self.volume
        for block, count, what in image.spans(volume, first, end):
            if what is None or what == ZERO:
                yield block, count, what
                continue
            for run in image.entry_runs(volume, block, count, what):
                if run[2] < RAW:
                    yield run[0], run[1], ZERO if run[2] == ZERO else None
                    continue
                for at, nr, data in image.run_data(volume, *run, report):
                    yield at, nr, data if data is not None else ZERO


def open_parent(image, depth):
    """Opens the layer that an image names, and compares its pin (12)."""
    ref = image.backing
    if depth >= MAX_DEPTH:
        raise Damage('LIMG-14', 512, 'the backing chain is longer than %d' % MAX_DEPTH)
    path = os.path.join(os.path.dirname(image.path), ref.name)
    if ref.format == 'raw':
        parent = RawLayer(path)
    elif ref.format == 'limg':
        below = Image(path)
        snap = None
        if ref.flags & 2:
            snap = next((s for s in below.snapshots if s.state == 1 and s.uuid == ref.snap_uuid), None)
            if not snap:
                raise Damage('pin', None, '%s has no snapshot with the recorded uuid (%r)' % (path, ref.snap_name))
        parent = LimgLayer(below, snap, DISK, depth + 1)
    else:
        raise Damage('unsupported', None, 'backing format %r' % ref.format)
    committing = ref.flags & 4
    if ref.pin == 1:
        if ref.format != 'limg' or parent.image.uuid != ref.uuid:
            raise Damage('pin', None, '%s is not the image that %s stands on' % (path, image.path))
        if not committing and (parent.size != ref.size or parent.image.logical_root(parent.volume) != ref.digest):
            raise Damage('pin', None, '%s has changed since %s was made on it' % (path, image.path))
    elif ref.pin == 2 and not committing:
        host = os.stat(path)
        other_time = host.st_mtime_ns != ref.mtime and not stat.S_ISBLK(host.st_mode)
        if parent.size != ref.size or other_time or fingerprint(parent) != ref.digest:
            raise Damage('pin', None, '%s has changed since %s was made on it' % (path, image.path))
    return parent


def fingerprint(layer):
    """Weak pin: the size and up to 64 samples of the content."""
    digest = xxhash.xxh3_128(struct.pack('<Q', layer.size))
    if layer.size < 256 << 10:
        samples = [(0, layer.size)]
    else:
        samples = [(i * (layer.size - 4096) // 63 // 512 * 512, 4096) for i in range(64)]
    for off, length in samples:
        for _, nr, data in layer.pieces(off, off + length, Image.fail):
            digest.update(bytes(nr) if data is None else data)
    return digest.digest()[::-1]


# -- commands -------------------------------------------------------------------------------------------------------


def open_state(name, vmstate=False):
    """FILE or FILE@SNAP; a file whose name holds '@' wins."""
    path, snap = name, None
    if '@' in name and not os.path.exists(name):
        path, _, snap = name.rpartition('@')
    image = Image(path)
    found = image.find(snap) if snap else None
    if vmstate and found and not found.has_vmstate:
        raise Damage('no machine state', None, 'in ' + str(found))
    return LimgLayer(image, found, VMSTATE if vmstate else DISK)


def command_list(args):
    image = Image(args.file)
    for snap in sorted(image.snapshots, key=lambda s: s.id):
        if snap.state == 1:
            vm_size = snap.vmstate.size if snap.has_vmstate else 0
            print('%d\t%s\t%d\t%d\tparent %d\tepoch %d\t%s' % (snap.id, snap.name, snap.disk.size, vm_size, snap.parent,
                                                              snap.epoch, snap.uuid.hex()))
    return image.problems


def command_extract(args):
    layer = open_state(args.file, args.vmstate)
    problems = list(layer.image.problems)
    with open(args.out, 'wb') as out:
        out.truncate(layer.size)
        for off, _, data in layer.pieces(0, layer.size, problems.append):
            if data is not None:
                os.pwrite(out.fileno(), data, off)
    return problems


def command_hash(args):
    layer = open_state(args.file, args.vmstate)
    problems = list(layer.image.problems)
    digest = hashlib.sha256()
    zeros = bytes(1 << 20)
    for _, length, data in layer.pieces(0, layer.size, problems.append):
        if data is not None:
            digest.update(data)
            continue
        while length:
            digest.update(zeros[:min(length, len(zeros))])
            length -= min(length, len(zeros))
    if not problems:
        print(digest.hexdigest())
    return problems


def command_verify(args):
    sys.dont_write_bytecode = True
    from limg_verify import Verifier
    verifier = Verifier(Image(args.file))
    verifier.run()
    for note in verifier.image.notes:
        print('note: ' + note)
    if not verifier.problems:
        print(verifier.summary())
    return verifier.problems


def main():
    parser = argparse.ArgumentParser(description='independent reader of limg images')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, function in (('list', command_list), ('extract', command_extract), ('hash', command_hash),
                           ('verify', command_verify)):
        sub = commands.add_parser(name)
        sub.add_argument('file')
        if name == 'extract':
            sub.add_argument('out')
        sub.add_argument('--vmstate', action='store_true')
        sub.set_defaults(function=function)
    args = parser.parse_args()
    try:
        problems = args.function(args)
    except Damage as damage:
        problems = [damage]
    except OSError as error:
        problems = [error]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 4 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
