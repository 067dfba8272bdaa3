# SPDX-License-Identifier: MIT
"""
What is done in the guest, and what must then be there: steps, each a verb of imgtool, with the images as they are after it.
Nothing here asks imgtool; what an image holds is worked out from what was written.
"""
import random

SECTOR = 512
SIZE = 1 << 20
SNAPSHOTS = ('limg', 'qcow2')
ALONE = ('parallels',)    # without parents
BITMAPS = ('qcow2',)
OPTIONS = {'vdi': '-o block_size=4096,align=512', 'vhd': '-o block_size=4096', 'vhdx': '-o block_size=1M', 'vmdk': '-o grain_size=4096',
           'parallels': '-o cluster_size=4096'}


def changed(old, new):
    """Sectors of the new disk that the old one does not have so."""
    old += bytes(max(0, len(new) - len(old)))
    return frozenset(at for at in range(0, len(new), SECTOR) if new[at:at + SECTOR] != old[at:at + SECTOR])


class Bitmap:
    """since: what the disk was when recording began, None: it is off; dirty: sectors that are so besides."""

    def __init__(self, since, dirty=frozenset()):
        self.since, self.dirty = since, dirty

    def least(self, head):
        dirty = self.dirty if self.since is None else self.dirty | changed(self.since, head)
        return frozenset(at for at in dirty if at < len(head))

    def resized(self, size):
        """What is cut off comes back clean in one that is off, and changed in one that is on."""
        return self if self.since is not None else Bitmap(None, frozenset(at for at in self.dirty if at < size))


class Image:
    def __init__(self, head, snaps=None, parent=None, bitmaps=None):
        self.head, self.snaps, self.parent, self.bitmaps = head, snaps or {}, parent, bitmaps or {}

    def but(self, **changes):
        return Image(**{'head': self.head, 'snaps': self.snaps, 'parent': self.parent, 'bitmaps': self.bitmaps, **changes})

    def resized(self, head):
        return self.but(head=head, bitmaps={name: bitmap.resized(len(head)) for name, bitmap in self.bitmaps.items()})

    def view(self):
        return self.head, self.snaps


class Step:
    """
    line     what the guest's shell does
    after    what is there then, {name: Image}
    torn     images whose disk may, until it is done, be partly as before and partly as after, sector by sector
    again    words of imgtool that end what was interrupted
    damaged  an image that has something to repair until this is done
    """

    def __init__(self, line, after, torn=(), again=None, damaged=None):
        self.line, self.after, self.torn, self.again, self.damaged = line, after, torn, again, damaged


