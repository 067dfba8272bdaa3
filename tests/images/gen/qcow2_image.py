# SPDX-License-Identifier: MIT
"""Makes qcow2 images byte by byte, whole ones first, so that a test can damage them at places it knows.

Written from the format's document. Everything that an image consists of stands at a place that the object names: l1,
reftable, blocks[i], l2[i] (by L1 index), data[g] (by guest cluster), snapshots, snapshot_l1[i], bitmap_dir and so on. After
finish(), image.b is the file; put() and get() change and read big-endian numbers in it."""

import struct
import zlib

MAGIC = 0x514649FB
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED = 1, 2, 4, 8, 16
EXT_END, EXT_FORMAT, EXT_NAMES = 0, 0xE2792ACA, 0x6803F857
EXT_BITMAPS, EXT_LUKS, EXT_DATA = 0x23852875, 0x0537BE77, 0x44415441

# Header fields: offset, bytes.
FIELDS = {
    "magic": (0, 4), "version": (4, 4), "backing_off": (8, 8), "backing_bytes": (16, 4), "cluster_bits": (20, 4),
    "size": (24, 8), "crypt": (32, 4), "l1_size": (36, 4), "l1_off": (40, 8), "reftable_off": (48, 8),
    "reftable_clusters": (56, 4), "nb_snapshots": (60, 4), "snapshots_off": (64, 8), "incompatible": (72, 8),
    "compatible": (80, 8), "autoclear": (88, 8), "refcount_order": (96, 4), "header_length": (100, 4),
    "compression_type": (104, 1),
}


