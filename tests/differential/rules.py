# SPDX-License-Identifier: MIT
"""Why qemu-img and the library may disagree on an image. A rule is a name and a function (what, judged) -> bool; each stands
in README.md with the reason. `what` is "check: OURS, qemu-img: THEIRS", "read: ..." or "content: ..."."""

import os

from qcow2_image import EXT_BITMAPS, EXT_END

RULES = []
IMG_E_CORRUPT = -7
EXTRA_COMPATIBLE = 4    # flag of a bitmap that QEMU does not know

BITMAPS = ("doesn't satisfy the constraints", "Broken bitmap directory", "bitmaps_ext:", "bitmap_table", "Could not read bitmap",
           "Bitmap extra data", "bitmap directory", "More bitmaps found")


def rule(name):
    def add(function):
        RULES.append((name, function))
        return function
    return add


def explain(what, j):
    """The name of the first rule that applies, or None."""
    return next((name for name, applies in RULES if applies(what, j)), None)


def check_documented():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "README.md"), encoding="utf-8") as f:
        text = f.read()
    missing = [name for name, _ in RULES if "`%s`" % name not in text]
    if missing:
        raise SystemExit("README.md says nothing of the rules %s" % ", ".join(missing))


def ours(what, *verdicts):
    return what.split(": ")[1].split(",")[0] in verdicts


def theirs(what, *verdicts):
    return what.rsplit(": ", 1)[1] in verdicts


def they_said(what, j, *texts):
    said = j.check_said if what.startswith("check") else j.read_said
    return any(t in said for t in texts)


def we_said(what, j, *texts):
    said = j.check_why if what.startswith("check") else j.read_why
    return any(t in said for t in texts)


def odd_end_mark(img):
    """The header extension with the end's type has a length, or reaches into the name of the backing file."""
    name, at = img.field("backing_off"), img.get(100, 4) if img.get(4, 4) >= 3 else 72
    while img.inside(at, 8):
        if img.get(at, 4) == EXT_END:
            return img.get(at + 4, 4) != 0 or at < name < at + 8
        at += 8 + -(-img.get(at + 4, 4) // 8) * 8
    return False


def bitmap_flags(img):
    """Of the first bitmap."""
    at = img.get(100, 4)
    while img.inside(at, 32) and img.get(at, 4) != EXT_END:
        if img.get(at, 4) == EXT_BITMAPS:
            return img.get(img.get(at + 24) + 12, 4)
        at += 8 + -(-img.get(at + 4, 4) // 8) * 8
    return 0


# ---- they refuse, we do not

@rule("broken-bitmaps")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, *BITMAPS) and any("QCOW2-18" in r for r in j.broken)


@rule("bitmaps-extension")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "bitmaps_ext:")


@rule("bitmap-flag")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, BITMAPS[0]) and bitmap_flags(j.image) & EXTRA_COMPATIBLE != 0


@rule("odd-end-mark")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "Header extension too large") and odd_end_mark(j.image)


@rule("check-opens-backing")
def _(what, j):
    return what.startswith("check") and theirs(what, "refused") and they_said(what, j, "backing file")


@rule("no-refcount-table")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "does not contain a reference count table", "Reference count table offset")


@rule("encrypted")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "encrypt", "CRYPTO header")


@rule("snapshot-table")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "snapshot table", "Snapshot table")


@rule("data-file")
def _(what, j):
    return theirs(what, "refused") and they_said(what, j, "data-file-raw requires a data file", "'data-file' is required")


@rule("check-gives-up")
def _(what, j):
    return ours(what, "damage") and theirs(what, "refused") and they_said(what, j, "Check failed")


# ---- we refuse, they do not

@rule("header-length")
def _(what, j):
    return ours(what, "refused") and we_said(what, j, "header_length")


@rule("table-places")
def _(what, j):
    return ours(what, "refused") and we_said(what, j, "l1_table_offset", "refcount_table_offset", "snapshots_offset") and \
        we_said(what, j, "beyond the end of the file", "not the start of a cluster behind the header")


@rule("backing-place")
def _(what, j):
    return ours(what, "refused") and we_said(what, j, "backing_file_offset")


@rule("backing-guessed-raw")
def _(what, j):
    return what.startswith("read") and ours(what, "refused") and we_said(what, j, "neither recorded nor recognised")


@rule("cut-in-header")
def _(what, j):
    return ours(what, "refused") and we_said(what, j, "inside the header") and len(j.image.b) <= 512


@rule("references")
def _(what, j):
    return what.startswith("read") and ours(what, "refused") and we_said(what, j, "--allow-refs")


@rule("l1-at-open")
def _(what, j):
    return what.startswith("read: refused") and we_said(what, j, "of the L1 table") and "D:QCOW2-5" in j.broken


@rule("limits")
def _(what, j):
    return ours(what, "refused") and we_said(what, j, "--limit")


@rule("refused-as-damaged")
def _(what, j):
    return what.startswith("check") and ours(what, "refused") and j.code == IMG_E_CORRUPT and theirs(what, "damage")


@rule("reserved-bits")
def _(what, j):
    return what.startswith("read") and ours(what, "part") and we_said(what, j, "reserved", "not a cluster")


# ---- both look, and see other things

@rule("size-not-of-sectors")
def _(what, j):
    size = j.image.field("size")
    return size % 512 != 0 and (what == "content: shorter %d" % (size - size % 512) or they_said(what, j, "Could not read bitmap"))


@rule("blank-snapshot-in-v2")
def _(what, j):
    return what.startswith("check: damage") and j.image.field("version") == 2 and \
        [r for r in j.broken if r[0] == "D"] == ["D:QCOW2-15"]


@rule("bit-0")
def _(what, j):
    return what.startswith("check") and ours(what, "damage") and [r for r in j.broken if r[0] == "D"] == ["D:QCOW2-6"]


@rule("shared-metadata")
def _(what, j):
    return what.startswith("check: damage") and [r for r in j.broken if r[0] == "D"] == ["D:QCOW2-14"]


@rule("leaks-past-the-end")
def _(what, j):
    return what == "check: leaks, qemu-img: clean" and j.lowest_leak >= len(j.image.b)
