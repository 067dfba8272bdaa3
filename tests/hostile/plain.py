#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Hostile VDI, VHD, VHDX and VMDK images by name: what reading, checking and writing each end with, in time and little memory, the file unchanged
by all but the last; a difference never reads as zeros.

plain.py IMGTOOL [--sanitized]"""

import hashlib
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "images", "gen"))

import vdi_image    # noqa: E402
import vhd_image    # noqa: E402
from extents import VHDX, VMDK    # noqa: E402

DONE, ABSENT, DAMAGED, BUSY, REFUSED = 0, 3, 4, 5, 6
MIB = 1 << 20
SECTOR = 512
SECONDS = 10
MEMORY = 512 * MIB


# -- VHD --------------------------------------------------------------------------------------------------------------

def vhd(size=4 * MIB, block=2 * MIB):
    return vhd_image.Image(size, block=block, ident=b"0123456789abcdef").dynamic({0: b"x" * SECTOR, 5000: b"y" * SECTOR})


def vhd_field(**fields):
    image = vhd()
    for name, value in fields.items():
        image.put(name, value)
    return image.b


def vhd_header(**fields):
    image = vhd()
    for name, value in fields.items():
        image.put_header(name, value)
    return image.b


def vhd_entries(*sectors):
    image = vhd()
    for block, sector in enumerate(sectors):
        image.put_entry(block, sector)
    return image.b


def vhd_in_fixed():
    """A dynamic disk in a fixed one: whoever looks at one end only takes it for the other."""
    inner, outer = vhd(), vhd_image.Image(8 * MIB, ident=b"fedcba9876543210").fixed({})
    outer.b[:len(inner.b)] = inner.b
    return outer.b


def vhd_parent(*locators, name=""):
    return vhd_image.Image(4 * MIB).differencing({3: b"z" * SECTOR}, b"0123456789abcdef", list(locators), name).b


def vhd_huge_table():
    """Thousands of blocks, all in one place."""
    image = vhd_image.Image(64 * MIB, block=4096).dynamic({0: b"x" * SECTOR})
    first = struct.unpack_from(">I", image.b, image.table_off)[0]
    struct.pack_into(">%dI" % image.entries, image.b, image.table_off, *[first] * image.entries)
    return image.b


def utf16(text):
    return text.encode("utf-16-le")


VHD = [    # name, bytes, read, check, write
    ("sound", vhd().b, DONE, DONE, DONE),
    ("entry at sector 0", vhd_entries(0), DAMAGED, DAMAGED, DAMAGED),
    ("entry in the header", vhd_entries(1), DONE, DAMAGED, DAMAGED),
    ("entry behind the end", vhd_entries(0xfffffff0), DAMAGED, DAMAGED, DAMAGED),
    ("two blocks in one place", vhd_entries(*[vhd().place[0] // SECTOR] * 2), DONE, DAMAGED, DONE),
    ("blocks of no size", vhd_header(block=0), DAMAGED, DAMAGED, DAMAGED),
    ("blocks of 2 GiB", vhd_header(block=1 << 31), DAMAGED, DAMAGED, DAMAGED),
    ("table of 16 GiB", vhd_header(entries=0xffffffff), DAMAGED, DAMAGED, DAMAGED),
    ("table too short", vhd_header(entries=1), DAMAGED, DAMAGED, DAMAGED),
    ("table at the end of the world", vhd_header(table_off=(1 << 64) - 8), DAMAGED, DAMAGED, DAMAGED),
    ("header at the end of the world", vhd_field(data_off=(1 << 64) - 512), DAMAGED, DAMAGED, DAMAGED),
    ("disk of 2^63 bytes", vhd_field(current=1 << 63), REFUSED, REFUSED, REFUSED),
    ("disk of no sectors", vhd_field(current=SECTOR - 1), DAMAGED, DAMAGED, DAMAGED),
    ("type 9", vhd_field(type=9), REFUSED, REFUSED, REFUSED),
    ("a disk in a disk", vhd_in_fixed(), REFUSED, REFUSED, REFUSED),
    ("all blocks in one place", vhd_huge_table(), DONE, DAMAGED, DONE),
    ("parent: /etc/passwd", vhd_parent((b"W2ku", utf16("/etc/passwd"))), REFUSED, DONE, REFUSED),
    ("parent: above", vhd_parent((b"W2ru", utf16("..\\..\\etc\\passwd"))), REFUSED, DONE, REFUSED),
    ("parent: a URL", vhd_parent((b"W2ru", utf16("nbd://host/x"))), REFUSED, DONE, REFUSED),
    ("parent: itself", vhd_parent((b"W2ru", utf16("image"))), DAMAGED, DONE, BUSY),
    ("parent: nowhere", vhd_parent((b"W2ru", utf16("none.vhd"))), ABSENT, DONE, ABSENT),
    ("parent: no name", vhd_parent(), DAMAGED, DAMAGED, DAMAGED),
    ("parent: half a surrogate", vhd_parent((b"W2ru", b"\x00\xd8")), DAMAGED, DAMAGED, DAMAGED),
]


# -- VDI --------------------------------------------------------------------------------------------------------------

def vdi(*changes):
    image = vdi_image.Image(size=4 * MIB, block=MIB).write(0).write(2)
    with tempfile.NamedTemporaryFile() as file:
        image.save(file.name)
        data = bytearray(file.read())
    for at, width, value in changes:
        at = image.map_off + at[1] if isinstance(at, tuple) else at
        data[at:at + width] = value.to_bytes(width, "little")
    return data


def vdi_parent(name):
    below = vdi_image.Image(size=4 * MIB, block=MIB, seed=2)
    image = vdi_image.Image(size=4 * MIB, block=MIB, kind=vdi_image.DIFF, parent=below, comment=name)
    with tempfile.NamedTemporaryFile() as file:
        image.save(file.name)
        return bytearray(file.read())


ENTRY = "entry"
VDI = [
    ("sound", vdi(), DONE, DONE, DONE),
    ("entry behind the end", vdi(((ENTRY, 0), 4, 0x00fffff0)), DAMAGED, DAMAGED, DAMAGED),
    ("two blocks in one place", vdi(((ENTRY, 4), 4, 0)), DONE, DAMAGED, DONE),
    ("map in the header", vdi((340, 4, 0)), DAMAGED, DAMAGED, DAMAGED),
    ("map behind the end", vdi((340, 4, 0xfffffe00)), DAMAGED, DAMAGED, DAMAGED),
    ("data in the map", vdi((344, 4, 512)), DAMAGED, DAMAGED, DAMAGED),
    ("blocks of no size", vdi((376, 4, 0)), DAMAGED, DAMAGED, DAMAGED),
    ("blocks of 2 GiB", vdi((376, 4, 1 << 31)), DAMAGED, DAMAGED, DAMAGED),
    ("4 billion blocks", vdi((384, 4, 0xffffffff)), DAMAGED, DAMAGED, DAMAGED),
    ("disk of 2^63 bytes", vdi((368, 8, 1 << 63)), DAMAGED, DAMAGED, DAMAGED),
    ("type 77", vdi((76, 4, 77)), DAMAGED, DAMAGED, DAMAGED),
    ("type undo", vdi((76, 4, 3)), REFUSED, REFUSED, REFUSED),
    ("difference to nothing", vdi((76, 4, 4)), DAMAGED, DAMAGED, DAMAGED),
    ("parent: nowhere", vdi_parent(b"none.vdi"), ABSENT, DONE, ABSENT),
    ("parent: /etc/passwd", vdi_parent(b"/etc/passwd"), ABSENT, DONE, ABSENT),    # it is looked for by its id,
]


# -- the run ----------------------------------------------------------------------------------------------------------

def run(imgtool, argv, sanitized):
    def limits():
        if not sanitized:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    started = time.monotonic()
    done = subprocess.run([imgtool, *argv], capture_output=True, check=False, preexec_fn=limits, timeout=120, input=b"new")
    if time.monotonic() - started > SECONDS * (10 if sanitized else 1):
        raise AssertionError("%s: took too long" % argv)
    return done.returncode, done.stderr.decode(errors="replace").strip()


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def judge(imgtool, sanitized, format_, row, path):
    name, data, read, check, write = row
    touched, write = write < 0, abs(write)
    with open(path, "wb") as file:
        file.write(data() if callable(data) else data)
    before, bad = digest(path), []
    for what, argv, want in (("info", ["info", "-f", format_, path], None),
                             ("read", ["checksum", "-q", "-f", format_, path], read),
                             ("check", ["check", "-q", "-f", format_, path], check),
                             ("inspect", ["inspect", path], None),
                             ("write", ["write", "-q", "-f", format_, path, "--offset", "0"], write)):
        if what == "write" and digest(path) != before:
            bad.append("was changed by who only looked")
        code, said = run(imgtool, argv, sanitized)
        if (code != want if want is not None else code not in (DONE, ABSENT, DAMAGED, REFUSED)):
            bad.append("%s: exit %d, not %s: %s" % (what, code, want, said))
        if code != DONE and what in ("info", "read", "write") and len(said.splitlines()) != 1:
            bad.append("%s: not one line: %s" % (what, said))
    if write != DONE and not touched and digest(path) != before:
        bad.append("was changed by who was refused")
    return ["%s, %s: %s" % (format_, name, b) for b in bad]


def main():
    imgtool, sanitized = sys.argv[1], "--sanitized" in sys.argv[2:]
    bad = []
    with tempfile.TemporaryDirectory(prefix="hostile.") as folder:
        for format_, rows in (("vhd", VHD), ("vdi", VDI), ("vhdx", VHDX), ("vmdk", VMDK)):
            for row in rows:
                bad += judge(imgtool, sanitized, format_, row, os.path.join(folder, "image"))
    print("\n".join(bad + ["hostile: %d images, %d wrong" % (len(VHD) + len(VDI) + len(VHDX) + len(VMDK), len(bad))]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