class Scenario:
    """Steps for one format, each verb at least once; `more` others by chance; below 0: only the first few."""

    def __init__(self, fmt, rng, payload, more=0):
        self.format, self.rng, self.payload = fmt, rng, payload
        self.options = '-o cluster_size=%d' % rng.choice((4096, 65536)) if fmt == 'qcow2' else OPTIONS.get(fmt, '')
        self.images, self.steps, self.fresh, self.places = {}, [], 0, {}
        # What is written a second time is written in place, which changes nothing of a file but data and its time.
        every = ('create', 'write', 'snapshot', 'write', 'rewrite', 'bitmap_add', 'overlay', 'write_overlay', 'convert',
                 'bitmap_add_copy', 'write_copy', 'snapshot_copy', 'amend', 'resize', 'revert', 'bitmap_clear', 'rename', 'delete',
                 'rebase', 'commit', 'bitmap_switch', 'bitmap_merge', 'rewrite_overlay', 'commit', 'bitmap_remove',
                 'write_overlay', 'flatten', 'leak', 'repair')
        of_overlays = ('overlay', 'write_overlay', 'rewrite_overlay', 'rebase', 'commit', 'flatten') if fmt in ALONE else ()
        for name in every if more >= 0 else every[:4]:
            if name not in of_overlays:
                getattr(self, name)()
        if more < 0:
            return
        others = ('write_copy', 'write_overlay', 'snapshot_copy', 'resize', 'revert', 'rename', 'delete', 'rebase', 'commit',
                  'write_copy', 'convert', 'overlay', 'bitmap_add', 'bitmap_add_copy', 'bitmap_clear', 'bitmap_switch', 'bitmap_merge')
        for _ in range(more):
            getattr(self, rng.choice([name for name in others if name not in of_overlays]))()

    def file(self, name):
        return '%s.%s' % (name, self.format)

    def add(self, line, changes, **more):
        self.images = {**self.images, **changes}
        self.steps.append(Step(line, self.images, **more))

    def imgtool(self, words, changes, **more):
        self.add('tool ' + words, changes, **more)

    # ---- verbs ----

    def create(self):
        name = self.file('base')
        self.imgtool('create -q -f %s %s %s %d' % (self.format, self.options, name, SIZE), {name: Image(bytes(SIZE))})

    def write_to(self, name, again=False):
        image, rng = self.images[name], self.rng
        sectors = rng.choice((1, 8, 61, 300, 700))
        first = rng.randrange(len(image.head) // SECTOR - sectors)
        if rng.random() < .5:
            first = first // 8 * 8
        if again:
            first, sectors = self.places[name]
        self.places[name] = first, sectors
        source = rng.randrange(len(self.payload) // SECTOR - sectors)
        data, off = self.payload[source * SECTOR:(source + sectors) * SECTOR], first * SECTOR
        self.add('part %d %d | tool write -q %s --offset %d' % (source, sectors, name, off),
                 {name: image.but(head=image.head[:off] + data + image.head[off + len(data):])}, torn=(name,))

    def write(self):
        self.write_to(self.file('base'))

    def rewrite(self):
        self.write_to(self.file('base'), True)

    def write_overlay(self):
        self.write_to(self.file('over'))

    def rewrite_overlay(self):
        self.write_to(self.file('over'), True)

    def write_copy(self):
        self.write_to(self.file('copy'))

    def snapshot_of(self, name):
        if self.format in SNAPSHOTS:
            self.fresh += 1
            image, snap = self.images[name], 's%d' % self.fresh
            self.imgtool('snapshot create -q %s@%s' % (name, snap), {name: image.but(snaps={**image.snaps, snap: image.head})})

    def snapshot(self):
        self.snapshot_of(self.file('base'))

    def snapshot_copy(self):
        self.snapshot_of(self.file('copy'))

    def overlay(self):
        base, name = self.file('base'), self.file('over')
        there = '--force ' if name in self.images else ''
        self.imgtool('create -q %s-f %s -b %s %s' % (there, self.format, base, name),
                     {name: Image(self.images[base].head, parent=base)})

    def convert(self):
        """Of a snapshot where there is one, into a new file or over one that is there."""
        base, rng = self.file('base'), self.rng
        snaps = self.images[base].snaps
        snap = rng.choice(list(snaps)) if snaps else None
        for name in ('copy', 'other') if self.file('copy') not in self.images else ('more%d' % rng.randrange(2),):
            there = '--force ' if self.file(name) in self.images else ''
            packed = '-c zstd ' if self.format == 'qcow2' and rng.random() < .5 else ''
            self.imgtool('convert -q %s%s-O %s %s %s %s' % (there, packed, self.format, self.options,
                                                            base + ('@' + snap if snap else ''), self.file(name)),
                         {self.file(name): Image(snaps[snap] if snap else self.images[base].head)})

    def resize(self):
        name = self.file('copy')
        image = self.images[name]
        size = SIZE + self.rng.randrange(1, 3) * (256 << 10)
        if self.format == 'vhdx' or image.snaps and self.rng.random() < .5:
            size = max(size, len(image.head))
        self.imgtool('resize -q --shrink %s %d' % (name, size), {name: image.resized((image.head + bytes(SIZE))[:size])})

    def snapshot_to_use(self):
        image = self.images[self.file('copy')]
        return (self.file('copy'), image, self.rng.choice(list(image.snaps))) if image.snaps else (None, None, None)

    def revert(self):
        name, image, snap = self.snapshot_to_use()
        if name:
            self.imgtool('revert -q %s@%s' % (name, snap), {name: image.resized(image.snaps[snap])})

    def rename(self):
        name, image, snap = self.snapshot_to_use()
        if name:
            self.fresh += 1
            snaps = {('r%d' % self.fresh if old == snap else old): data for old, data in image.snaps.items()}
            self.imgtool('snapshot rename -q %s@%s r%d' % (name, snap, self.fresh), {name: image.but(snaps=snaps)})

    def delete(self):
        name, image, snap = self.snapshot_to_use()
        if name:
            snaps = {old: data for old, data in image.snaps.items() if old != snap}
            self.imgtool('snapshot delete -q %s@%s' % (name, snap), {name: image.but(snaps=snaps)})

    def amend(self):
        """Of content nothing, but it is a writer's session: a bitmap that was in use when it ended is of no more use."""
        if self.format == 'qcow2':
            name = self.file('copy')
            self.imgtool('amend -q -o lazy_refcounts=%s %s' % (self.rng.choice(('on', 'off')), name), {name: self.images[name].but()})

    # ---- bitmaps ----

    def has_overlay(self, name):
        """Whose pin every write would break, also one that changes nothing of the disk."""
        return any(image.parent == name for image in self.images.values())

    def change_bitmap(self, name, verb, bitmap, new, *words):
        image = self.images[name]
        bitmaps = {old: had for old, had in image.bitmaps.items() if old != bitmap}
        self.imgtool(' '.join(('bitmap', verb, '-q', name, bitmap, *words)),
                     {name: image.but(bitmaps={**bitmaps, **({bitmap: new} if new else {})})})

    def bitmap_add_to(self, name):
        if self.format in BITMAPS and not self.has_overlay(name):
            self.fresh += 1
            self.change_bitmap(name, 'add', 'b%d' % self.fresh, Bitmap(self.images[name].head), '-g',
                               str(self.rng.choice((512, 4096, 65536))))

    def bitmap_add(self):
        self.bitmap_add_to(self.file('base'))

    def bitmap_add_copy(self):
        self.bitmap_add_to(self.file('copy'))

    def bitmap_to_use(self):
        having = [name for name in sorted(self.images) if self.images[name].bitmaps and not self.has_overlay(name)]
        name = self.rng.choice(having) if having else None
        return (name, self.images[name], self.rng.choice(sorted(self.images[name].bitmaps))) if name else (None, None, None)

    def bitmap_clear(self):
        name, image, bitmap = self.bitmap_to_use()
        if name:
            self.change_bitmap(name, 'clear', bitmap, Bitmap(None if image.bitmaps[bitmap].since is None else image.head))

    def bitmap_switch(self):
        name, image, bitmap = self.bitmap_to_use()
        if name:
            now = image.bitmaps[bitmap]
            self.change_bitmap(name, 'enable' if now.since is None else 'disable', bitmap,
                               Bitmap(image.head if now.since is None else None, now.least(image.head)))

    def bitmap_merge(self):
        """Into one that is made for it."""
        name, image, bitmap = self.bitmap_to_use()
        if name:
            self.bitmap_add_to(name)
            into = 'b%d' % self.fresh
            self.change_bitmap(name, 'merge', into, Bitmap(image.head, image.bitmaps[bitmap].least(image.head)), bitmap)

    def bitmap_remove(self):
        name, _, bitmap = self.bitmap_to_use()
        if name:
            self.change_bitmap(name, 'remove', bitmap, None)

    def rebase(self):
        """To another parent of the same size."""
        name, image = self.file('over'), self.images[self.file('over')]
        if not image.parent:
            return
        parent = self.file('other' if image.parent == self.file('base') else 'base')
        words = 'rebase -q -b %s %s' % (parent, name)
        self.imgtool(words, {name: image.but(parent=parent)}, again=words)

    def commit(self):
        name, image = self.file('over'), self.images[self.file('over')]
        if not image.parent:
            return
        words = 'commit -q ' + name
        self.imgtool(words, {image.parent: self.images[image.parent].but(head=image.head)}, torn=(image.parent,), again=words)

    def flatten(self):
        name = self.file('over')
        words = 'flatten -q ' + name
        self.imgtool(words, {name: self.images[name].but(parent=None)}, again=words)

    def leak(self):
        """A fresh image that is damaged where a repair loses nothing: what changes it is not ours and flushes."""
        name = self.file('sick')
        made = {name: Image(bytes(SIZE))}
        if self.format == 'qcow2':
            self.imgtool('create -q -f qcow2 -o cluster_size=4096 %s %d' % (name, SIZE), made)
            # The layout is that of a new image: header, refcount table, refcounts, L1; then four that nobody refers to.
            self.add("printf '\\0\\1\\0\\1\\0\\1\\0\\1' | dd of=%s bs=1 seek=%d conv=notrunc,fsync 2>/dev/null && truncate -s 32768 %s"
                     % (name, 2 * 4096 + 4 * 2, name), {}, damaged=name)
        elif self.format == 'limg':
            self.imgtool('create -q -f limg %s %d' % (name, SIZE), made)
            self.add("for at in 60 4156; do printf '\\377' | dd of=%s bs=1 seek=$at conv=notrunc,fsync 2>/dev/null; done" % name, {},
                     damaged=name)

    def repair(self):
        name = self.file('sick')
        if name in self.images:
            self.imgtool('check -q --repair ' + name, {}, damaged=name)


def payload(seed, size):
    return random.Random(seed).randbytes(size)
