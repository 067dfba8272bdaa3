# SPDX-License-Identifier: MIT
"""Hostile VHDX and VMDK images for plain.py, by name."""

import struct

import vhdx_image
import vmdk_image

DONE, ABSENT, DAMAGED, BUSY, REFUSED = 0, 3, 4, 5, 6
UNABLE = ABSENT    # the host says no, or the format
TOUCHED = -DAMAGED    # the same, and the disk got another id before the damage was met
MIB = 1 << 20
SECTOR = 512
EVERYWHERE = (1 << 64) - 1


# -- VHDX -------------------------------------------------------------------------------------------------------------

HEADERS, REGIONS = (65536, 131072), (196608, 262144)


def template(**more):
    image = vhdx_image.Vhdx(4 * MIB, **more)
    for block in (0, 2):
        image.put(block, b"x" * MIB)
    return image


def entries(*values):
    image = template()
    for block, value in enumerate(values):
        image.bat[image.slot(block)] = value
    return image.build()


def changed(places, size, *changes):
    """In each place: (offset, width, value); the checksum is made right where there is one (size)."""
    data = bytearray(template().build())
    for place in places:
        for at, width, value in changes:
            data[place + at:place + at + width] = value.to_bytes(width, "little")
        if size:
            data[place:place + size] = vhdx_image.summed(data[place:place + size])
    return data


def headers(*changes):
    return changed(HEADERS, 4096, *changes)


def regions(*changes):
    return changed(REGIONS, 65536, *changes)


def metadata(*changes):
    return changed((template().meta_off,), 0, *changes)


def parent(name=None, absolute=None):
    image = template(parent=name or "none", linkage=vhdx_image.guid(1), ident=2, absolute=absolute)
    image.bat[image.slot(1)] = 0
    return image.build()


def logged(*changes, entry=None):
    """A log that counts."""
    image = template()
    image.log_guid = vhdx_image.guid(77).bytes_le
    one = entry or vhdx_image.log_entry(image.log_guid, 10, 0, list(changes), (len(image.out), len(image.out)))
    image.log = vhdx_image.ring([one], 0)
    return image.build()


def many_descriptors():
    one = bytearray(vhdx_image.log_entry(vhdx_image.guid(77).bytes_le, 10, 0, [(3 * MIB, 4096)], (5 * MIB, 5 * MIB)))
    struct.pack_into("<I", one, 24, 0xffffffff)
    return logged(entry=vhdx_image.summed(one))


