# SPDX-License-Identifier: MIT
"""
limg_verify: the `verify` command of limg_reader.py.

Walks the trees of the head, of every snapshot and of the catalog, verifies every node and every block of data once,
keeps for each AU who uses it, and compares the sum with the free-space map. The owner of an AU is its place (volume,
level, index) with the state in which it came to be: the topmost ancestor that shares it. Two owners of one AU break
LIMG-9.
"""
import struct

from limg_reader import (AU, ADDR_MASK, BIRTH_MASK, CATALOG, DISK, FAN, FREEMAP, LEAF, LEAF_WORDS, RAW, VMSTATE, Damage,
                         Pointer, leaf_hash, xxh64, xxh128)

GROUP = 32768
BITS = [bytes(b >> i & 1 for i in range(8)) for b in range(256)]
FIXED_OWNER = 'fixed'


def fixed_aus(group):
    fixed = [2, 3]
    if group % 256 == 0:
        fixed += [4, 5]
    if group % 65536 == 0:
        fixed += [6, 7]
    if group == 0:
        fixed += [0, 1, 8, 9, 192, 193]
    return fixed


class State:
    """The head or a snapshot, as the walk sees it."""

    def __init__(self, ident, name, epoch, parent, disk, vmstate, cursor=(0, 0)):
        self.id, self.name, self.epoch, self.parent = ident, name, epoch, parent
        self.volumes = {DISK: disk, VMSTATE: vmstate}
        self.cursor = cursor    # (volume, block): what lies before it is not part of the state any more

    def gone(self, kind, end):
        """Is everything of the volume before block `end` reclaimed?"""
        return self.cursor[0] > kind or self.cursor[0] == kind and self.cursor[1] >= end


