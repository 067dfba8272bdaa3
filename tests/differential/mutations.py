# SPDX-License-Identifier: MIT
"""Damaged qcow2 images for differential.py, each from a seed: what an image is made of is found by following its header, so
that any image can be a template. Three kinds of templates: those of tests/hostile/mutate.py, the cases of
tests/images/gen/qcow2_hostile.py, and images that qemu-img and qemu-io made."""

import os
import random
import subprocess
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(here, "..", "images", "gen"), os.path.join(here, "..", "hostile")]

import mutate  # noqa: E402
import qcow2_hostile  # noqa: E402
from qcow2_image import EXT_BITMAPS, EXTENDED, FIELDS, Image  # noqa: E402

OFFSET = 0x00FFFFFFFFFFFE00
MOST_BYTES = 8 << 20

# What qemu-img creates, and what qemu-io then does to it.
MADE = [
    ("", ""),
    ("cluster_size=512", ""),
    ("compat=0.10", ""),
    ("lazy_refcounts=on,cluster_size=4k", ""),
    ("compression_type=zstd,cluster_size=16k", "-c"),
    ("cluster_size=16k", "-c"),
    ("extended_l2=on,cluster_size=16k", ""),
    ("extended_l2=on,compression_type=zstd,cluster_size=32k", "-c"),
    ("refcount_bits=1,cluster_size=8k", ""),
    ("refcount_bits=64,cluster_size=1k", ""),
    ("preallocation=metadata,cluster_size=4k", ""),
    ("backing_file=base.raw,backing_fmt=raw,cluster_size=4k", ""),
]


def make_templates(folder):
    """Files of images that QEMU made; a backing file called base.raw stands in the folder."""
    files = []
    with open(os.path.join(folder, "base.raw"), "wb") as f:
        f.write(b"".join(b"%015d\n" % i for i in range(1 << 14)))
    for i, (options, packed) in enumerate(MADE):
        path = os.path.join(folder, "template%d.qcow2" % i)
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder}
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2"] + (["-o", options] if options else []) + [path, "2M"],
                       **quiet)
        commands = ["write -P 17 %s 0 64k" % packed, "write -P 34 300k 8k", "write -z 64k 64k", "write -P 51 1536k 33k",
                    "write -P 68 %s 128k 128k" % packed, "discard 192k 32k"]
        subprocess.run(["qemu-io", "-f", "qcow2"] + [x for c in commands for x in ("-c", c)] + [path], **quiet)
        if "refcount_bits=1," not in options:
            subprocess.run(["qemu-img", "snapshot", "-c", "first", path], **quiet)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 85 0 40k", path], **quiet)
        if "compat" not in options and i % 2 == 0:
            subprocess.run(["qemu-img", "bitmap", "--add", path, "marks"], **quiet)
        files.append(path)
    return files