PLACE = template().bat[0] & -MIB
VALUES = 65536    # of metadata: the size of a block, flags, the size of the disk, ...
VHDX = [    # name, what makes the bytes, read, check, write
    ("sound", lambda: template().build(), DONE, DONE, DONE),
    ("entry at 0", lambda: entries(6), DAMAGED, DAMAGED, DAMAGED),
    ("entry over the table", lambda: entries(template().bat_off | 6), DONE, DAMAGED, DAMAGED),
    ("entry over the metadata", lambda: entries(template().meta_off | 6), DONE, DAMAGED, DAMAGED),
    ("entry over the log", lambda: entries(MIB | 6), DONE, DAMAGED, DAMAGED),
    ("entry behind the end", lambda: entries(1 << 40 | 6), DAMAGED, DAMAGED, DAMAGED),
    ("entry at the end of the world", lambda: entries(EVERYWHERE & -MIB | 6), DAMAGED, DAMAGED, DAMAGED),
    ("two blocks in one place", lambda: entries(PLACE | 6, PLACE | 6), DONE, DAMAGED, DONE),
    ("state 5", lambda: entries(5), DAMAGED, DAMAGED, DAMAGED),
    ("in part, of no parent", lambda: entries(PLACE | 7), DAMAGED, DAMAGED, DAMAGED),
    ("blocks of no size", lambda: metadata((VALUES, 4, 0)), DAMAGED, DAMAGED, DAMAGED),
    ("blocks of 2 GiB", lambda: metadata((VALUES, 4, 1 << 31)), DAMAGED, DAMAGED, DAMAGED),
    ("a difference to nothing", lambda: metadata((VALUES + 4, 4, 2)), DAMAGED, DAMAGED, DAMAGED),
    ("disk of 2^63 bytes", lambda: metadata((VALUES + 8, 8, 1 << 63)), DAMAGED, DAMAGED, DAMAGED),
    ("disk of 64 TiB", lambda: metadata((VALUES + 8, 8, 64 << 40)), DAMAGED, DAMAGED, DAMAGED),
    ("disk of no bytes", lambda: metadata((VALUES + 8, 8, 0)), DAMAGED, DAMAGED, DAMAGED),
    ("65,535 items", lambda: metadata((10, 2, 65535)), DAMAGED, DAMAGED, DAMAGED),
    ("an item of 4 GiB", lambda: metadata((32 + 20, 4, 0xffffffff)), DAMAGED, DAMAGED, DAMAGED),
    ("an item in the table", lambda: metadata((32 + 16, 4, 0)), DAMAGED, DAMAGED, DAMAGED),
    ("two items in one place", lambda: metadata((64 + 16, 4, VALUES)), DAMAGED, DAMAGED, DAMAGED),
    ("two items that meet", lambda: metadata((64 + 16, 4, VALUES + 7)), DAMAGED, DAMAGED, DAMAGED),
    ("an unknown item that is required", lambda: metadata((32 + 64, 4, 7)), REFUSED, REFUSED, REFUSED),
    ("4 billion regions", lambda: regions((8, 4, 0xffffffff)), DAMAGED, DAMAGED, DAMAGED),
    ("an unknown region that is required", lambda: regions((16, 4, 7)), REFUSED, REFUSED, REFUSED),
    ("a table at the end of the world", lambda: regions((32, 8, EVERYWHERE & -MIB)), DAMAGED, DAMAGED, DAMAGED),
    ("regions in one place", lambda: regions((32, 8, 2 * MIB), (64, 8, 2 * MIB)), DAMAGED, DAMAGED, DAMAGED),
    ("no region table that holds", lambda: changed(REGIONS, 0, (4, 4, 7)), DAMAGED, DAMAGED, DAMAGED),
    ("no header that holds", lambda: changed(HEADERS, 0, (4, 4, 7)), DAMAGED, DAMAGED, DAMAGED),
    ("version 9", lambda: headers((66, 2, 9)), REFUSED, REFUSED, REFUSED),
    ("a log at the end of the world", lambda: headers((72, 8, EVERYWHERE & -MIB)), DONE, DONE, DAMAGED),
    ("a log over the table", lambda: headers((72, 8, 3 * MIB)), DONE, DAMAGED, DAMAGED),
    ("a log of 4 GiB", lambda: headers((68, 4, 0xfff00000)), DONE, DONE, DAMAGED),
    ("a log without an entry", lambda: headers((48, 4, 1)), DONE, DONE, DONE),
    ("a log that changes the header", lambda: logged((65536, b"y" * 4096)), DAMAGED, DAMAGED, DAMAGED),
    ("a log that changes itself", lambda: logged((MIB, 65536)), DAMAGED, DAMAGED, DAMAGED),
    ("a log that zeroes everything", lambda: logged((2 * MIB, 1 << 62)), DAMAGED, DAMAGED, DAMAGED),
    ("an entry of 4 billion changes, which is none", lambda: many_descriptors(), DONE, DONE, DONE),
    ("parent: /etc/passwd", lambda: parent(absolute="/etc/passwd"), REFUSED, DONE, REFUSED),
    ("parent: above", lambda: parent("..\\..\\etc\\passwd"), REFUSED, DONE, REFUSED),
    ("parent: a URL", lambda: parent("nbd://host/x"), REFUSED, DONE, REFUSED),
    ("parent: itself", lambda: parent("image"), DAMAGED, DONE, BUSY),
    ("parent: nowhere", lambda: parent("none.vhdx"), ABSENT, DONE, ABSENT),
    ("parent: no name", lambda: parent(), DAMAGED, DAMAGED, DAMAGED),
]


# -- VMDK -------------------------------------------------------------------------------------------------------------

SECTORS = 4096


def sparse(text=None, **fields):
    """One extent with its descriptor in it; fields of its header are changed."""
    text = text or vmdk_image.descriptor(['RW %d SPARSE "image"' % SECTORS], "monolithicSparse")
    image = vmdk_image.Sparse(SECTORS, grains={0: b"x" * SECTOR, 5: b"y" * SECTOR}, text=text)
    for name, value in fields.items():
        image.put(name, value)
    return image.b


def with_entries(*values):
    image = vmdk_image.Sparse(SECTORS, grains={0: b"x" * SECTOR, 5: b"y" * SECTOR},
                              text=vmdk_image.descriptor(['RW %d SPARSE "image"' % SECTORS], "monolithicSparse"))
    for number, value in enumerate(values):
        image.put_entry(number, value)
    return image.b


def lines(*extents, kind="custom", **more):
    return vmdk_image.descriptor(list(extents), kind, **more)


def names(name, size=SECTORS):
    return lines('RW %d FLAT "%s" 0' % (size, name), kind="monolithicFlat")


def under(hint):
    text = vmdk_image.descriptor(['RW %d SPARSE "image"' % SECTORS], "monolithicSparse", parent=7,
                                 more=('parentFileNameHint="%s"' % hint,) if hint else ())
    return sparse(text)


