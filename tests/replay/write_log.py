# SPDX-License-Identifier: MIT
"""
What the kernel's dm-log-writes wrote down, and the states in which a power failure could have left the disk.

The log (Documentation/admin-guide/device-mapper/log-writes.rst of the kernel, and the structures in its source): sector 0
holds magic, version, number of entries and sector size, little-endian; after it each entry is a sector of its own (sector,
number of sectors, flags, length of what a mark says, which follows it there), and then the data that was written.

The order of the log is what makes it a proof. A write enters it when the next flush *begins*, if it had ended by then;
writes with FUA and marks enter it at once. So whatever stands before a mark was durable when the program that made the mark
had ended, and what it only thought durable stands behind. Since one flush, in the log, until the next one all other writes
were in the disk's cache: a failure at any entry leaves what stands up to the last flush, and since then each FUA and any
part of the rest.
"""
import struct

MAGIC, VERSION = 0x6a736677736872, 1
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
UNIT = 512    # of sectors, whatever the log's own sectors are
CHUNK = 65536


class Broken(Exception):
    pass


class Entry:
    def __init__(self, fields, data):
        sector, sectors, self.flags, length = fields
        self.off, self.size = sector * UNIT, sectors * UNIT
        self.mark = data[32:32 + length].decode().rstrip('\0').replace(':', ' ') if self.flags & MARK else None
        self.at = None    # where its data is in the log

    def ordered(self):
        """It is durable when it has ended, without another flush."""
        return self.flags & (FUA | MARK) or not self.size


def entries(path):
    """-> all entries of a log"""
    found = []
    with open(path, 'rb') as log:
        magic, version, count, sector_bytes = struct.unpack('<QQQI', log.read(28))
        if (magic, version) != (MAGIC, VERSION):
            raise Broken('%s is no log of version %d' % (path, VERSION))
        at = sector_bytes
        for number in range(count):
            log.seek(at)
            head = log.read(sector_bytes)
            if len(head) < 32:
                raise Broken('%s ends before entry %d' % (path, number))
            entry = Entry(struct.unpack('<QQQQ', head[:32]), head)
            at += sector_bytes
            if not entry.flags & (DISCARD | MARK):
                entry.at = at
                at += -(-entry.size // sector_bytes) * sector_bytes
            found.append(entry)
    return found


class State:
    """
    A failure before entry `cut`: of the writes since the last flush those in `lost` are not there, and of the one at `cut`
    only the pieces in `torn`, if any.
    """

    def __init__(self, cut, lost=(), torn=()):
        self.cut, self.lost, self.torn = cut, frozenset(lost), tuple(torn)

    def __str__(self):
        return 'entry %d%s%s' % (self.cut, ', %d writes lost' % len(self.lost) if self.lost else '',
                                 ', %d pieces of the next one there' % len(self.torn) if self.torn else '')


def at_marks(log):
    """-> a state right behind each mark"""
    return [State(number + 1) for number, entry in enumerate(log) if entry.flags & MARK]


def choose(log, first, rng, count, piece):
    """
    -> up to `count` states behind entry `first`, sorted: half of them right behind marks, and of the others half with lost
    writes or a torn one. Pieces in which writes tear are of `piece` bytes.
    """
    marks = [state.cut for state in at_marks(log) if state.cut > first]
    states = {(number, (), ()) for number in rng.sample(marks, min(len(marks), max(1, count // 2)))}
    last = max(marks, default=len(log))    # behind it nothing is going on
    for _ in range(4 * count):    # some come twice
        if len(states) >= count:
            break
        cut, lost, torn = rng.randrange(first, last + 1), (), ()
        if rng.random() < .5:
            flush = max((n for n in range(first, cut) if log[n].flags & FLUSH), default=first)
            loose = [n for n in range(flush, cut) if not log[n].ordered()]
            lost = rng.choice((loose, [n for n in loose if rng.random() < .5], rng.sample(loose, min(1, len(loose)))))
            if cut < len(log) and log[cut].at and rng.random() < .7:
                torn = [at for at in range(0, log[cut].size, piece) if rng.random() < .5]
        states.add((cut, tuple(lost), tuple(torn)))
    return [State(*state) for state in sorted(states)]


class Disk:
    """The disk as it was before, onto which writes of the log are put."""

    def __init__(self, base, log_path, log, piece):
        with open(base, 'rb') as file:
            self.data = bytearray(file.read())
        self.log, self.piece, self.done = log, piece, 0
        self.file = open(log_path, 'rb')    # pylint: disable=consider-using-with
        self.used = {at for at in range(0, len(self.data), CHUNK) if self.data.count(0, at, at + CHUNK) != CHUNK}

    def put(self, entry, undo, pieces=None):
        if entry.flags & MARK or not entry.size:
            return
        if entry.off + entry.size > len(self.data):
            raise Broken('a write at 0x%x goes past the end of the disk' % entry.off)
        undo.append((entry.off, bytes(self.data[entry.off:entry.off + entry.size])))
        data = bytes(entry.size)    # what is discarded reads as zeros
        if entry.at:
            self.file.seek(entry.at)
            data = self.file.read(entry.size)
        for at in range(0, entry.size, entry.size) if pieces is None else pieces:
            part = data[at:] if pieces is None else data[at:at + self.piece]
            self.data[entry.off + at:entry.off + at + len(part)] = part
        self.used.update(range(entry.off // CHUNK * CHUNK, entry.off + entry.size, CHUNK))

    def save(self, state, path, at):
        """Writes a state into a file that is a hole there. States come in the order of their cuts."""
        safe = max((n for n in range(self.done, state.cut) if self.log[n].flags & FLUSH), default=self.done)
        for entry in self.log[self.done:safe]:
            self.put(entry, [])
        self.done, undo = safe, []
        for number in range(safe, state.cut):
            if number not in state.lost:
                self.put(self.log[number], undo)
        if state.torn:
            self.put(self.log[state.cut], undo, state.torn)
        with open(path, 'r+b') as file:
            for start in sorted(self.used):
                chunk = self.data[start:start + CHUNK]
                if chunk.count(0) != len(chunk):
                    file.seek(at + start)
                    file.write(chunk)
        for off, old in reversed(undo):
            self.data[off:off + len(old)] = old
