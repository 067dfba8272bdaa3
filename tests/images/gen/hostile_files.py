# SPDX-License-Identifier: MIT
"""Files that are hostile by what they name, by being several things at once, or by what their disk holds, in all formats that
an inspection knows, and honest ones beside them.

A case has a name, bytes, the exit status of `imgtool inspect`, the rules that must be among its findings, and what the
rules of OpenStack's format inspector (oslo_utils.imageutils.format_inspector) make of it: "pass", "fail: CHECK",
"several formats". The latter was derived from its documented checks, not from running it.

Run as a program it writes every file into a folder: hostile_files.py FOLDER; --table prints the comparison as markdown."""

import os
import struct
import sys
import zlib

import qcow2_hostile
import vhdx_image
from qcow2_image import COPIED, DATA_FILE, EXT_DATA, EXT_FORMAT, EXT_LUKS, Image, sample

SECTOR = 512
CASES = {}


class Case:
    def __init__(self, name, make, status, rules, theirs, what, args):
        self.name, self.make, self.status, self.rules = name, make, status, rules.split()
        self.theirs, self.what, self.args = theirs, what, args

    def bytes(self):
        made = self.make()
        return bytes(made if isinstance(made, (bytes, bytearray)) else made.b)


def case(name, status, rules, theirs, what, args=()):
    """Decorates the function that makes it."""
    assert name not in CASES, name

    def add(make):
        CASES[name] = Case(name, make, status, rules, theirs, what, args)
        return make
    return add


def put(b, off, data):
    if off + len(data) > len(b):
        b.extend(bytes(off + len(data) - len(b)))
    b[off:off + len(data)] = data


# ---- qcow2

def qcow2(backing=b"", exts=(), incompatible=0, **how):
    img = sample(incompatible=incompatible, **how)
    img.backing = backing
    img.exts.extend(exts)
    return img.finish()


@case("qcow2-honest", 0, "", "pass", "data, zeros, compressed clusters")
def _():
    return qcow2()


@case("qcow2-backing", 6, "backing-file reference-outside", "fail: backing_file", "backing file /etc/passwd")
def _():
    return qcow2(b"/etc/passwd", [(EXT_FORMAT, b"raw")])


@case("qcow2-backing-inside", 6, "backing-file backing-format-missing", "fail: backing_file", "backing file without its format")
def _():
    return qcow2(b"base.img")


@case("qcow2-backing-up", 6, "backing-file reference-outside", "fail: backing_file", "backing file through ..")
def _():
    return qcow2(b"sub/../../base.img", [(EXT_FORMAT, b"raw")])


@case("qcow2-backing-json", 6, "backing-file reference-syntax", "fail: backing_file", "backing file as JSON text")
def _():
    return qcow2(b'json:{"driver":"nbd","host":"x"}', [(EXT_FORMAT, b"raw")])


@case("qcow2-backing-no-name", 6, "backing-file", "fail: backing_file", "an offset of a name of no bytes")
def _():
    img = qcow2()
    img.field("backing_off", 0x200)
    return img


@case("qcow2-data-file", 6, "data-file reference-outside", "fail: data_file", "data in /dev/sda")
def _():
    return qcow2(exts=[(EXT_DATA, b"/dev/sda")], incompatible=DATA_FILE)


@case("qcow2-data-file-unnamed", 6, "data-file", "fail: data_file", "data in a file that is not named")
def _():
    return qcow2(incompatible=DATA_FILE)


@case("qcow2-data-file-hidden", 6, "hidden-reference reference-outside", "pass", "a data file's name without the feature bit")
def _():
    return qcow2(exts=[(EXT_DATA, b"/etc/shadow")])


@case("qcow2-unknown-feature", 6, "unknown-feature", "fail: unknown_features", "incompatible bit 40")
def _():
    img = qcow2()
    img.field("incompatible", 1 << 40)
    return img


@case("qcow2-unknown-extension", 6, "unknown-extension", "pass", "an extension of an unknown kind")
def _():
    return qcow2(exts=[(0x12345678, b"/etc/passwd")])