class Found(Image):
    """Any file, seen as the generators' images are: put(), get(), field() and descriptor() work."""

    def __init__(self, data):
        self.b = bytearray(data[:MOST_BYTES])
        self.b.extend(bytes(max(0, 512 - len(self.b))))
        bits = self.get(20, 4)
        self.bits = bits if 9 <= bits <= 21 else 12
        self.cluster = 1 << self.bits
        self.extended = self.get(4, 4) >= 3 and bool(self.get(72) & EXTENDED)

    def inside(self, off, nbytes=8):
        return 0 <= off and off + nbytes <= len(self.b)

    def table(self, off, entries, r, most=6):
        """Places of some entries of a table: the first ones and some others."""
        picked = {0, 1} | {r.randrange(max(1, min(entries, self.cluster // 8))) for _ in range(most)}
        return [(off + 8 * i, 8) for i in sorted(picked) if i < entries and self.inside(off + 8 * i)]

    def linked(self, places):
        return [v for v in (self.get(at) & OFFSET for at, _ in places) if v and self.inside(v, self.cluster)]


def header_places(img):
    return [(off, n) for off, n in FIELDS.values() if img.inside(off, n)]


def extension_places(img):
    out, at = [], img.get(100, 4) if img.get(4, 4) >= 3 else 72
    while img.inside(at, 8) and at < img.cluster and len(out) < 30:
        length = img.get(at + 4, 4)
        out += [(at, 4), (at + 4, 4)] + [(at + 8 + i, 4) for i in range(0, min(length, 24), 4)]
        if not img.get(at, 4):
            break
        at += 8 + -(-length // 8) * 8
    name = img.field("backing_off")
    if name:
        out += [(name + i, 1) for i in range(min(8, img.field("backing_bytes")))]
    return [p for p in out if img.inside(*p)]


def l1_places(img, r):
    return img.table(img.field("l1_off"), img.field("l1_size"), r)


def l2_places(img, r, l1=None):
    out = []
    for table in img.linked(l1 or l1_places(img, r))[:3]:
        out += img.table(table, img.cluster // 8, r, 12)
        if img.extended:  # bitmaps of subclusters, too
            out += [(at + 8, 8) for at, _ in out if img.inside(at + 8)]
    return out


def refcount_places(img, r):
    table = img.table(img.field("reftable_off"), img.field("reftable_clusters") * img.cluster // 8, r, 2)
    out = list(table)
    order = img.field("refcount_order") if img.field("version") >= 3 else 4
    width = max(1, 1 << order >> 3) if order <= 6 else 2
    for block in img.linked(table)[:2]:
        out += [(block + width * r.randrange(min(200, img.cluster // width)), width) for _ in range(8)]
    return [p for p in out if img.inside(*p)]


def snapshot_places(img, r):
    at = img.field("snapshots_off")
    if not img.field("nb_snapshots") or not img.inside(at, 40):
        return []
    out = [(at + o, n) for o, n in ((0, 8), (8, 4), (12, 2), (14, 2), (16, 4), (32, 4), (36, 4), (40, 8), (48, 8), (56, 8))]
    l1 = img.table(img.get(at), img.get(at + 8, 4), r)
    return [p for p in out + l1 + l2_places(img, r, l1)[:6] if img.inside(*p)]


def bitmap_places(img, r):
    at = img.get(100, 4)
    for _ in range(10):
        if not img.inside(at, 32) or not img.get(at, 4):
            return []
        if img.get(at, 4) == EXT_BITMAPS:
            break
        at += 8 + -(-img.get(at + 4, 4) // 8) * 8
    directory = img.get(at + 24)
    if not img.inside(directory, 24):
        return []
    out = [(directory + o, n) for o, n in ((0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4))]
    return out + img.table(img.get(directory), img.get(directory + 8, 4), r, 2)


def value(img, r, old, nbytes, others):
    top = (1 << nbytes * 8) - 1
    return r.choice((
        lambda: mutate.value(img, r, old),
        lambda: mutate.value(img, r, old),
        lambda: old ^ 1 << r.randrange(nbytes * 8),
        lambda: old + r.choice((-2, -1, 1, 2)),
        lambda: r.choice((0, 1, top, top >> 1, (top >> 1) + 1)),
        lambda: r.randrange(20),
        lambda: img.get(*r.choice(others)),
    ))() & top


def change_entry(img, r):
    kinds = (header_places(img), extension_places(img), l1_places(img, r), l2_places(img, r), l2_places(img, r),
             refcount_places(img, r), snapshot_places(img, r), bitmap_places(img, r))
    places = r.choice([k for k in kinds if k])
    at, nbytes = r.choice(places)
    img.put(at, value(img, r, img.get(at, nbytes), nbytes, places), nbytes)


def change_bytes(img, r):
    """Anywhere, mostly in the first clusters, where tables are."""
    at = r.randrange(len(img.b) if r.random() < 0.3 else min(len(img.b), 8 * img.cluster))
    for i in range(r.choice((1, 1, 2, 8))):
        if at + i < len(img.b):
            img.b[at + i] = r.randrange(256)


def change_cluster(img, r):
    clusters = len(img.b) >> img.bits
    if clusters < 2:
        return
    to = r.randrange(1, clusters) << img.bits
    src = r.randrange(clusters) << img.bits
    img.b[to:to + img.cluster] = r.choice((img.b[src:src + img.cluster], bytes(img.cluster), b"\xff" * img.cluster))


def change_length(img, r):
    if r.random() < 0.6:
        n = r.randrange(len(img.b))
        del img.b[n & ~(img.cluster - 1) if r.random() < 0.5 else n:]
    else:
        img.b.extend(r.choice((b"\0", b"\x55")) * r.randrange(1, 3 * img.cluster))


def make(seed, templates):
    """Returns the bytes of image number seed; a few are left as the template is."""
    r = random.Random(seed)
    kind = r.random()
    if kind < 0.5:
        img = Found(mutate.make(r).b)
    elif kind < 0.85 and templates:
        with open(r.choice(templates), "rb") as f:
            img = Found(f.read())
    else:
        names = [n for n in qcow2_hostile.CASES if "bomb" not in n and "alias" not in n]
        img = Found(qcow2_hostile.CASES[r.choice(names)].bytes())
    for _ in range(r.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 3))):
        r.choice((change_entry,) * 14 + (change_bytes,) * 2 + (change_cluster, change_length))(img, r)
        if len(img.b) < 512:
            break
    return bytes(img.b)
