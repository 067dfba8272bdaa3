# SPDX-License-Identifier: MIT
"""Damaged and hostile qcow2 images, one per field and per table, each with what a check must say.

A case is a function that returns an Image (or bytes). Its verdict:
  check   exit status of a check: 0 clean, 4 damaged or leaking, 6 refused as not supported or above a limit
  same    the numbers of leaks and corruptions equal those of qemu-img check
  mended  a repair ends with a clean image by both tools; False: a repair leaves damage; None: not tried
  maps    a map is not too long to be printed
  opens   reading the whole disk: True works, False is refused, None either (what is damaged is not met, or it is)

Run as a program it writes every image into a folder: qcow2_hostile.py FOLDER."""

import os
import struct
import sys

from qcow2_image import (COMPRESSED, COMPRESSION, COPIED, CORRUPT, DATA_FILE, DIRTY, EXT_BITMAPS, EXT_DATA, EXT_FORMAT,
                         EXT_LUKS, EXT_NAMES, EXTENDED, ZERO, Image, raw_deflate, sample)

CASES = {}


class Case:
    def __init__(self, name, make, check=4, same=False, mended=None, opens=None,
                 maps=True):
        self.maps = maps
        self.name, self.make, self.check, self.same, self.mended, self.opens = name, make, check, same, mended, opens

    def bytes(self):
        made = self.make()
        return bytes(made if isinstance(made, (bytes, bytearray)) else made.b)


def add(name, make, **verdict):
    assert name not in CASES, name
    CASES[name] = Case(name, make, **verdict)


def damaged(name, how, make=None, **verdict):
    """how(img) changes a finished image."""
    def build():
        img = (make or sample)()
        if not hasattr(img, "reftable"):
            img.finish()
        how(img)
        return img
    add(name, build, **verdict)


def field(name, value, **verdict):
    damaged("header-%s-%x" % (name, value % (1 << 64)), lambda img: img.field(name, value), **verdict)


def snapshots():
    img = sample()
    img.snapshot(b"one")
    img.write(9)
    img.snapshot(b"two")
    img.write(0)
    return img


def bitmaps():
    img = sample()
    img.bitmap(b"first", granularity_bits=12)
    img.bitmap(b"second")
    return img


# ---- whole ones

add("whole-v2", lambda: sample(version=2).finish(), check=0, same=True, opens=True)
add("whole-v3", lambda: sample().finish(), check=0, same=True, opens=True)
add("whole-512", lambda: sample(cluster_bits=9).finish(), check=0, same=True, opens=True)
add("whole-2M", lambda: sample(cluster_bits=21, size=64 << 20).finish(), check=0, same=True, opens=True)
add("whole-subclusters", lambda: sample(cluster_bits=14, extended=True).finish(), check=0, same=True, opens=True)
add("whole-refcounts-64", lambda: sample(refcount_order=6).finish(), check=0, same=True, opens=True)
add("whole-snapshots", lambda: snapshots().finish(), check=0, same=True, opens=True)
add("whole-bitmaps", lambda: bitmaps().finish(), check=0, same=True, opens=True)

# ---- header, field by field

for bits in (0, 8, 22, 63, 0xFFFFFFFF):
    field("cluster_bits", bits, opens=False)
field("magic", 0x514649FA, opens=None)
for version in (0, 1, 4, 0xFFFFFFFF):
    field("version", version, check=6, opens=False)
for size in (1 << 63, (1 << 64) - 1):
    field("size", size, check=6, opens=False)
