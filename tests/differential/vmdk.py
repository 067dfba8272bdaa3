# SPDX-License-Identifier: MIT
"""Damaged VMDK disks for plain.py: fields and tables of sparse extents, lines of descriptors, files beside them."""

import os
import re

import vmdk_image
from judged import SECTOR, change, cut, number, other_content, other_value, they_refuse, we_refuse

MIB = 1 << 20
TYPES = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs", "vmfsSparse", "custom",
         "streamOptimized", "fullDevice", "nonsense")


def grains(r, capacity, grain):
    nr = -(-capacity // grain)
    out = {n: r.randbytes(SECTOR) * grain for n in r.sample(range(nr), r.randrange(min(nr, 12)))}
    if r.random() < .3:
        out[r.randrange(nr)] = None
    return out


def sparse(r, text_of):
    capacity, grain = r.choice((4096, 4096 - 8, 4104)), r.choice((8, 16, 128, 128))
    text = text_of(capacity)
    return vmdk_image.Sparse(capacity, grain, grains(r, capacity, grain), text, r.choice((512, 512, 512, 128)))


def change_sparse(r, image):
    data, what = image.b, r.random()
    if what < .55:
        at, width = vmdk_image.FIELDS[r.choice(sorted(vmdk_image.FIELDS))]
        change(r, data, at, width)
        return
    place = r.choice((0, 1, 2, image.gd, len(data) // SECTOR, len(data) // SECTOR - image.grain, len(data) // SECTOR - 1,
                      r.getrandbits(32)))
    if what < .7:    # a directory
        at = r.choice((image.rgd, image.gd)) * SECTOR + 4 * r.randrange(len(image.table[0]))
        change(r, data, at, 4, r.choice((place, other_value(r, number(data, at, 4, "little"), 4, len(data)))))
        return
    image.put_entry(r.randrange(image.nr), place, r.choice(((0,), (1,), (0, 1), (0, 1))))


def change_text(r, text):
    """A word becomes another one, a number another number, a byte another byte; lines go, come twice or change places."""
    lines, what = text.decode("latin-1").split("\n"), r.random()
    i = r.randrange(len(lines))
    words = lines[i].split(" ")
    if what < .3 and words[0] in ("RW", "RDONLY", "NOACCESS"):
        k = r.randrange(len(words))
        words[k] = r.choice(("RW", "RDONLY", "NOACCESS", "FLAT", "SPARSE", "ZERO", "VMFS", "0", "1", "64", "4096", "9999999",
                             "-1", "18446744073709551615", '"image"', '"other"', '"none"', '"/etc/passwd"', ""))
        lines[i] = " ".join(words)
    elif what < .5:
        lines[i] = r.choice(('createType="%s"' % r.choice(TYPES), "version=%d" % r.randrange(4), "CID=%08x" % r.getrandbits(32),
                             "parentCID=%08x" % r.choice((0, 1, 0xffffffff)), 'parentFileNameHint="%s"' % r.choice(("none", "image")),
                             "", "# comment", "nonsense", "nonsense = 7", "RW 8 ZERO", "encoding=\"UTF-8\""))
    elif what < .6:
        lines.insert(r.randrange(len(lines)), lines[i])
    elif what < .7:
        del lines[i]
    else:
        line = bytearray(lines[i].encode("latin-1") or b" ")
        line[r.randrange(len(line))] = r.choice((0, 9, 10, 13, 32, 34, 35, 48, 57, 61, 65, 128, r.randrange(256)))
        lines[i] = line.decode("latin-1")
    return "\n".join(lines).encode("latin-1")


def beside(path, name, data):
    with open(os.path.join(os.path.dirname(path), name), "wb") as file:
        file.write(data)


def make_vmdk(r, path):
    changes = r.choice((0, 1, 1, 1, 2, 3))
    if r.random() < .5:    # all in one file
        image = sparse(r, lambda n: vmdk_image.descriptor(['RW %d SPARSE "image"' % n], "monolithicSparse"))
        for _ in range(changes):
            if r.random() < .7:
                change_sparse(r, image)
                continue
            end = image.b.index(0, SECTOR)
            text = change_text(r, bytes(image.b[SECTOR:end]))[:end - SECTOR]
            image.b[SECTOR:end] = text.ljust(end - SECTOR, b"\0")
        return cut(r, image.b)
    lines, kind = [], r.choice(("twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat", "custom"))
    for i in range(1 if kind == "monolithicFlat" else r.randrange(1, 4)):
        name = "extent%d" % i
        if kind == "twoGbMaxExtentSparse" or kind == "custom" and i == 1:
            image = sparse(r, lambda n: b"")
            if r.random() < .5:
                change_sparse(r, image)
            beside(path, name, cut(r, image.b))
            lines.append('RW %d SPARSE "%s"' % (image.capacity, name))
        else:
            nr = r.choice((8, 256, 2000))
            beside(path, name, cut(r, r.randbytes(SECTOR) * nr))
            lines.append('RW %d %s "%s" %d' % (nr, "VMFS" if r.random() < .1 else "FLAT", name, 0))
    if r.random() < .2:
        lines.append("RW 64 ZERO")
    text = vmdk_image.descriptor(lines, kind)
    for _ in range(changes):
        text = change_text(r, text)
    return text


def differs(j):
    return other_content(j, "shorter", "longer", "differs")


def ends_in_a_grain(j):
    """An extent in front of another one is not of whole grains."""
    return any(int(n) % 128 for n in re.findall(rb"(?m)^RW ([0-9]+) SPARSE", j.data)[:-1])


# Name and test, in order; README.md says why.
VMDK_RULES = [
    ("vmdk-types", lambda j: they_refuse(j, "Unsupported image type", "Invalid extent line") or we_refuse(j, "of the unknown type")),
    ("vmdk-parent", lambda j: j.theirs in ("slow", "refused") and b"parentFileNameHint=" in j.data and
     j.they_said.startswith(("no answer", "qemu-img: Could not open 'image': Could not open"))),
    ("vmdk-blank-line", lambda j: differs(j) and re.search(rb"\n\s*\n(RW|RDONLY|NOACCESS) ", j.data)),
    ("vmdk-zero", lambda j: differs(j) and b" ZERO" in j.data),
    ("vmdk-access", lambda j: re.search(rb"(?m)^(RDONLY|NOACCESS) ", j.data) and
     (differs(j) or j.ours == "part" and j.theirs == "all" and "forbids access" in j.we_said)),
    ("vmdk-capacity", lambda j: differs(j) and "L:VMDK-12" in j.broken or we_refuse(j, "but the descriptor says")),
    ("vmdk-part-of-a-grain", lambda j: differs(j) and ends_in_a_grain(j)),
    ("vmdk-two-directories", lambda j: differs(j) and "D:VMDK-8" in j.broken),
    ("vmdk-compressed", lambda j: j.theirs == "part" and j.ours == "all" and number(j.data, 77, 2, "little")),
    ("vmdk-tables", lambda j: they_refuse(j, "L2 table size too big")),
    ("vmdk-no-parent-id", lambda j: they_refuse(j, "Invalid argument") and b"parentCID=" not in j.data),
    ("vmdk-truncated", lambda j: they_refuse(j, "File truncated")),
    ("behind-the-end", lambda j: j.ours == "part" and j.theirs == "all" and
     any(w in j.we_said for w in ("beyond the end of the file", "reaches over the end of the file"))),
    ("behind-the-end", lambda j: we_refuse(j, "lies outside the file", "the file ends at")),
    ("vmdk-over-tables", lambda j: j.ours == "part" and j.theirs == "all" and "leads to the extent's own tables" in j.we_said),
    ("vmdk-lines", lambda j: we_refuse(j, "that is not understood", "of an unknown kind", "an extent without a name", "whose offset is no number")),
    ("vmdk-twice", lambda j: we_refuse(j, " twice", "lie over each other", "is named by two extents")),
    ("vmdk-words", lambda j: we_refuse(j, "the descriptor lacks", "that is none", "does not name the parent")),
    ("vmdk-newlines", lambda j: we_refuse(j, "line ends were changed")),
    ("vmdk-header", lambda j: we_refuse(j, "unknown features", "a sparse extent of version", "out of all bounds", "of no possible",
                                        "of too many sectors", "by an unknown method")),
    ("vmdk-layout", lambda j: we_refuse(j, "describes other files", "names itself", "without a descriptor")),
]