def raw_deflate(data):
    c = zlib.compressobj(9, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


class Image:
    def __init__(self, version=3, cluster_bits=12, size=4 << 20, refcount_order=4, extended=False, incompatible=0,
                 autoclear=0):
        self.version, self.bits, self.size, self.order = version, cluster_bits, size, refcount_order
        self.cluster = 1 << cluster_bits
        self.extended = extended
        self.entry = 16 if extended else 8
        self.per_l2 = self.cluster // self.entry
        self.incompatible = incompatible | (EXTENDED if extended else 0)
        self.autoclear = autoclear
        self.external = bool(incompatible & DATA_FILE)
        self.b = bytearray()
        self.refs = {}
        self.exts = []
        self.backing = b""
        self.l2, self.data, self.packed = {}, {}, {}
        self.tail = 0  # where compressed data goes on
        self.snaps, self.bitmaps, self.snapshot_l1 = [], [], []
        self.snapshots = self.bitmap_dir = 0
        self.alloc(1)  # header
        self.l1_entries = max(1, -(-size // (self.cluster * self.per_l2)))
        self.l1 = self.alloc(-(-self.l1_entries * 8 // self.cluster))

    def alloc(self, clusters=1):
        """Clusters at the end of the file, refcount one each."""
        off = -(-len(self.b) // self.cluster) * self.cluster
        self.b.extend(bytes(off + clusters * self.cluster - len(self.b)))
        for c in range(off >> self.bits, (off >> self.bits) + clusters):
            self.refs[c] = 1
        self.tail = 0
        return off

    def put(self, off, value, nbytes=8):
        if off + nbytes > len(self.b):
            self.b.extend(bytes(off + nbytes - len(self.b)))
        self.b[off:off + nbytes] = (value % (1 << nbytes * 8)).to_bytes(nbytes, "big")

    def get(self, off, nbytes=8):
        return int.from_bytes(self.b[off:off + nbytes], "big")

    def field(self, name, value=None):
        off, nbytes = FIELDS[name]
        if value is not None:
            self.put(off, value, nbytes)
        return self.get(off, nbytes)

    # ---- content

    def l2_of(self, g):
        """The table of guest cluster g, made if it is missing."""
        i = g // self.per_l2
        if i not in self.l2:
            self.l2[i] = self.alloc()
            self.put(self.l1 + 8 * i, self.l2[i] | COPIED)
        elif self.refs[self.l2[i] >> self.bits] > 1:  # a snapshot has it, too
            old, self.l2[i] = self.l2[i], self.alloc()
            self.refs[old >> self.bits] -= 1
            self.b[self.l2[i]:self.l2[i] + self.cluster] = self.b[old:old + self.cluster]
            self.put(self.l1 + 8 * i, self.l2[i] | COPIED)
        return self.l2[i]

    def entry_off(self, g):
        return self.l2_of(g) + g % self.per_l2 * self.entry

    def write(self, g, data=b"\x5a"):
        """Guest cluster g holds data, repeated. Returns its place."""
        at = self.entry_off(g)
        if g in self.data and not self.external:  # a snapshot keeps it
            self.refs[self.data[g] >> self.bits] -= 1
        if self.external:
            self.data[g] = g << self.bits
        else:
            self.data[g] = self.alloc()
            self.b[self.data[g]:self.data[g] + self.cluster] = (data * self.cluster)[:self.cluster]
        self.put(at, self.data[g] | COPIED)
        if self.extended:
            self.put(at + 8, 0xFFFFFFFF)
        return self.data[g]

    def zero(self, g):
        at = self.entry_off(g)
        if self.extended:
            self.put(at + 8, 0xFFFFFFFF << 32)
        else:
            self.put(at, ZERO)

    def write_packed(self, g, data=b"packed"):
        at = self.entry_off(g)
        z = raw_deflate((data * self.cluster)[:self.cluster])
        if not self.tail or self.tail % self.cluster == 0 or self.tail + len(z) > len(self.b):
            self.tail = self.alloc()
        else:
            self.refs[self.tail >> self.bits] += 1
        off = self.tail
        self.b[off:off + len(z)] = z
        sectors = (off + len(z) - 1) // 512 - off // 512
        self.tail = off + len(z)
        self.packed[g] = off
        self.put(at, self.descriptor(off, sectors))
        return off

    def descriptor(self, off, sectors):
        return COMPRESSED | sectors << (62 - (self.bits - 8)) | off

    def snapshot(self, name=b"snap", sid=None, extra=None, vm=0):
        """As the head is now. Its clusters are shared, so that COPIED goes."""
        n = -(-self.l1_entries * 8 // self.cluster)
        l1 = self.alloc(n)
        for i, l2 in self.l2.items():
            for j in range(self.per_l2):
                e = self.get(l2 + j * self.entry)
                if e & COMPRESSED:
                    self.refs[(e & ((1 << (62 - (self.bits - 8))) - 1)) >> self.bits] += 1
                elif e & 0x00FFFFFFFFFFFE00:
                    self.refs[(e & 0x00FFFFFFFFFFFE00) >> self.bits] += 1
                    self.put(l2 + j * self.entry, e & ~COPIED)
            self.put(self.l1 + 8 * i, l2)
            self.refs[l2 >> self.bits] += 1
        self.b[l1:l1 + n * self.cluster] = self.b[self.l1:self.l1 + n * self.cluster]
        if extra is None:
            extra = struct.pack(">QQQ", vm, self.size, (1 << 64) - 1)
        self.snapshot_l1.append(l1)
        self.snaps.append((l1, sid or b"%d" % (len(self.snaps) + 1), name, extra, vm))

    def bitmap(self, name=b"bitmap", granularity_bits=16, flags=2, extra=b"", kind=1):
        bits = -(-self.size // (1 << granularity_bits))
        clusters = max(1, -(-(-(-bits // 8)) // self.cluster))
        table = self.alloc(-(-clusters * 8 // self.cluster))
        where = []
        for i in range(clusters):
            where.append(self.alloc())
            self.put(table + 8 * i, where[-1])
            self.b[where[-1]] = 1
        self.bitmaps.append({"table": table, "entries": clusters, "flags": flags, "kind": kind, "name": name,
                             "granularity_bits": granularity_bits, "extra": extra, "data": where})
        self.autoclear |= 1

    # ---- the rest

    def store_snapshots(self):
        if not self.snaps:
            return
        table = b""
        for l1, sid, name, extra, vm in self.snaps:
            e = struct.pack(">QIHHIIQII", l1, self.l1_entries, len(sid), len(name), 1700000000, 0, 0, vm, len(extra))
            e += extra + sid + name
            table += e + bytes(-len(e) % 8)
        self.snapshots_bytes = len(table)
        self.snapshots = self.alloc(-(-len(table) // self.cluster))
        self.b[self.snapshots:self.snapshots + len(table)] = table

    def store_bitmaps(self):
        if not self.bitmaps:
            return
        d = b""
        for m in self.bitmaps:
            e = struct.pack(">QIIBBHI", m["table"], m["entries"], m["flags"], m["kind"], m["granularity_bits"],
                            len(m["name"]), len(m["extra"])) + m["extra"] + m["name"]
            d += e + bytes(-len(e) % 8)
        self.bitmap_dir = self.alloc(-(-len(d) // self.cluster))
        self.b[self.bitmap_dir:self.bitmap_dir + len(d)] = d
        self.exts.append((EXT_BITMAPS, struct.pack(">IIQQ", len(self.bitmaps), 0, len(d), self.bitmap_dir)))

    def store_refcounts(self):
        per_block = self.cluster * 8 >> self.order
        clusters = len(self.b) >> self.bits
        table_clusters = blocks = 1
        while True:
            nr = clusters + table_clusters + blocks
            need = -(-nr // per_block)
            if need <= blocks and need * 8 <= table_clusters * self.cluster:
                break
            blocks = max(blocks, need)
            table_clusters = max(table_clusters, -(-need * 8 // self.cluster))
        self.reftable = self.alloc(table_clusters)
        self.reftable_clusters = table_clusters
        self.blocks = [self.alloc() for _ in range(blocks)]
        for i, off in enumerate(self.blocks):
            self.put(self.reftable + 8 * i, off)
        for c, n in self.refs.items():
            self.refcount(c, n)

    def refcount(self, cluster, value=None):
        """Of a cluster, by index."""
        per_block = self.cluster * 8 >> self.order
        block, i = self.blocks[cluster // per_block], cluster % per_block
        if self.order >= 3:
            n = 1 << (self.order - 3)
            if value is not None:
                self.put(block + i * n, value, n)
            return self.get(block + i * n, n)
        width = 1 << self.order
        at, shift = block + i * width // 8, i * width % 8
        mask = ((1 << width) - 1) << shift
        if value is not None:
            self.b[at] = self.b[at] & ~mask | value << shift
        return (self.b[at] & mask) >> shift

    def store_header(self):
        v3 = self.version >= 3
        ext = b"".join(struct.pack(">II", t, len(d)) + d + bytes(-len(d) % 8) for t, d in self.exts)
        ext += bytes(8)  # the end
        length = 112 if v3 else 72
        name_off = length + len(ext) if self.backing else 0
        h = struct.pack(">IIQIIQIIQQIIQ", MAGIC, self.version, name_off, len(self.backing), self.bits, self.size, 0,
                        self.l1_entries, self.l1, self.reftable, self.reftable_clusters, len(self.snaps),
                        self.snapshots)
        if v3:
            h += struct.pack(">QQQIIB7x", self.incompatible, 0, self.autoclear, self.order, 112,
                             1 if self.incompatible & COMPRESSION else 0)
        h += ext + self.backing
        assert len(h) <= self.cluster
        self.ext_off = length
        self.b[0:len(h)] = h

    def ext_place(self, kind):
        """Where an extension's header stands."""
        off = self.ext_off
        while self.get(off, 4) not in (kind, EXT_END):
            off += 8 + -(-self.get(off + 4, 4) // 8) * 8
        return off

    def finish(self):
        self.store_snapshots()
        self.store_bitmaps()
        self.store_refcounts()
        self.store_header()
        return self

    def save(self, path):
        with open(path, "wb") as f:
            f.write(self.b)


def sample(**how):
    """A little of everything that the geometry allows: data, zeros, compressed clusters."""
    img = Image(**how)
    for g in (0, 1, 2, 5):
        img.write(g, b"%d" % g)
    if img.version >= 3:
        img.zero(3)
    if not img.external:
        img.write_packed(6)
        img.write_packed(7)
    img.write((img.size >> img.bits) - 1, b"far")
    return img