@case("qcow2-duplicate-extension", 6, "duplicate-extension backing-file", "fail: backing_file", "two formats of the backing file")
def _():
    return qcow2(b"base", [(EXT_FORMAT, b"raw"), (EXT_FORMAT, b"qcow2")])


@case("qcow2-slack", 0, "slack", "pass", "bytes in the header cluster that belong to nothing")
def _():
    img = qcow2()
    put(img.b, 0x800, b"/etc/passwd")
    return img


@case("qcow2-bomb", 6, "aliased-data expansion", "pass", "384 KiB that hold 64 GiB, all of one cluster")
def _():
    return qcow2_hostile.CASES["alias-64g"].bytes()


@case("qcow2-huge", 6, "limit", "pass", "a disk of 2^63 bytes")
def _():
    img = qcow2()
    img.field("size", 1 << 63)
    return img


@case("qcow2-many-snapshots", 6, "limit", "pass", "four thousand million snapshots")
def _():
    img = qcow2()
    img.field("nb_snapshots", 0xFFFFFFFF)
    return img


@case("qcow2-corrupt", 6, "corrupt", "pass", "marked as corrupt")
def _():
    img = qcow2()
    img.field("incompatible", 2)
    return img


@case("qcow2-dirty", 0, "dirty", "pass", "marked as not closed")
def _():
    img = qcow2()
    img.field("incompatible", 1)
    return img


@case("qcow2-table-outside", 6, "entry-bounds inconsistent", "pass", "an L1 entry behind the end of the file")
def _():
    img = qcow2()
    img.put(img.l1, 1 << 40 | COPIED)
    return img


@case("qcow2-table-overlap", 6, "table-overlap", "pass", "the snapshot table lies on the L1 table")
def _():
    return qcow2_hostile.CASES["snapshot-table-on-l1"].bytes()


@case("qcow2-shared-cluster", 6, "aliased-data", "pass", "two places of the disk share a cluster")
def _():
    return qcow2_hostile.CASES["l2-aliased"].bytes()


@case("qcow2-escape-name", 6, "control-characters", "pass", "a snapshot's name that clears the terminal")
def _():
    img = sample()
    img.snapshot(b"\x1b[2J")
    return img.finish()


@case("qcow2-same-name", 6, "duplicate-name snapshots", "pass", "two snapshots of one name")
def _():
    return qcow2_hostile.CASES["snapshot-same-name"].bytes()


@case("qcow2-luks", 0, "encrypted", "pass", "encrypted by LUKS")
def _():
    return qcow2_luks(luks())


@case("qcow2-luks-cost", 6, "encrypted key-derivation-cost", "pass", "a key costs 4 thousand million iterations")
def _():
    return qcow2_luks(luks(iterations=0xFFFFFFFF))