class Verifier:
    def __init__(self, image):
        self.image = image
        self.problems = list(image.problems)
        self.used = {}       # group -> bytearray with one byte for each AU
        self.owner = {}      # first AU -> owner
        self.nodes = {}      # AU of a verified node -> the block after the last below that says something
        self.units = {}      # AU of a unit -> {place in the unit: csum} verified
        self.data_bytes = self.metadata_bytes = 0
        self.incomplete = False    # a node could not be read: the free-space map cannot be compared
        self.origins = {}

    def problem(self, rule, off, message):
        self.problems.append(Damage(rule, off, message))

    def report(self, damage):
        self.problems.append(damage)

    def summary(self):
        return 'whole: generation %d, %d snapshots, %d bytes of data, %d bytes of metadata' % (
            self.image.generation, len(self.image.snapshots), self.data_bytes, self.metadata_bytes)

    def run(self):
        image = self.image
        for au in (0, 1, 192, 193):
            self.mark(au, 1, FIXED_OWNER)
        for group in range(image.groups):
            for au in fixed_aus(group):
                self.group(group)[au] = 1
        self.check_catalog()
        if image.ring_aus:
            self.claim(image.ring_addr, image.ring_aus, 'ring', 'the journal ring')
        cat = image.catalog
        catalog = State(-1, 'catalog', image.epoch, 0, None, None)
        self.walk(catalog, cat, CATALOG)
        for state in self.states:
            for kind, volume in state.volumes.items():
                self.walk(state, volume, kind)
        for state in self.states:
            parent = self.by_id.get(state.parent)
            if parent:
                for kind in (DISK, VMSTATE):
                    self.check_shared(state, parent, kind)
        self.check_free_map()
        self.check_overlay()

    # -- catalog ----------------------------------------------------------------------------------------------------

    def check_catalog(self):
        image = self.image
        records = sorted(image.snapshots, key=lambda s: s.id)
        self.states = []
        for snap in records:
            cursor = (max(1, snap.cursor_volume), snap.cursor_block) if snap.state == 2 else (0, 0)
            self.states.append(State(snap.id, str(snap), snap.epoch, snap.parent, snap.disk, snap.vmstate, cursor))
        self.head = State(0, 'head', image.epoch, image.head_parent, image.disk, image.vmstate)
        self.states.append(self.head)
        self.by_id = {s.id: s for s in self.states if s.id}
        if len(self.by_id) != len(records):
            self.problem('LIMG-13', None, 'two snapshot records have one id')
        names = [s.name for s in records if s.state == 1]
        if len(set(names)) != len(names):
            self.problem('LIMG-13', None, 'two snapshots have one name')
        for snap in records:
            if snap.id >= image.next_id:
                self.problem('LIMG-13', snap.where, 'snapshot id %d, but the next one is %d' % (snap.id, image.next_id))
        for state in self.states:
            seen, at = set(), state
            while at.parent:
                parent = self.by_id.get(at.parent)
                if not parent or at.parent in seen:
                    wrong = 'in a circle' if parent else 'names the record %d, which does not exist' % at.parent
                    self.problem('LIMG-13', None, '%s: ancestry %s' % (state.name, wrong))
                    at.parent = 0
                    break
                seen.add(at.parent)
                if parent.epoch >= at.epoch:
                    self.problem('LIMG-13', None, '%s: epoch %d is not above that of its parent, %d'
                                 % (at.name, at.epoch, parent.epoch))
                at = parent

    def origin(self, state, birth):
        """The topmost ancestor that shares what was born then."""
        key = (state.id, birth)
        if key not in self.origins:
            at = state
            while at.parent and birth <= self.by_id[at.parent].epoch:
                at = self.by_id[at.parent]
            self.origins[key] = at.id
        return self.origins[key]

    # -- space ------------------------------------------------------------------------------------------------------

    def group(self, group):
        if group not in self.used:
            self.used[group] = bytearray(GROUP)
        return self.used[group]

    def mark(self, au, count, owner):
        """Marks AUs as used; the first that was used already, or None."""
        taken = None
        while count:
            at, nr = au % GROUP, min(count, GROUP - au % GROUP)
            bits = self.group(au // GROUP)
            hit = bits.find(1, at, at + nr)
            if hit >= 0 and taken is None:
                taken = au - at + hit
            bits[at:at + nr] = b'\1' * nr
            au, count = au + nr, count - nr
        return taken

    def claim(self, au, count, owner, what):
        """Takes AUs for an owner; True where it is a new one, False where the same came again or it is an error."""
        if self.owner.get(au) == owner:
            return False
        off = au * AU
        if (au + count) * AU > self.image.file_size:
            self.problem('LIMG-3', off, '%s lies outside the file' % what)
            return False
        for at in range(au, au + count):
            if at % GROUP <= 193 and at % GROUP in fixed_aus(at // GROUP):
                self.problem('LIMG-16', off, '%s stands on a fixed AU' % what)
                return False
        taken = self.mark(au, count, owner)
        if taken is not None:
            self.problem('LIMG-9', off, '%s uses AU %d, which %s has' % (what, taken, self.owner.get(taken, 'another')))
        self.owner.setdefault(au, owner)
        return True

    # -- trees ------------------------------------------------------------------------------------------------------

    def walk(self, state, volume, kind):
        if state.cursor[0] > kind > 0:
            return
        end = self.check_pointer(state, volume, kind, volume.root, volume.levels, 0, state.epoch)
        if end > volume.blocks:
            self.problem('LIMG-6', None, '%s: block %d of volume %d is mapped beyond the end'
                         % (state.name, end - 1, kind))

    def check_pointer(self, state, volume, kind, pointer, level, index, birth):
        """Verifies a subtree once; returns the block after the last that says something."""
        what = '%s: node volume %d level %d index %d' % (state.name, kind, level, index)
        span = LEAF * FAN ** level
        if pointer.state and pointer.birth > birth:
            self.problem('LIMG-7', None, '%s is younger (%d) than what points at it (%d)'
                         % (what, pointer.birth, birth))
        if pointer.state != 2:
            return index * span + 1 if pointer.state == 1 else 0
        first, end = index * span, (index + 1) * span
        if state.cursor[0] and state.gone(kind, end):
            return 0
        partial = state.cursor[0] == kind and state.cursor[1] > first
        owner = (kind, level, index, pointer, self.origin(state, pointer.birth) if kind else 'catalog')
        if not self.claim(pointer.addr, 1, owner, what) and self.owner.get(pointer.addr) != owner:
            return 0
        if pointer.addr in self.nodes and not partial:
            return self.nodes[pointer.addr]
        try:
            page = self.image.node(pointer, kind, level, index)
            self.metadata_bytes += AU
            if level:
                last = self.check_interior(state, volume, kind, pointer, level, index, page, what)
            else:
                last = self.check_leaf(state, volume, kind, pointer, index, page, what)
        except Damage as damage:
            self.report(Damage(damage.rule, damage.off if damage.off is not None else pointer.addr * AU,
                               '%s (%s)' % (damage.args[0], state.name)))
            self.incomplete = True
            return 0
        if not partial:
            self.nodes[pointer.addr] = last
        return last

    def check_interior(self, state, volume, kind, pointer, level, index, page, what):
        kids = [Pointer.parse(page, 64 + 40 * i, pointer.addr * AU + 64 + 40 * i) for i in range(FAN)]
        if not any(k.state for k in kids):
            self.problem('LIMG-8', pointer.addr * AU, '%s is stored, but empty' % what)
        if xxh128(bytes().join(k.logical for k in kids)) != pointer.logical:
            self.problem('LIMG-8', pointer.addr * AU, '%s: its logical hash is not that of its pointer' % what)
        if sum(k.count for k in kids) != pointer.count:
            self.problem('LIMG-8', pointer.addr * AU, '%s: %d entries below, its pointer says %d'
                         % (what, sum(k.count for k in kids), pointer.count))
        last = 0
        for i, kid in enumerate(kids):
            if kid.state:
                below = self.check_pointer(state, volume, kind, kid, level - 1, index * FAN + i, pointer.birth)
                last = max(last, below)
        return last

    def check_leaf(self, state, volume, kind, pointer, index, page, what):
        words = LEAF_WORDS.unpack(page)
        count = sum(w >> 60 >= RAW for w in words[::2])
        if not any(words):
            self.problem('LIMG-8', pointer.addr * AU, '%s is stored, but empty' % what)
        if count != pointer.count or leaf_hash(words) != pointer.logical:
            self.problem('LIMG-8', pointer.addr * AU, '%s: count or logical hash is not that of its pointer' % what)
        youngest = max(w >> 38 & BIRTH_MASK for w in words[::2])
        if youngest > pointer.birth:
            self.problem('LIMG-7', pointer.addr * AU, '%s holds an entry younger (%d) than itself (%d)'
                         % (what, youngest, pointer.birth))
        last = max(i for i in range(LEAF) if words[2 * i] or i == 0)
        skip = state.cursor[1] - index * LEAF if state.cursor[0] == kind else 0
        for run in self.image.entry_runs(volume, index * LEAF, LEAF, words):
            if run[2] >= RAW:
                self.check_run(state, volume, kind, *run, skip + index * LEAF)
        return index * LEAF + last + 1

    def check_run(self, state, volume, kind, block, count, entry_state, word, csums, live_from):
        image, size = self.image, volume.block
        if block < live_from:
            cut = min(count, live_from - block)
            block, count, csums = block + cut, count - cut, csums[cut:]
            word += cut * (size // AU) if entry_state == RAW else 0
            if not count:
                return
        addr, birth = word & ADDR_MASK, word >> 38 & BIRTH_MASK
        origin = self.origin(state, birth) if kind else 'catalog'
        name = '%s: volume %d block %d' % (state.name, kind, block)
        if entry_state == RAW:
            step = size // AU
            fresh = [i for i in range(count)
                     if self.claim(addr + i * step, step, (kind, -1, block + i, csums[i], origin),
                                   '%s: volume %d block %d' % (state.name, kind, block + i))]
            if len(fresh) != count:
                for i in fresh:
                    self.verify_run(volume, block + i, 1, entry_state, word + i * step, csums[i:i + 1])
                return
        else:
            first = block - block * size % image.unit // size
            if self.claim(addr, csums[0] & 255, (kind, -2, first, entry_state, birth, csums[0] & 255, origin), name):
                self.units[addr] = {}
            known = self.units.setdefault(addr, {})
            fresh = [i for i in range(count) if known.get(block + i) != csums[i]]
            if not fresh:
                return
            known.update(zip(range(block, block + count), csums))
        self.verify_run(volume, block, count, entry_state, word, csums)

    def verify_run(self, volume, block, count, state, word, csums):
        for _, nr, data in self.image.run_data(volume, block, count, state, word, csums, self.report):
            if data is not None:
                self.data_bytes += nr * volume.block

    # -- sharing ----------------------------------------------------------------------------------------------------

    def lookup(self, state, kind, level, index):
        """The pointer at a place of a state's tree; None where the tree is lower than that."""
        volume = state.volumes[kind]
        pointer, at = volume.root, volume.levels
        if level > at or index >= FAN ** (at - level):
            return None
        while at > level and pointer.state == 2:
            page = self.image.node(pointer, kind, at, index // FAN ** (at - level))
            at -= 1
            pointer = Pointer.parse(page, 64 + 40 * (index // FAN ** (at - level) % FAN), pointer.addr * AU)
        return pointer

    def check_shared(self, state, parent, kind):
        """What is born at or before the parent's epoch stands at the same place of the parent; nothing else does."""
        volume = state.volumes[kind]
        if state.cursor[0] > kind or parent.cursor[0] > kind or self.incomplete:
            return
        todo = [(volume.root, volume.levels, 0)]
        while todo:
            pointer, level, index = todo.pop()
            end = (index + 1) * LEAF * FAN ** level
            if pointer.state != 2 or state.gone(kind, end) or parent.gone(kind, end):
                continue
            off = pointer.addr * AU
            what = '%s: volume %d level %d index %d' % (state.name, kind, level, index)
            if parent.cursor[0] == kind and parent.cursor[1] > index * LEAF * FAN ** level:
                pass    # partly reclaimed: the parent's node may be gone, look at what is below
            elif pointer.birth <= parent.epoch:
                if self.lookup(parent, kind, level, index) != pointer:
                    self.problem('LIMG-9', off, '%s is older than %s, which does not have it' % (what, parent.name))
                continue
            page = self.image.node(pointer, kind, level, index)
            if level:
                todo += [(Pointer.parse(page, 64 + 40 * i, off), level - 1, index * FAN + i) for i in range(FAN)]
                continue
            self.check_shared_leaf(state, parent, kind, index, LEAF_WORDS.unpack(page), off, what)

    def check_shared_leaf(self, state, parent, kind, index, mine, off, what):
        start = max([s.cursor[1] for s in (parent, state) if s.cursor[0] == kind], default=0)
        old = [i for i in range(max(0, start - index * LEAF), LEAF)
               if mine[2 * i] >> 60 >= RAW and (mine[2 * i] >> 38 & BIRTH_MASK) <= parent.epoch]
        if not old:
            return
        pointer = self.lookup(parent, kind, 0, index)
        theirs = bytes(AU)
        if pointer and pointer.state == 2:
            theirs = self.image.node(pointer, kind, 0, index)
        theirs = LEAF_WORDS.unpack(theirs)
        for i in old:
            if mine[2 * i:2 * i + 2] != theirs[2 * i:2 * i + 2]:
                self.problem('LIMG-9', off, '%s entry %d is older than %s, which does not have it'
                             % (what, i, parent.name))

    # -- free-space map ---------------------------------------------------------------------------------------------

    def free_page(self, entry, level, index):
        """The page that a table entry describes, or None where nothing was written."""
        csum, free, version, flags, zero = struct.unpack('<QIBBH', entry)
        if not any(entry):
            return None, 0
        group = index * 256 ** level
        off = (group * GROUP + 2 + 2 * level + (version & 1)) * AU
        if version > 1 or flags != 1 or zero or level and free:
            raise Damage('LIMG-2' if zero else 'LIMG-10', off, 'free-space table entry level %d index %d: version %d '
                         'flags %d free %d' % (level, index, version, flags, free))
        page = self.image.view[off:off + AU]
        if len(page) != AU:
            raise Damage('LIMG-3', off, 'free-space page level %d index %d lies outside the file' % (level, index))
        if xxh64(page, self.image.identity(FREEMAP, level, index)) != csum:
            raise Damage('LIMG-4', off, 'checksum of free-space page level %d index %d does not hold' % (level, index))
        self.metadata_bytes += AU
        return page, free

    def check_free_map(self):
        image = self.image
        entries = {0: bytes(image.sb[336:352])}
        for level in (3, 2, 1):
            lower = {}
            for index, entry in entries.items():
                try:
                    page, _ = self.free_page(entry, level, index)
                except Damage as damage:
                    self.report(damage)
                    return
                for i in range(256 if page else 0):
                    if any(page[16 * i:16 * i + 16]):
                        lower[256 * index + i] = bytes(page[16 * i:16 * i + 16])
            entries = lower
        total = 0
        for group in sorted(set(entries) | set(self.used) | set(range(image.groups))):
            if group >= image.groups:
                self.problem('LIMG-10', None, 'group %d is used, the map has %d' % (group, image.groups))
                continue
            total += self.check_bitmap(group, entries.get(group, bytes(16)))
        if total != image.used_aus:
            self.problem('LIMG-10', image.sb_off + 360, 'used AUs is %d, the bitmaps have %d' % (image.used_aus, total))

    def check_bitmap(self, group, entry):
        """Compares one bitmap with what is reachable; returns the bits set."""
        try:
            page, free = self.free_page(entry, 0, group)
        except Damage as damage:
            self.report(damage)
            return 0
        if page is None:
            bits = bytearray(GROUP)
            for au in fixed_aus(group):
                bits[au] = 1
        else:
            bits = b''.join(map(BITS.__getitem__, page))
            if free != GROUP - sum(bits):
                self.problem('LIMG-10', None, 'group %d has %d free AUs, its table entry says %d'
                             % (group, GROUP - sum(bits), free))
        if not self.incomplete and bits != self.group(group):
            mine = self.group(group)
            lost = [i for i in range(GROUP) if bits[i] > mine[i]]
            missing = [i for i in range(GROUP) if bits[i] < mine[i]]
            for name, aus in (('used, but free in the map', missing), ('free, but used in the map (lost)', lost)):
                if aus:
                    self.problem('LIMG-10', (group * GROUP + aus[0]) * AU, '%d AUs of group %d are %s'
                                 % (len(aus), group, name))
        return sum(bits)

    # -- journal ----------------------------------------------------------------------------------------------------

    def check_overlay(self):
        """What the journal maps lies in space that is free in the checkpoint, and holds."""
        for kind, volume in self.head.volumes.items():
            for leaf, entries in volume.overlay.items():
                words = [w for i in range(LEAF) for w in entries.get(i, (0, 0))]
                for run in self.image.entry_runs(volume, leaf * LEAF, LEAF, words):
                    if run[2] >= RAW:
                        self.check_run(self.head, volume, kind, *run, 0)