field("size", 1 << 40, opens=False)
field("size", 0, check=0, opens=None)
field("crypt", 1, check=0, opens=False)
field("crypt", 3, check=6, opens=False)
field("l1_size", 0, opens=False)
for entries in ((32 << 20) // 8 + 1, 0xFFFFFFFF):
    field("l1_size", entries, check=6, opens=False)
field("l1_size", (32 << 20) // 8, opens=None)
for name in ("l1_off", "reftable_off"):
    for off in (0, 1, 512, (1 << 56) - 1, 1 << 63, (1 << 64) - 4096):
        field(name, off, opens=None if name == "reftable_off" else False)
field("l1_off", 1 << 40, opens=None)
field("reftable_off", 1 << 40, mended=True, opens=True)
field("reftable_clusters", 0, mended=True, opens=True)
for clusters in ((8 << 20) // 4096 + 1, 0xFFFFFFFF):
    field("reftable_clusters", clusters, check=6, opens=False)
field("reftable_clusters", (8 << 20) // 4096, mended=True, opens=True)
for nr in (65537, 0xFFFFFFFF):
    field("nb_snapshots", nr, check=6, opens=False)
field("nb_snapshots", 1, opens=False)
damaged("header-snapshots_off-odd", lambda img: img.field("snapshots_off", img.snapshots + 8), snapshots, opens=False)
damaged("header-snapshots_off-past", lambda img: img.field("snapshots_off", 1 << 40), snapshots, opens=True)
damaged("header-snapshots_off-last", lambda img: img.field("snapshots_off", (1 << 63) - 4096), snapshots, opens=None)
for bit in (5, 31, 63):
    field("incompatible", 1 << bit, check=6, opens=False)
field("incompatible", DIRTY, check=0, same=True, opens=True)
field("incompatible", CORRUPT, check=0, same=True, opens=True)
field("incompatible", DATA_FILE, opens=False)
field("incompatible", COMPRESSION, opens=False)
field("incompatible", EXTENDED, opens=False)
field("compatible", (1 << 64) - 2, check=0, same=True, opens=True)
field("autoclear", (1 << 64) - 4, check=0, same=True, opens=True)
field("autoclear", 1, check=0, opens=True)
field("autoclear", 2, mended=True)
field("compression_type", 1, opens=False)
field("compression_type", 255, check=6, opens=False)
for order in (7, 63, 0xFFFFFFFF):
    field("refcount_order", order, opens=False)
for length in (0, 72, 103, 105, 4104, 0xFFFFFFF8, 0xFFFFFFFF):
    field("header_length", length, opens=False)
for length in (0, 3, 4, 8, 71, 72, 103, 104):
    add("cut-%d" % length, lambda n=length: sample().finish().b[:n], opens=None)
for length in (511, 4096, 8192):
    add("cut-%d" % length, lambda n=length: sample().finish().b[:n], check=4, opens=None)


# ---- names and extensions

def with_backing(name=b"base", fmt=b"raw"):
    def make():
        img = sample()
        img.backing = name
        if fmt is not None:
            img.exts.append((EXT_FORMAT, fmt))
        return img
    return make


def backing_field(name, off, length, **verdict):
    def how(img):
        img.field("backing_off", off)
        img.field("backing_bytes", length)
    damaged("backing-" + name, how, with_backing(), **verdict)


backing_field("past-cluster", 4096, 4, opens=False)
backing_field("across-cluster", 4092, 8, opens=False)
backing_field("in-header", 8, 4, opens=False)
backing_field("huge", (1 << 64) - 8, 16, opens=False)
backing_field("long", 120, 1024, check=6, opens=False)
backing_field("longest", 120, 0xFFFFFFFF, check=6, opens=False)
damaged("backing-none", lambda img: None, with_backing(b"/no/such/file"), check=0, opens=False)
damaged("backing-device", lambda img: None, with_backing(b"/dev/zero"), check=0, opens=False)
damaged("backing-json", lambda img: None, with_backing(b'json:{"driver":"file","filename":"/etc/passwd"}'), check=0,
        opens=False)
damaged("backing-url", lambda img: None, with_backing(b"nbd://localhost/x"), check=0, opens=False)
damaged("backing-control", lambda img: None, with_backing(b"a\x1b[2J\nb"), check=0, opens=False)
damaged("backing-nul", lambda img: None, with_backing(b"a\0b"), opens=False, check=0)
damaged("backing-long-format", lambda img: None, with_backing(fmt=b"x" * 300), check=None, opens=False)


def ext(name, kind, data, length=None, **verdict):
    def make():
        img = sample()
        img.exts.append((kind, data))
        img.finish()
        if length is not None:
            img.put(img.ext_place(kind) + 4, length, 4)
        return img
    add("ext-" + name, make, **verdict)


ext("unknown", 0x12345678, b"keep me", check=0, same=True, opens=True)
ext("long", 0x12345678, b"x", length=0xFFFFFFFF, opens=False)
ext("past-cluster", 0x12345678, b"x", length=4096, opens=False)
ext("to-end", 0x12345678, b"x", length=4096 - 112 - 8, check=None, opens=None)
ext("names-odd", EXT_NAMES, b"\0\1" + b"x" * 51, check=None, opens=None)
ext("format-alone", EXT_FORMAT, b"raw", check=0, opens=True)
ext("luks-alone", EXT_LUKS, bytes(16), check=None, opens=None)
ext("data-file-alone", EXT_DATA, b"x", check=None, opens=None)
ext("bitmaps-short", EXT_BITMAPS, bytes(23), check=None, opens=None)
ext("bitmaps-none", EXT_BITMAPS, bytes(24), check=None, opens=None)
damaged("ext-no-end", lambda img: img.b.__setitem__(slice(112, 4096), struct.pack(">II", 0x12345678, 0) * 498),
        check=None, opens=None)
damaged("ext-v3-at-72", lambda img: img.put(72, struct.unpack(">Q", struct.pack(">II", 0x12345678, 8))[0]),
        lambda: sample(version=2), check=0, opens=True)


# ---- L1

def l1(name, value, same=False, mended=None, opens=None, index=0, check=4):
    damaged("l1-" + name, lambda img: img.put(img.l1 + 8 * index, value(img) if callable(value) else value),
            same=same, mended=mended, opens=opens, check=check)


l1("reserved-low", lambda i: i.get(i.l1) | 1, opens=None)
l1("reserved-high", lambda i: i.get(i.l1) | 1 << 56, same=True)
l1("odd", lambda i: i.get(i.l1) + 512)
l1("past-end", (1 << 40) | COPIED)
l1("farthest", 0x00FFFFFFFFFFF000 | COPIED)
l1("all-ones", (1 << 64) - 1)
l1("copied-nothing", COPIED)
l1("to-itself", lambda i: i.l1 | COPIED)
l1("to-refcount-table", lambda i: i.reftable | COPIED)
l1("to-refcount-block", lambda i: i.blocks[0] | COPIED)
l1("to-data", lambda i: i.data[0] | COPIED)
l1("not-copied", lambda i: i.get(i.l1) & ~COPIED, same=True, mended=True, opens=True)
l1("lost", 0, same=True, mended=True, opens=True)
l1("twice", lambda i: i.get(i.l1), index=1, same=True, mended=True, opens=True)


def l1_bomb():
    """Every entry of the largest L1 leads to one L2 table, all entries of which lead to one cluster."""
    img = Image(cluster_bits=9, size=(4 << 20) * 64 * 512)
    img.write(0)
    img.finish()
    for j in range(img.per_l2):
        img.put(img.l2[0] + 8 * j, img.data[0] | COPIED)
    img.b[img.l1:img.l1 + img.l1_entries * 8] = struct.pack(">Q", img.l2[0] | COPIED) * img.l1_entries
    return img


add("l1-bomb", l1_bomb, opens=None, maps=False)


# ---- L2

def l2(name, value, g=0, make=None, bitmap=None, **verdict):
    def how(img):
        at = img.entry_off(g)
        v = value(img) if callable(value) else value
        if v is not None:
            img.put(at, v)
        if bitmap is not None:
            img.put(at + 8, bitmap)
    damaged("l2-" + name, how, make, **verdict)


def sub():
    return sample(cluster_bits=14, extended=True)


l2("reserved-low", lambda i: i.data[0] | COPIED | 4, same=True, mended=False)
l2("reserved-high", lambda i: i.data[0] | COPIED | 1 << 58, same=True, mended=False)
l2("odd", lambda i: i.data[0] + 512 | COPIED, mended=False)
l2("past-end", 1 << 40 | COPIED, opens=None)
l2("last-offset", 0x00FFFFFFFFFFF000 | COPIED)
l2("copied-nothing", COPIED, check=None)
l2("not-copied", lambda i: i.data[0], same=True, mended=True, opens=True)
l2("lost", 0, same=True, mended=True, opens=True)
l2("aliased", lambda i: i.data[1] | COPIED, same=True, mended=True, opens=True)
l2("to-header", COPIED | ZERO, check=None)
l2("to-l1", lambda i: i.l1 | COPIED, opens=None, mended=False)
l2("to-itself", lambda i: i.l2[0] | COPIED, opens=None, mended=False)
l2("to-refcount-table", lambda i: i.reftable | COPIED, opens=None, mended=True)
l2("to-refcount-block", lambda i: i.blocks[0] | COPIED, opens=None, mended=True)
l2("zero-in-v2", lambda i: i.data[0] | COPIED | ZERO, make=lambda: sample(version=2))
l2("zero-flag-with-subclusters", lambda i: i.data[0] | COPIED | ZERO, make=sub)
l2("both-states", None, make=sub, bitmap=1 << 32 | 0xFFFFFFFF)
l2("nowhere-allocated", 0, make=sub, bitmap=0xF)
l2("all-states", None, make=sub, bitmap=(1 << 64) - 1)
l2("packed-past-end", lambda i: i.descriptor(1 << 30, 0), g=6)
l2("packed-over-end", lambda i: i.descriptor(len(i.b) - 512, 7), g=6)
l2("packed-just-over-end", lambda i: i.descriptor(len(i.b) - 4096, 15), g=6)
l2("packed-all-ones", (1 << 64) - 1, g=6)
l2("packed-widest", lambda i: i.descriptor(i.packed[6], 15), g=6, check=None)
l2("packed-copied", lambda i: i.get(i.entry_off(6)) | COPIED, g=6, same=True, mended=True)
l2("packed-nothing", COMPRESSED, g=6)
l2("packed-garbage", lambda i: i.descriptor(i.data[0], 1), g=6)
l2("packed-with-subclusters", None, g=6, make=sub, bitmap=1)


def cut_in_last_sector():
    """The last compressed cluster ends where the file does, inside the sector that its entry names."""
    img = Image()
    img.write(0)
    img.finish()
    at = img.entry_off(1)
    off = img.alloc()
    z = raw_deflate(b"x" * img.cluster)
    img.b[off:off + len(z)] = z
    img.refcount(off >> img.bits, 1)
    img.put(at, img.descriptor(off, 1))
    del img.b[off + len(z):]
    return img


def long_header(length):
    """Fields behind those that are known; extensions stand where the header says that it ends."""
    def make():
        img = Image()
        img.write(0)
        img.exts.append((0x12345678, b"after the header"))
        img.finish()
        ext = bytes(img.b[112:512])
        img.b[104:512] = bytes(408)
        img.b[length:length + len(ext)] = ext
        img.field("header_length", length)
        return img
    return make


add("packed-ends-with-file", cut_in_last_sector, check=0, same=True, opens=True)
add("header-of-104", long_header(104), check=0, same=True, opens=True)
add("header-of-160", long_header(160), check=0, same=True, opens=True)


def l2_bomb():
    img = sample()
    img.finish()
    for j in range(img.per_l2):
        img.put(img.l2[0] + 8 * j, img.get(img.entry_off(6)))
    return img


add("l2-bomb-packed", l2_bomb, same=True, mended=True, opens=True)



def alias_64g():
    """384 KiB that hold 64 GiB of data: every L1 entry leads to one L2 table, every entry of that to one cluster. The
    refcounts are right, so that nothing is damaged."""
    img = Image(cluster_bits=16, size=64 << 30, refcount_order=5)
    img.write(0, b"all of it")
    table = img.l2[0]
    for j in range(img.per_l2):
        img.put(table + 8 * j, img.data[0])
    img.b[img.l1:img.l1 + img.l1_entries * 8] = struct.pack(">Q", table) * img.l1_entries
    img.refs[table >> img.bits] = img.l1_entries
    img.refs[img.data[0] >> img.bits] = img.l1_entries * img.per_l2
    return img.finish()


add("alias-64g", alias_64g, check=0, same=True, opens=False, maps=False)

# ---- refcounts

damaged("refcount-leak", lambda img: img.refcount(img.alloc() >> img.bits, 1), same=True, mended=True, opens=True)
damaged("refcount-high", lambda img: img.refcount(img.data[0] >> img.bits, 5), same=True, mended=True, opens=True)
damaged("refcount-highest", lambda img: img.refcount(img.data[0] >> img.bits, 0xFFFF), same=True, mended=True, opens=True)
damaged("refcount-zero", lambda img: img.refcount(img.data[0] >> img.bits, 0), same=True, mended=True, opens=True)
damaged("refcount-zero-header", lambda img: img.refcount(0, 0), same=True, mended=True, opens=True)
damaged("refcount-zero-l2", lambda img: img.refcount(img.l2[0] >> img.bits, 0), same=True, mended=True, opens=True)
damaged("refcount-zero-block", lambda img: img.refcount(img.blocks[0] >> img.bits, 0), same=True, mended=True, opens=True)
damaged("refcount-64-all-ones", lambda img: img.refcount(img.data[0] >> img.bits, (1 << 64) - 1),
        lambda: sample(refcount_order=6), same=True, mended=True, opens=True)
damaged("refcount-low-with-snapshots", lambda img: img.refcount(img.data[1] >> img.bits, 1), snapshots, same=True,
        mended=True, opens=True)
damaged("refcounts-all-zero", lambda img: img.b.__setitem__(slice(img.blocks[0], img.blocks[0] + img.cluster),
                                                            bytes(img.cluster)), same=True, mended=True, opens=True)


def one_bit():
    img = Image(refcount_order=0)
    img.write(0)
    img.write(1)
    return img


def refuse_one_bit(img):
    img.put(img.entry_off(1), img.data[0])


damaged("refcount-1-bit", lambda img: img.refcount(img.data[0] >> img.bits, 0), one_bit, same=True, mended=True, opens=True)
damaged("refcount-1-bit-aliased", refuse_one_bit, one_bit, opens=True)


def reftable(name, value, **verdict):
    damaged("reftable-" + name, lambda img: img.put(img.reftable, value(img) if callable(value) else value), **verdict)


reftable("odd", lambda i: i.blocks[0] + 512, mended=True, opens=True)
reftable("reserved", lambda i: i.blocks[0] | 1, mended=True, opens=True)
reftable("copied", lambda i: i.blocks[0] | COPIED, mended=True, opens=True)
reftable("past-end", 1 << 40, mended=True, opens=True)
reftable("none", 0, mended=True, opens=True)
reftable("to-itself", lambda i: i.reftable, mended=True, opens=True)
reftable("to-header", 4096 * 0 + (1 << 63), mended=True, opens=True)
reftable("to-l1", lambda i: i.l1, mended=True, opens=True)
reftable("all-ones", (1 << 64) - 1, mended=True, opens=True)
damaged("reftable-block-twice", lambda img: img.put(img.reftable + 8, img.blocks[0]), mended=True, opens=True)
damaged("reftable-all-one-block", lambda img: img.b.__setitem__(slice(img.reftable, img.reftable + img.cluster),
        struct.pack(">Q", img.blocks[0]) * (img.cluster // 8)), mended=True, opens=True)


# ---- snapshots

def snap(name, at, value, nbytes=8, **verdict):
    damaged("snapshot-" + name, lambda img: img.put(img.snapshots + at, value, nbytes), snapshots, **verdict)


snap("l1-odd", 0, 513, opens=True)
snap("l1-past-end", 0, 1 << 40, opens=True)
snap("l1-header", 0, 0, opens=True)
snap("l1-last", 0, (1 << 64) - 4096, opens=True)
snap("l1-long", 8, 0xFFFFFFFF, 4, opens=True)
snap("l1-longer", 8, (32 << 20) // 8, 4, opens=True)
snap("l1-none", 8, 0, 4, same=True, opens=True, mended=True)
snap("id-long", 12, 0xFFFF, 2, opens=None)
snap("name-long", 14, 0xFFFF, 2, opens=None)
snap("id-none", 12, 0, 2, opens=None, check=None)
snap("vm-state-long", 32, 0xFFFFFFFF, 4, opens=None, check=None)
snap("extra-1025", 36, 1025, 4, opens=None)
snap("extra-most", 36, 0xFFFFFFFF, 4, opens=None)
snap("disk-long", 48, (1 << 64) - 1, opens=None, check=None)
damaged("snapshot-table-zeroed", lambda img: img.b.__setitem__(slice(img.snapshots, img.snapshots + img.snapshots_bytes),
                                                               bytes(img.snapshots_bytes)), snapshots, opens=True, mended=False)
damaged("snapshot-table-past-end", lambda img: img.field("nb_snapshots", 65536), snapshots, opens=None)
damaged("snapshot-table-on-l1", lambda img: img.field("snapshots_off", img.l1), snapshots, opens=None)


def shared_l1():
    img = snapshots().finish()
    img.put(img.snapshots + 72, img.snapshot_l1[0])
    return img


def short_extra():
    img = sample()
    img.snapshot(b"old", extra=b"")
    return img.finish()


def long_extra():
    img = sample()
    img.snapshot(b"much", extra=struct.pack(">QQ", 0, img.size) + bytes(1010))
    return img.finish()


def two_of_a_name():
    img = sample()
    img.snapshot(b"twin")
    img.snapshot(b"twin")
    return img.finish()


def odd_names():
    img = sample()
    img.snapshot(b"\x1b[2J\n\xff\0 x", sid=b"a")
    img.snapshot(b"n" * 3000, sid=b"\xfe")
    img.snapshot(b"", sid=b"")
    return img.finish()


add("snapshot-shared-l1", shared_l1, opens=True)
add("snapshot-short-extra", short_extra, same=True, mended=True, opens=True)
add("snapshot-long-extra", long_extra, mended=True, opens=True)
add("snapshot-same-name", two_of_a_name, check=0, same=True, opens=True)
add("snapshot-odd-names", odd_names, check=0, same=True, opens=True)


# ---- bitmaps

def bitmap(name, at, value, nbytes=8, **verdict):
    damaged("bitmap-" + name, lambda img: img.put(img.bitmap_dir + at, value, nbytes), bitmaps, **verdict)


def bitmap_entry(name, value, **verdict):
    damaged("bitmap-entry-" + name, lambda img: img.put(img.bitmaps[0]["table"], value(img) if callable(value) else value),
            bitmaps, **verdict)


bitmap("table-odd", 0, 513, opens=True)
bitmap("table-past-end", 0, 1 << 40, opens=True)
bitmap("table-none", 0, 0, opens=True)
bitmap("table-long", 8, 0xFFFFFFFF, 4, opens=True)
bitmap("flags", 12, 0xFFFFFFF8, 4, opens=True, check=0)
bitmap("type", 16, 2, 1, opens=True, check=0)
bitmap("granularity-0", 17, 0, 1, opens=True, check=None)
bitmap("granularity-63", 17, 63, 1, opens=True, check=None)
bitmap("granularity-255", 17, 255, 1, opens=True)
bitmap("name-none", 18, 0, 2, opens=True)
bitmap("name-long", 18, 0xFFFF, 2, opens=True)
bitmap("extra", 20, 0xFFFFFFFF, 4, opens=True)
bitmap_entry("odd", lambda i: i.bitmaps[0]["data"][0] + 512, opens=True)
bitmap_entry("reserved", lambda i: i.bitmaps[0]["data"][0] | 1 << 60, opens=True)
bitmap_entry("one-and-offset", lambda i: i.bitmaps[0]["data"][0] | 1, opens=True)
bitmap_entry("past-end", 1 << 40, opens=True)
bitmap_entry("to-l1", lambda i: i.l1, opens=True)
bitmap_entry("lost", 0, opens=True, same=True, mended=True)
damaged("bitmaps-ext-many", lambda img: img.put(img.ext_place(EXT_BITMAPS) + 8, 0xFFFFFFFF, 4), bitmaps, check=None,
        opens=None)
damaged("bitmaps-ext-reserved", lambda img: img.put(img.ext_place(EXT_BITMAPS) + 12, 1, 4), bitmaps, check=None,
        opens=None)
damaged("bitmaps-ext-long-dir", lambda img: img.put(img.ext_place(EXT_BITMAPS) + 16, (1 << 64) - 1), bitmaps, check=None,
        opens=None)
damaged("bitmaps-ext-odd-dir", lambda img: img.put(img.ext_place(EXT_BITMAPS) + 24, img.bitmap_dir + 8), bitmaps,
        check=None, opens=None)
damaged("bitmaps-ext-dir-past-end", lambda img: img.put(img.ext_place(EXT_BITMAPS) + 24, 1 << 40), bitmaps, check=None,
        opens=None)
def bitmaps_alias():
    """As many bitmaps as there can be, all in one table."""
    img = Image(cluster_bits=9, size=16 << 30)
    img.write(0)
    img.bitmap(b"m00000", granularity_bits=9)
    first = img.bitmaps[0]
    img.bitmaps = [dict(first, name=b"m%05d" % i) for i in range(65535)]
    return img.finish()


add("bitmaps-alias", bitmaps_alias, opens=None, maps=False)
damaged("bitmaps-stale", lambda img: img.field("autoclear", 0), bitmaps, same=True, opens=True, mended=True)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    for case in CASES.values():
        with open(os.path.join(folder, case.name + ".qcow2"), "wb") as f:
            f.write(case.bytes())


if __name__ == "__main__":
    main(sys.argv[1])