@case("qcow2-nested", 6, "nested-image", "pass", "its disk is a qcow2 that names a backing file")
def _():
    inner = bytes(qcow2(b"/etc/passwd").b)
    img = Image(size=4 << 20)
    for i in range(0, len(inner), img.cluster):
        img.write(i // img.cluster, inner[i:i + img.cluster].ljust(img.cluster, b"\0"))
    return img.finish()


@case("qcow2-vhd", 6, "several-formats", "pass", "a qcow2 with a VHD's footer")
def _():
    return bytes(qcow2().b) + vhd_footer(2, 1 << 20)


@case("qcow2-dmg", 6, "several-formats", "pass", "a qcow2 with a DMG's trailer")
def _():
    return bytes(qcow2().b) + b"koly".ljust(512, b"\0")


@case("qcow2-iso", 6, "several-formats", "several formats", "a qcow2 with a disc's descriptor at 32 KiB")
def _():
    img = sample(cluster_bits=16).finish()
    put(img.b, 32768, b"\1CD001\1")
    return img


@case("qcow2-mbr", 6, "several-formats", "several formats", "a qcow2 that ends its first sector as a boot sector")
def _():
    img = qcow2()
    put(img.b, 510, b"\x55\xaa")
    return img


@case("qcow2-cut", 4, "truncated", "pass", "60 bytes of a qcow2")
def _():
    return qcow2().b[:60]


@case("qcow2-version-9", 4, "bad-header", "fail: unknown_features", "a version that does not exist")
def _():
    img = qcow2()
    img.field("version", 9)
    return img


@case("qcow2-as-raw", 6, "format-mismatch", "fail: format", "a qcow2 that is said to be raw", ["-f", "raw"])
def _():
    return qcow2(b"/etc/passwd")


@case("raw-as-qcow2", 4, "bad-header", "fail: format", "zeros that are said to be qcow2", ["-f", "qcow2"])
def _():
    return bytes(1 << 20)


# ---- qcow, QED

@case("qcow-backing", 6, "backing-file backing-format-missing", "fail: backing_file", "version 1 with a backing file")
def _():
    name = b"/etc/passwd"
    h = struct.pack(">IIQIIQBBHIQ", 0x514649FB, 1, 48, len(name), 0, 1 << 20, 12, 9, 0, 0, 512)
    return (h + name).ljust(4096, b"\0")


@case("qed-backing", 6, "backing-file unknown-feature", "fail: banned", "with a backing file")
def _():
    name = b"../base"
    h = struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, 1 | 1 << 20, 0, 0, 65536, 1 << 20, 64, len(name))
    return (h.ljust(64, b"\0") + name).ljust(1 << 17, b"\0")


# ---- VMDK

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="%s"

