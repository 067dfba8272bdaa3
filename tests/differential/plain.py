#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Damaged VDI, VHD, VHDX, VMDK and Parallels images, each read by qemu-img and by the library. Where the two disagree a rule must know why (README.md);
what no rule explains is a failure.

plain.py VERDICT --format FORMAT [--seed N] [--count N] [--show RULE] [--keep FOLDER]

VERDICT is the program of verdict.c. The number of a failure makes its image again: --seed NUMBER --count 1."""

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "images", "gen"))

import parallels_image    # noqa: E402
import vdi_image    # noqa: E402
import vhd_image    # noqa: E402
from judged import SECTOR, cut, number, other_content, other_value, they_refuse, we_refuse    # noqa: E402
from vhdx import VHDX_RULES, make_vhdx    # noqa: E402
from vmdk import VMDK_RULES, make_vmdk    # noqa: E402

MIB = 1 << 20
SECONDS = 10


# -- VDI --------------------------------------------------------------------------------------------------------------

VDI_FIELDS = [(64, 4), (68, 4), (72, 4), (76, 4), (80, 4), (340, 4), (344, 4), (360, 4), (368, 8), (376, 4), (380, 4), (384, 4),
              (388, 4), (392, 8), (408, 8), (424, 8), (440, 8)]


def make_vdi(r, path):
    image = vdi_image.Image(size=4 * MIB - r.choice((0, 512, 65536)), block=MIB, seed=r.random(), align=r.choice((512, MIB)))
    for block in r.sample(range(4), r.randrange(4)):
        image.write(block)
    if r.random() < .3:
        image.zero(r.randrange(4))
    image.shuffle().save(path)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        if r.random() < .6:
            at, width = r.choice(VDI_FIELDS)
        else:
            at, width = image.map_off + 4 * r.randrange(4), 4
        old = number(data, at, width, "little")
        new = r.randrange(5) if at >= image.map_off and r.random() < .6 else other_value(r, old, width, len(data))
        data[at:at + width] = new.to_bytes(width, "little")
    return cut(r, data)


# -- VHD --------------------------------------------------------------------------------------------------------------

def make_vhd(r, path):
    del path
    fixed = r.random() < .2
    image = vhd_image.Image(4 * MIB - r.choice((0, 512, 65536)), block=r.choice((65536, MIB, 2 * MIB)), ident=r.randbytes(16),
                            creator=r.choice((b"win ", b"qem2", b"tap\0", b"CTXS", b"limg", b"qemu", b"vpc ")))
    sectors = {n: r.randbytes(SECTOR) for n in r.sample(range(image.size // SECTOR), r.randrange(40))}
    if fixed:
        image.fixed(sectors)
    else:
        image.dynamic(sectors, full=r.random() < .8 or None, order=r, extra_entries=r.choice((0, 0, 3)))
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        what = r.random()
        if what < .5:
            name = r.choice(sorted(vhd_image.FOOTER))
            at, width = vhd_image.FOOTER[name]
            where = 0 if not fixed and r.random() < .5 else image.tail_off
            old = number(image.b, where + at, width, "big")
            both = r.random() < .6
            image.put(name, other_value(r, old, width, len(image.b)), tail=both or where > 0, head=both or where == 0,
                      fix=name != "checksum" and r.random() < .8)
        elif fixed:
            continue
        elif what < .75:
            name = r.choice(sorted(vhd_image.HEADER))
            at, width = vhd_image.HEADER[name]
            old = number(image.b, image.header_off + at, width, "big")
            image.put_header(name, other_value(r, old, width, len(image.b)), fix=name != "checksum" and r.random() < .8)
        else:
            place = r.choice(sorted(image.place.values()) or [0]) // SECTOR
            image.put_entry(r.randrange(image.entries), r.choice((place, place + 1, 0, 1, 3, vhd_image.FREE, r.getrandbits(32),
                                                                  len(image.b) // SECTOR)))
    return cut(r, image.b)


# -- Parallels --------------------------------------------------------------------------------------------------------

PARALLELS_FIELDS = [(0, 8), (8, 8), (16, 4), (20, 4), (24, 4), (28, 4), (32, 4), (36, 4), (36, 8), (44, 4), (48, 4), (52, 4), (56, 8)]


def make_parallels(r, path):
    cluster = r.choice((65536, 65536, 63 * SECTOR, MIB))
    image = parallels_image.Image(size=2 * MIB - r.choice((0, 512, 65536)), cluster=cluster, seed=r.random(),
                                  magic=r.choice((parallels_image.V1, parallels_image.V2)), tight=r.random() < .3)
    for block in r.sample(range(image.nr), r.randrange(min(image.nr, 9))):
        image.write(block)
    image.shuffle().save(path)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        if r.random() < .6:
            at, width = r.choice(PARALLELS_FIELDS)
        else:
            at, width = 64 + 4 * r.randrange(image.nr), 4
        old = number(data, at, width, "little")
        new = image.entry(r.randrange(9)) if at >= 64 and r.random() < .6 else other_value(r, old, width, len(data))
        data[at:at + width] = new.to_bytes(width, "little")
    return cut(r, data)


# -- both sides -------------------------------------------------------------------------------------------------------

class Judged:
    """theirs and ours: "all", "part" or "refused"; where: "same" and what verdict.c says instead; said: both messages."""


def qemu_reads(j, name, folder, driver):
    raw = os.path.join(folder, "disk.raw")
    if os.path.exists(raw):
        os.unlink(raw)
    try:
        done = subprocess.run(["qemu-img", "dd", "-f", driver, "-O", "raw", "bs=64k", "count=256", "if=" + name, "of=disk.raw"],
                              cwd=folder, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        j.theirs, j.they_said = "slow", "no answer in %d seconds" % SECONDS
        return "-"
    j.they_said = done.stderr.decode(errors="replace").strip()
    j.theirs = "all" if done.returncode == 0 else "killed" if done.returncode < 0 else \
        "part" if "error while reading" in j.they_said else "refused"
    return raw if j.theirs == "all" else "-"


def judge(name, folder, helper, driver):
    j = Judged()
    raw = qemu_reads(j, name, folder, driver)
    helper.stdin.write("%s\t%s\n" % (os.path.join(folder, name), raw))
    helper.stdin.flush()
    line = helper.stdout.readline()
    if not line:
        raise SystemExit("the library's side died: %s" % helper.wait())
    code, damage, leaks, _, broken, read, where, said = line.rstrip("\n").split("\t", 7)
    j.code, j.damage, j.leaks, j.broken, j.read_code = int(code), int(damage), int(leaks), broken.split(","), int(read)
    j.ours, j.where = {"open": "refused", "read": "part"}.get(where.split()[0], "all"), where
    j.we_said = said
    with open(os.path.join(folder, name), "rb") as file:
        j.data = file.read()
    return j


def disagreement(j):
    if j.ours != j.theirs:
        return "%s, qemu-img: %s" % (j.ours, j.theirs)
    return "content: " + j.where if j.ours == "all" and j.where != "same" else None


def check_documented():
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        text = file.read()
    for name, _ in VDI_RULES + VHD_RULES + VHDX_RULES + VMDK_RULES + PARALLELS_RULES:
        if "| `%s` |" % name not in text:
            raise SystemExit("rule %s does not stand in README.md" % name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("verdict")
    parser.add_argument("--format", choices=("vdi", "vhd", "vhdx", "vmdk", "parallels"), required=True)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 40))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--show")
    parser.add_argument("--keep")
    args = parser.parse_args()
    if not shutil.which("qemu-img"):
        print("SKIPPED: there is no qemu-img")
        return 77
    check_documented()
    make, driver, rules = {"vdi": (make_vdi, "vdi", VDI_RULES), "vhd": (make_vhd, "vpc", VHD_RULES),
                           "vhdx": (make_vhdx, "vhdx", VHDX_RULES), "vmdk": (make_vmdk, "vmdk", VMDK_RULES),
                           "parallels": (make_parallels, "parallels", PARALLELS_RULES)}[args.format]
    tally, bad = collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix="differential.") as folder, \
            subprocess.Popen([args.verdict, args.format], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace") as helper:
        for seed in range(args.seed, args.seed + args.count):
            r = random.Random(seed)
            path = os.path.join(folder, "image")
            data = make(r, path)
            with open(path, "wb") as file:
                file.write(data)
            j = judge("image", folder, helper, driver)
            tally["read by us: " + j.ours] += 1
            wrong = disagreement(j)
            if not wrong:
                continue
            rule = next((name for name, fits in rules if fits(j)), None)
            tally[rule or "unexplained"] += 1
            if rule is None or rule == args.show:
                print("seed %d: %s\n  we: %s\n  qemu-img: %s\n  check: %d damage, %s" % (
                    seed, wrong, j.we_said, j.they_said[:200], j.damage, ",".join(j.broken)))
                bad += rule is None
                if args.keep:
                    shutil.copy(path, os.path.join(args.keep, "%s-%d" % (args.format, seed)))
    print("%s, %d images from seed %d: %s" % (args.format, args.count, args.seed,
                                               ", ".join("%s %d" % item for item in sorted(tally.items()))))
    return 1 if bad else 0


# Name and test, in order; README.md says why.
VDI_RULES = [
    ("vdi-extra", lambda j: number(j.data, 380, 4, "little") != 0 and j.theirs == "all"),
    ("behind-the-end", lambda j: j.ours == "part" and j.theirs == "all" and "beyond the end of the file" in j.we_said),
    ("behind-the-end", lambda j: we_refuse(j, "the block map ends at")),
    ("vdi-size", lambda j: other_content(j, "longer") and "N:VDI-4" in j.broken),
    ("vdi-features", lambda j: they_refuse(j, "unsupported VDI image")),
    ("vdi-type", lambda j: we_refuse(j, "says type", "flags 0x", "does not say of what")),
    ("vdi-layout", lambda j: we_refuse(j, "the header says")),
]
VHD_RULES = [
    ("vhd-size", lambda j: other_content(j, "shorter", "longer") and "N:VHD-4" in j.broken),
    ("vhd-bits", lambda j: other_content(j, "differs") and ("N:VHD-8" in j.broken or "D:VHD-9" in j.broken)),
    ("vhd-stale", lambda j: they_refuse(j, "Incorrect header checksum") and {"D:VHD-3", "N:VHD-2"} & set(j.broken)),
    ("vhd-behind-the-end", lambda j: they_refuse(j, "points after the end of file") and {"D:VHD-7", "L:VHD-13"} & set(j.broken)),
    ("vhd-size", lambda j: they_refuse(j, "Page table too small") and "N:VHD-4" in j.broken),
    ("vhd-sector-0", lambda j: j.ours == "part" and j.theirs == "all" and "leads to the footer's copy" in j.we_said),
    ("vhd-checksum", lambda j: we_refuse(j, "the dynamic disk header is damaged: its checksum does not hold")),
    ("vhd-type", lambda j: we_refuse(j, "VHD disk type", "VHD version", "dynamic disk header of version")),
    ("vhd-type", lambda j: we_refuse(j, "the name of the backing file is missing") and number(j.data, 60, 4, "big") == 4),
    ("vhd-cut", lambda j: we_refuse(j, "cut off: a disk of")),
    ("vhd-layout", lambda j: we_refuse(j, "no whole sectors", "lies in its own table", "lies outside the file", "limit is 2040 GiB")),
    ("vhd-two-images", lambda j: we_refuse(j, "belongs to another disk")),
]
PARALLELS_RULES = [
    ("behind-the-end", lambda j: j.ours == "part" and j.theirs == "all" and "beyond the end of the file" in j.we_said),
    ("behind-the-end", lambda j: we_refuse(j, "the block table ends at")),
    ("parallels-abort", lambda j: j.theirs == "killed" and "parallels-ext.c" in j.they_said),
    ("parallels-extension", lambda j: they_refuse(j, "Format Extension", "extension feature")),
    ("parallels-before", lambda j: j.ours == "part" and j.theirs == "all" and "before the data area" in j.we_said),
    ("parallels-few", lambda j: we_refuse(j, "clusters are less than the disk", "entries of the block table", "a disk of sectors")),
    ("limit", lambda j: we_refuse(j, "above the limit of")),
    ("parallels-layout", lambda j: we_refuse(j, "the header says")),
]

if __name__ == "__main__":
    sys.exit(main())
