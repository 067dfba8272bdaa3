#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Random damage to the metadata of small qcow2 images. imgtool must end with a documented exit status, in time, without a
sanitizer's complaint. An image that a repair calls clean must be clean for a second check, read as before the repair,
and, with --judge, be clean for qemu-img.

mutate.py IMGTOOL [--seed N] [--count N] [--judge] [--keep FOLDER]"""

import argparse
import os
import random
import shutil
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "images", "gen"))

from hostile import Failed, run  # noqa: E402
from qcow2_image import COMPRESSED, COPIED, EXT_BITMAPS, ZERO, sample  # noqa: E402


def make(r):
    version = r.choice((2, 3, 3, 3))
    bits = r.choice((9, 9, 12, 12, 14, 16))
    img = sample(version=version, cluster_bits=bits, size=r.choice((1, 4)) << 20,
                 refcount_order=r.choice((4, 4, 3, 5, 6)) if version == 3 else 4,
                 extended=version == 3 and bits >= 14 and r.random() < 0.5)
    for i in range(r.choice((0, 0, 1, 2))):
        img.snapshot(b"s%d" % i)
        img.write(r.randrange(12))
    if version == 3 and r.random() < 0.3:
        img.bitmap(granularity_bits=12)
    return img.finish()


def words(img, r):
    """Places of 8 bytes that mean something."""
    places = [img.l1 + 8 * r.randrange(img.l1_entries), img.reftable, img.reftable + 8 * r.randrange(img.cluster // 8)]
    for at in list(img.l2.values()) + img.snapshot_l1:
        places += [at + 8 * r.randrange(min(32, img.cluster // 8)) for _ in range(4)]
    places += [r.choice(img.blocks) + 8 * r.randrange(16)]
    places += [8 * r.randrange(14)]
    if img.snaps:
        places.append(img.snapshots + 8 * r.randrange(img.snapshots_bytes // 8))
    if img.bitmaps:
        places += [img.bitmaps[0]["table"], img.bitmap_dir + 8 * r.randrange(4), img.ext_place(EXT_BITMAPS) + 8 * r.randrange(4)]
    return places


def value(img, r, old):
    clusters = len(img.b) >> img.bits
    return r.choice((
        lambda: old ^ 1 << r.randrange(64),
        lambda: old ^ COPIED,
        lambda: 0,
        lambda: (1 << 64) - 1,
        lambda: r.getrandbits(64),
        lambda: r.randrange(clusters + 2) << img.bits | r.choice((0, COPIED)),
        lambda: r.randrange(clusters + 2) << img.bits | ZERO,
        lambda: COMPRESSED | r.getrandbits(62),
        lambda: img.descriptor(r.randrange(len(img.b)), r.randrange(1 << min(4, img.bits - 8))),
        lambda: old + r.choice((-1, 1, 512, 1 << img.bits)),
    ))() % (1 << 64)


def damage(img, r):
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        at = r.choice(words(img, r))
        if r.random() < 0.2:
            img.b[at + r.randrange(8)] = r.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        else:
            img.put(at, value(img, r, img.get(at)))
    if r.random() < 0.05:
        del img.b[r.randrange(len(img.b)):]


def imgtool(tool, folder, *args):
    rc, out, err, _ = run([tool, *args], folder)
    if rc not in (0, 2, 3, 4, 6):
        raise Failed("imgtool %s: exit %d: %s" % (" ".join(args), rc, err))
    return rc, out, err


def one(tool, folder, seed, judge):
    r = random.Random(seed)
    img = make(r)
    damage(img, r)
    name = "%d.qcow2" % seed
    path = os.path.join(folder, name)
    img.save(path)
    found = imgtool(tool, folder, "check", "-f", "qcow2", name)
    imgtool(tool, folder, "info", name)
    imgtool(tool, folder, "map", "-f", "qcow2", name)
    imgtool(tool, folder, "snapshot", "list", name)
    before = imgtool(tool, folder, "checksum", "-f", "qcow2", name)
    rc, out, err = imgtool(tool, folder, "check", "-f", "qcow2", "--repair", name)
    if found[0] == 0 and rc != 0:
        raise Failed("a clean image is not clean under repair: %s %s" % (out, err))
    if rc == 0:
        again = imgtool(tool, folder, "check", "-f", "qcow2", name)
        after = imgtool(tool, folder, "checksum", "-f", "qcow2", name)
        if again[0] != 0:
            raise Failed("not clean after a repair: %s\nthen: %s %s" % (out, again[1], again[2]))
        if before[0] == 0 and (after[0] != 0 or after[1].split()[0] != before[1].split()[0]):
            raise Failed("the repair changed the content: %s" % after[2])
        if judge:
            code, out, err, _ = run(["qemu-img", "check", "-f", "qcow2", name], folder)
            # A bitmap of a kind that nobody knows is kept, and we say what QEMU makes of it.
            foretold = "for which others refuse the image" in "%s%s" % (again[1], again[2])
            if code != 0 and not (foretold and "constraints" in str(err)):
                raise Failed("qemu-img check: %d: %s %s" % (code, out, err))
    os.unlink(path)
    return rc == 0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("tool")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--judge", action="store_true")
    p.add_argument("--keep", metavar="FOLDER", help="where the images of failures go")
    args = p.parse_args()
    if args.judge and not shutil.which("qemu-img"):
        print("qemu-img is not installed: there is no judge")
        return 77
    print("seed %d" % args.seed)
    failed = clean = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        for seed in range(args.seed, args.seed + args.count):
            try:
                clean += one(os.path.abspath(args.tool), folder, seed, args.judge)
            except Failed as e:
                failed += 1
                print("--seed %d --count 1: %s" % (seed, e))
                if args.keep:
                    shutil.copy(os.path.join(folder, "%d.qcow2" % seed), args.keep)
    print("%d images, %d clean in the end, %d failed" % (args.count, clean, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