# Extent description
%s

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
ddb.geometry.cylinders = "4"
"""


def descriptor(kind="monolithicSparse", extent='RW 2048 SPARSE "disk.vmdk"', more=""):
    return (DESCRIPTOR % (kind, extent) + more).encode()


def vmdk_header(capacity=2048, desc_sector=1, desc_sectors=20, directory=26):
    return struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, capacity, 128, desc_sector, desc_sectors, 512, 21, directory,
                       128, 0, b"\n \r\n", 0).ljust(512, b"\0")


def vmdk(text, **how):
    return (vmdk_header(**how) + text).ljust(128 * SECTOR, b"\0")


@case("vmdk-honest", 0, "", "pass", "one sparse extent")
def _():
    return vmdk(descriptor())


@case("vmdk-extent-outside", 6, "extent-file reference-outside", "fail: descriptor", "its extent is /etc/passwd")
def _():
    return vmdk(descriptor(extent='RW 2048 SPARSE "/etc/passwd"'))


@case("vmdk-second-extent", 6, "extent-file descriptor", "pass", "a second extent in another file")
def _():
    return vmdk(descriptor(extent='RW 2048 SPARSE "disk.vmdk"\nRW 2048 FLAT "other.img" 0'))


@case("vmdk-parent", 6, "parent", "pass", "a parent as a field")
def _():
    return vmdk(descriptor(more='parentFileNameHint="/vmfs/base.vmdk"\n'))


@case("vmdk-parent-comment", 6, "hidden-reference reference-outside", "pass", "a parent in a comment")
def _():
    return vmdk(descriptor(more='#parentFileNameHint="/etc/passwd"\n'))


@case("vmdk-parent-in-line", 6, "hidden-reference", "pass", "a parent behind another field")
def _():
    return vmdk(descriptor(more='ddb2="x" parentFileNameHint="base.vmdk"\n'))


@case("vmdk-extent-comment", 6, "hidden-reference", "pass", "an extent in a comment")
def _():
    return vmdk(descriptor(more='# RW 2048 FLAT "/dev/sda" 0\n'))


@case("vmdk-behind-nul", 6, "hidden-reference", "pass", "an extent behind the descriptor's end")
def _():
    return vmdk(descriptor(more='\0\nRW 2048 FLAT "/etc/passwd" 0\n'))


@case("vmdk-flat", 6, "subformat extent-file", "fail: descriptor", "a text that names a flat extent")
def _():
    return descriptor("monolithicFlat", 'RW 2048 FLAT "/etc/passwd" 0')


@case("vmdk-script", 6, "subformat extent-file", "fail: descriptor", "a descriptor behind other comments")
def _():
    return b"#!/bin/sh\n\n" + descriptor("monolithicFlat", 'RW 2048 FLAT "/etc/passwd" 0').split(b"\n", 1)[1]


@case("vmdk-any-text", 6, "subformat extent-file", "fail: descriptor", "a text that says a type of disk somewhere")
def _():
    return b"hello\n" * 100 + descriptor("monolithicFlat", 'RW 2048 FLAT "/etc/passwd" 0').split(b"\n", 1)[1]


@case("vmdk-capacity-0", 6, "extent-file", "pass", "no capacity: readers take the descriptor's extents")
def _():
    return vmdk(descriptor(), capacity=0)


@case("vmdk-footer-differs", 6, "head-tail-differ", "fail: footer", "the footer has another descriptor")
def _():
    b = vmdk(descriptor(), directory=(1 << 64) - 1)
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    return b + marker + vmdk_header(desc_sector=60) + bytes(512)


@case("vmdk-no-footer", 6, "head-tail-differ", "fail: footer", "the footer that the header promises is missing")
def _():
    return vmdk(descriptor(), directory=(1 << 64) - 1)


@case("vmdk-binary", 6, "descriptor", "fail: descriptor", "a descriptor that is not ASCII")
def _():
    return vmdk(descriptor(more="\u00e4=\u00f6\n"))


@case("vmdk-odd-line", 6, "descriptor", "fail: descriptor", "a line that nobody understands")
def _():
    return vmdk(descriptor(more="include /etc/passwd\n"))


@case("vmdk-no-extents", 6, "descriptor", "fail: descriptor", "no extents")
def _():
    return vmdk(descriptor(extent=""))


@case("vmdk-moved", 6, "descriptor", "pass", "the descriptor is not at its place")
def _():
    b = bytearray(vmdk(b"", desc_sector=40))
    put(b, 40 * SECTOR, descriptor())
    return b


# ---- VHD, VHDX, VDI

def be_sum(b, field):
    return ~(sum(b) - sum(b[field:field + 4])) & 0xFFFFFFFF


def vhd_footer(kind, size, data_off=(1 << 64) - 1):
    f = bytearray(struct.pack(">8sIIQI4sI4sQQIIII16sB", b"conectix", 2, 0x10000, data_off, 0, b"win ", 0xA0000, b"Wi2k", size,
                              size, 0x00041103, kind, 0, 0, b"", 0).ljust(512, b"\0"))
    f[68:84] = f[64:68] + bytes(12)
    struct.pack_into(">I", f, 64, be_sum(f, 64))
    return bytes(f)


def vhd(kind, name="", locator=False, size=4 << 20):
    footer = vhd_footer(kind, size, 512)
    h = bytearray(struct.pack(">8sQQIIII", b"cxsparse", (1 << 64) - 1, 1536, 0x10000, size >> 21, 2 << 20, 0).ljust(1024, b"\0"))
    put(h, 64, name.encode("utf-16-be"))
    text = name.encode("utf-16-le").ljust(512, b"\0") if locator else b""
    if locator:
        put(h, 576, b"W2ku" + struct.pack(">IIIQ", 512, 2 * len(name), 0, 2048))
    struct.pack_into(">I", h, 36, be_sum(h, 36))
    return footer + bytes(h) + (b"\xff" * 4 * (size >> 21)).ljust(512, b"\xff") + text + footer


@case("vhd-fixed", 0, "", "pass", "a disk with a footer")
def _():
    return disk_mbr() + vhd_footer(2, 1 << 20)


@case("vhd-dynamic", 0, "", "pass", "an empty dynamic disk")
def _():
    return vhd(3)


@case("vhd-parent", 6, "parent reference-syntax", "pass", "a difference to C:\\base.vhd")
def _():
    return vhd(4, "C:\\base.vhd", locator=True)


@case("vhd-parent-hidden", 6, "hidden-reference", "pass", "a parent's name in a disk that has none")
def _():
    return vhd(3, "base.vhd", locator=True)


@case("vhd-two-footers", 6, "head-tail-differ", "pass", "header and footer say different sizes")
def _():
    b = bytearray(vhd(3))
    b[-512:] = vhd_footer(3, 8 << 20, 512)
    return b


@case("vhd-no-footer", 6, "head-tail-differ", "pass", "the footer is missing")
def _():
    return vhd(3)[:-512]


def guid(text):
    a, b, c, d, e = text.split("-")
    return struct.pack("<IHH", int(a, 16), int(b, 16), int(c, 16)) + bytes.fromhex(d + e)


def vhdx(parent=False, locator=None, second=True):
    b = bytearray(4 << 20)
    put(b, 0, b"vhdxfile")
    for i, off in enumerate((64 << 10, 128 << 10)):
        put(b, off, b"head" + bytes(4) + struct.pack("<Q", i + 1) + bytes(48))
    regions = b"regi" + bytes(4) + struct.pack("<II", 2, 0)
    regions += guid("2DC27766-F623-4200-9D64-115E9BFD4A08") + struct.pack("<QII", 3 << 20, 1 << 20, 1)
    regions += guid("8B7CA206-4790-4B9A-B8FE-575F050F886E") + struct.pack("<QII", 2 << 20, 1 << 20, 1)
    put(b, 192 << 10, regions)
    put(b, 256 << 10, regions if second else regions.replace(struct.pack("<Q", 2 << 20), struct.pack("<Q", 1 << 20)))
    items = [("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", struct.pack("<II", 1 << 20, 2 if parent else 0), 4),
             ("2FA54224-CD1B-4876-B211-5DBED83BF4B8", struct.pack("<Q", 8 << 20), 6)]
    if locator:
        text, entries, at = b"", b"", 20 + 12 * len(locator)
        for key, value in locator:
            k, v = key.encode("utf-16-le"), value.encode("utf-16-le")
            entries += struct.pack("<IIHH", at + len(text), at + len(text) + len(k), len(k), len(v))
            text += k + v
        items.append(("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", bytes(18) + struct.pack("<H", len(locator)) + entries + text, 4))
    table, at = b"metadata" + struct.pack("<HH", 0, len(items)) + bytes(20), 65536
    for name, data, flags in items:
        table += guid(name) + struct.pack("<IIII", at, len(data), flags, 0)
        put(b, (2 << 20) + at, data)
        at += len(data)
    put(b, 2 << 20, table)
    return b


@case("vhdx-honest", 0, "", "pass", "an empty dynamic disk")
def _():
    return vhdx_image.Vhdx(8 << 20).build()


@case("vhdx-parent", 6, "parent reference-outside", "pass", "a difference to ..\\base.vhdx")
def _():
    return vhdx(True, [("parent_linkage", "{1}"), ("relative_path", "..\\base.vhdx")])


@case("vhdx-parent-hidden", 6, "hidden-reference", "pass", "a parent locator in a disk that has none")
def _():
    return vhdx(False, [("absolute_win32_path", "C:\\base.vhdx")])


@case("vhdx-regions-differ", 6, "head-tail-differ", "pass", "two region tables that differ")
def _():
    return vhdx(second=False)


@case("vhdx-log", 0, "replay-needed", "pass", "a log that waits to be replayed")
def _():
    return vhdx_image.logged("plain")[0].build()


@case("vhdx-no-checksums", 4, "bad-header", "pass", "headers of which no checksum holds")
def _():
    return vhdx()


def vdi(kind=1, link=b""):
    h = bytearray(b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0"))
    put(h, 64, struct.pack("<IIIII", 0xBEDA107F, 0x10001, 400, kind, 0))
    put(h, 0x154, struct.pack("<II", 4096, 1 << 20))
    put(h, 0x170, struct.pack("<QIIII", 4 << 20, 1 << 20, 0, 4, 0))
    put(h, 0x188, b"U" * 32 + link.ljust(16, b"\0"))
    return bytes(h).ljust(4096, b"\0") + (b"\xff" * 16).ljust((1 << 20) - 4096, b"\0")


@case("vdi-honest", 0, "", "pass", "an empty disk")
def _():
    return vdi()


@case("vdi-difference", 6, "parent", "pass", "a difference to a parent")
def _():
    return vdi(4, b"P" * 16)


@case("vdi-linked", 6, "hidden-reference", "pass", "a parent's UUID in a disk that has none")
def _():
    return vdi(1, b"P" * 16)


# ---- LUKS

def luks(version=1, iterations=1000):
    h = struct.pack(">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", version, b"aes", b"xts-plain64", b"sha256", 4096, 64,
                    b"", b"", 1000, b"")
    for i in range(8):
        h += struct.pack(">II32sII", 0x00AC71F3 if i == 0 else 0xDEAD, iterations, b"", 8 + i * 8, 4000)
    return h


def qcow2_luks(header):
    img = sample()
    off = img.alloc(512)
    put(img.b, off, header)
    img.exts.append((EXT_LUKS, struct.pack(">QQ", off, 512 * img.cluster)))
    img.finish()
    img.field("crypt", 2)
    return img


@case("luks1", 6, "unverified-format encrypted", "pass", "LUKS version 1")
def _():
    return luks().ljust(3 << 20, b"\0")


@case("luks1-cost", 6, "key-derivation-cost", "pass", "a key costs 4 thousand million iterations")
def _():
    return luks(iterations=0xFFFFFFFF).ljust(3 << 20, b"\0")


@case("luks2", 6, "luks-version", "fail: version", "LUKS version 2")
def _():
    return luks(2).ljust(3 << 20, b"\0")


# ---- the small ones

@case("parallels", 0, "dirty", "pass", "not closed by its last writer")
def _():
    return struct.pack("<16sIIIIIQI", b"WithouFreSpacExt", 2, 16, 4, 2048, 4, 2048, 0x746F6E59).ljust(1 << 20, b"\0")


@case("bochs-undoable", 6, "parent unknown-feature", "pass", "a redo log over another image")
def _():
    return (b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Undoable").ljust(4096, b"\0")


@case("dmg-part", 6, "extent-file unknown-feature", "pass", "one of three parts")
def _():
    k = bytearray(512)
    put(k, 0, b"koly")
    put(k, 60, struct.pack(">I", 3))
    return bytes(4096) + bytes(k)


@case("tar", 6, "archive", "pass", "a tar archive, as an OVA is one")
def _():
    return b"disk.ovf".ljust(257, b"\0") + b"ustar\0" + bytes(1 << 16)


@case("gzip", 6, "archive", "pass", "something compressed")
def _():
    return b"\x1f\x8b\x08" + bytes(4096)


# ---- raw disks

def partition(kind, first, sectors, boot=0, start=(0, 2, 0)):
    return struct.pack("<B3BB3BII", boot, *start, kind, 0xFE, 0xFF, 0xFF, first, sectors)


def disk_mbr(*entries, size=1 << 20):
    b = bytearray(size)
    entries = entries or (partition(0x83, 2048, 1000, 0x80),)
    for i, e in enumerate(entries):
        put(b, 446 + 16 * i, e)
    put(b, 510, b"\x55\xaa")
    return bytes(b)


def gpt_header(my, other, entries_lba, entries, disk=b"D" * 16, last=2000):
    h = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, my, other, 34, last, disk, entries_lba, 128,
                              128, zlib.crc32(entries)))
    struct.pack_into("<I", h, 16, zlib.crc32(h))
    return bytes(h)


def disk_gpt(mbr=(), second=None, first=True, keep_second=True, size=1 << 20, at=None):
    """second: entries of the second copy; at: its sector, if not the last."""
    b = bytearray(disk_mbr(*(mbr or (partition(0xEE, 1, 2047),)), size=size))
    entries = (b"T" * 16 + b"P" * 16 + struct.pack("<QQ", 34, 100)).ljust(128 * 128, b"\0")
    other = entries if second is None else second
    last = size // 512 - 1 if at is None else at
    put(b, 512, gpt_header(1, last, 2, entries) if first else bytes(92))
    put(b, 1024, entries)
    if keep_second:
        put(b, last * 512, gpt_header(last, 1, last - 32, other))
        put(b, (last - 32) * 512, other)
    return bytes(b)


@case("raw-zeros", 0, "", "pass", "zeros")
def _():
    return bytes(1 << 20)


@case("raw-mbr", 0, "content", "pass", "a partitioned disk")
def _():
    return disk_mbr()


@case("mbr-boot-flag", 6, "mbr-invalid", "fail: mbr", "a boot flag of 0x81")
def _():
    return disk_mbr(partition(0x83, 2048, 1000, 0x81))


@case("mbr-empty", 6, "mbr-empty", "fail: mbr", "a boot sector without partitions")
def _():
    return disk_mbr(bytes(16))


@case("raw-fat", 0, "content", "pass", "a FAT file system without partitions")
def _():
    b = bytearray(disk_mbr(bytes(16)))
    b[0x10], b[0x15] = 2, 0xF8
    return b


@case("raw-gpt", 0, "content", "pass", "a disk with a GPT")
def _():
    return disk_gpt()


@case("gpt-start", 6, "mbr-invalid", "fail: mbr", "the protecting partition starts at sector 7")
def _():
    return disk_gpt([partition(0xEE, 7, 2047)])


@case("gpt-hybrid", 6, "mbr-hybrid", "fail: mbr", "MBR partitions beside a GPT")
def _():
    return disk_gpt([partition(0xEE, 1, 2047), partition(0x83, 100, 100)])


@case("gpt-unprotected", 6, "mbr-hybrid", "pass", "an MBR that knows nothing of the GPT")
def _():
    return disk_gpt([partition(0x83, 100, 100)])


@case("gpt-copies-differ", 6, "gpt-copies-differ", "pass", "two whole copies that differ")
def _():
    return disk_gpt(second=(b"X" * 16 + b"Q" * 16 + struct.pack("<QQ", 50, 60)).ljust(128 * 128, b"\0"))


@case("gpt-primary-damaged", 6, "gpt-primary-damaged", "pass", "only the second copy is whole")
def _():
    return disk_gpt(first=False)


@case("gpt-no-backup", 0, "gpt-backup-damaged", "pass", "only the first copy is whole")
def _():
    return disk_gpt(keep_second=False)


@case("gpt-grown", 0, "gpt-backup-elsewhere", "pass", "a disk that grew behind its GPT")
def _():
    return disk_gpt(size=2 << 20, at=2047)


@case("iso", 0, "content", "pass", "a disc")
def _():
    return bytes(32768) + b"\1CD001\1".ljust(1 << 16, b"\0")


@case("iso-hybrid", 6, "hybrid-iso", "several formats", "a disc that boots as a disk")
def _():
    b = bytearray(disk_mbr())
    put(b, 32768, b"\1CD001\1")
    return b


def table():
    out = ["| file | what it is | `imgtool inspect` | format inspector |", "| --- | --- | --- | --- |"]
    verdict = {0: "safe", 4: "unparseable", 6: "unsafe"}
    for c in CASES.values():
        rules = ", ".join("`%s`" % r for r in c.rules)
        out.append("| %s | %s | %s%s | %s |" % (c.name, c.what.replace("\\", "\\\\"), verdict[c.status],
                                                 ": " + rules if rules else "", c.theirs))
    return "\n".join(out) + "\n"


def main(argv):
    if argv[1:] == ["--table"]:
        sys.stdout.write(table())
        return
    os.makedirs(argv[1], exist_ok=True)
    for c in CASES.values():
        with open(os.path.join(argv[1], c.name), "wb") as f:
            f.write(c.bytes())


if __name__ == "__main__":
    main(sys.argv)