FIRST = len(sparse()) // SECTOR - 2 * 128    # of the two grains
VMDK = [
    ("sound", lambda: sparse(), DONE, DONE, DONE),
    ("entry in the header", lambda: with_entries(2), DAMAGED, DAMAGED, TOUCHED),
    ("entry behind the end", lambda: with_entries(0xfffffff0), DAMAGED, DAMAGED, TOUCHED),
    ("two grains in one place", lambda: with_entries(FIRST, FIRST), DONE, DAMAGED, DONE),
    ("a grain of zeros, of which the flags know nothing", lambda: with_entries(1), DAMAGED, DAMAGED, TOUCHED),
    ("grains of no size", lambda: sparse(grain=0), DAMAGED, DAMAGED, DAMAGED),
    ("grains of 2^63 sectors", lambda: sparse(grain=1 << 63), DAMAGED, DAMAGED, DAMAGED),
    ("disk of 2^64 sectors", lambda: sparse(capacity=EVERYWHERE), DAMAGED, DAMAGED, DAMAGED),
    ("tables of no entries", lambda: sparse(gtes=0), DAMAGED, DAMAGED, DAMAGED),
    ("tables of 2 billion entries", lambda: sparse(gtes=1 << 31), DAMAGED, DAMAGED, DAMAGED),
    ("directory at the end of the world", lambda: sparse(gd=EVERYWHERE), DAMAGED, DAMAGED, DAMAGED),
    ("second directory at the end of the world", lambda: sparse(rgd=EVERYWHERE - 7), DAMAGED, DAMAGED, DAMAGED),
    ("descriptor of 2^64 sectors", lambda: sparse(desc_sectors=EVERYWHERE), DAMAGED, DAMAGED, DAMAGED),
    ("descriptor nowhere", lambda: sparse(desc_off=1 << 40), DAMAGED, DAMAGED, DAMAGED),
    ("unknown features", lambda: sparse(flags=0x80000003), REFUSED, REFUSED, REFUSED),
    ("transferred as text", lambda: sparse(newlines=0x0a0a0a0a), DAMAGED, DAMAGED, DAMAGED),
    ("version 9", lambda: sparse(version=9), REFUSED, REFUSED, REFUSED),
    ("compressed by nobody knows what, of which the flags know nothing", lambda: sparse(compress=77), DONE, DONE, DONE),
    ("extent: /etc/passwd", lambda: names("/etc/passwd"), REFUSED, REFUSED, REFUSED),
    ("extent: above", lambda: names("../../etc/passwd"), REFUSED, REFUSED, REFUSED),
    ("extent: a URL", lambda: names("nbd://host/x"), REFUSED, REFUSED, REFUSED),
    ("extent: a device", lambda: lines('RW %d FLAT "/dev/sda" 0' % SECTORS, kind="fullDevice"), REFUSED, REFUSED, REFUSED),
    ("extent: itself", lambda: names("image"), DAMAGED, DAMAGED, DAMAGED),
    ("extent: nowhere", lambda: names("none"), ABSENT, ABSENT, ABSENT),
    ("extent: of 2^64 sectors", lambda: names("none", EVERYWHERE), DAMAGED, DAMAGED, DAMAGED),
    ("extents: more than 2^63 bytes", lambda: lines(*['RW %d ZERO' % (1 << 53)] * 3), DAMAGED, DAMAGED, DAMAGED),
    ("extents: none", lambda: lines(), DAMAGED, DAMAGED, DAMAGED),
    ("extents: 100,000 of zeros", lambda: lines(*["RW 1 ZERO"] * 100000), DONE, DONE, UNABLE),
    ("extents: 1,000 names", lambda: lines(*['RW 8 FLAT "none%d" 0' % n for n in range(1000)]), ABSENT, ABSENT, ABSENT),
    ("extents: one name of 1 MiB", lambda: names("n" * MIB), UNABLE, UNABLE, UNABLE),
    ("extents: of an unknown kind", lambda: lines("RW 8 MAGIC"), REFUSED, REFUSED, REFUSED),
    ("nobody may read", lambda: lines("NOACCESS 8 ZERO"), REFUSED, DONE, UNABLE),
    ("a line of 1 MiB", lambda: lines("RW 8 ZERO", "x" * MIB), DAMAGED, DAMAGED, DAMAGED),
    ("parent: /etc/passwd", lambda: under("/etc/passwd"), REFUSED, DONE, REFUSED),
    ("parent: above", lambda: under("../../etc/passwd"), REFUSED, DONE, REFUSED),
    ("parent: itself", lambda: under("image"), DAMAGED, DONE, BUSY),
    ("parent: nowhere", lambda: under("none"), ABSENT, DONE, ABSENT),
    ("parent: no name", lambda: under(""), DAMAGED, DAMAGED, DAMAGED),
]
