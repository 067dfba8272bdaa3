# SPDX-License-Identifier: MIT
"""Damaged VHDX images for plain.py: fields of headers, regions, metadata and entries of the table are changed, checksums made right."""

import vhdx_image
from judged import SECTOR, change, cut, number, other_value, they_refuse, we_refuse

MIB = 1 << 20
HEADERS, REGIONS = (65536, 131072), (196608, 262144)
HEADER_FIELDS = [(0, 4), (8, 8), (48, 8), (64, 2), (66, 2), (68, 4), (72, 8)]
REGION_FIELDS = [(0, 4), (8, 4)] + [(16 + 32 * i + at, width) for i in range(2) for at, width in ((0, 4), (16, 8), (24, 4), (28, 4))]
STATES = (0, 1, 2, 3, 4, 5, 6, 7)


def template(r):
    if r.random() < .1:
        return vhdx_image.logged(r.choice(("plain", "wrapped", "torn", "moved", "many", "stale", "foreign")))[0]
    image = vhdx_image.Vhdx(r.choice((3 * MIB, 4 * MIB - SECTOR, 5 * MIB, 6 * MIB - 4096)), block=r.choice((MIB, MIB, 2 * MIB)),
                            swapped=r.random() < .3)
    for block in r.sample(range(image.nr), r.randrange(image.nr + 1)):
        image.put(block, r.choice((None, r.randbytes(4096) * (image.block // 4096))), r.choice(STATES[:4]))
        if image.bat[image.slot(block)] > MIB:    # it got a place: it is present
            image.bat[image.slot(block)] |= 7
            image.bat[image.slot(block)] &= ~1
    return image


def fix(data, at, size):
    data[at:at + size] = vhdx_image.summed(data[at:at + size])


def change_twice(r, data, places, size, fields):
    """In one copy or both; the checksums are made right most of the time."""
    at, width = r.choice(fields)
    new = other_value(r, number(data, places[1] + at, width, "little"), width, len(data))
    for place in places if r.random() < .7 else (r.choice(places),):
        change(r, data, place + at, width, new)
        if r.random() < .85:
            fix(data, place, size)


def change_metadata(r, data, at):
    nr = number(data, at + 10, 2, "little")
    entries = [at + 32 + 32 * i for i in range(min(nr, 6))]
    fields = [(at, 4), (at + 10, 2)] + [(e + o, 4) for e in entries for o in (0, 16, 20, 24)]
    for e in entries:    # the values, twice as likely
        off, width = at + number(data, e + 16, 4, "little"), min(number(data, e + 20, 4, "little"), 8)
        if off + 8 < len(data):
            fields += [(off, width), (off, 4), (off + 4, 4 if width > 4 else 1)]
    change(r, data, *r.choice([f for f in fields if f[1]]))


def change_entry(r, data, image):
    at = image.bat_off + 8 * r.randrange(len(image.bat))
    places = [e & -MIB for e in image.bat if e > MIB] or [0]
    new = r.choice((lambda: number(data, at, 8, "little") & -8 | r.choice(STATES), lambda: r.choice(places) | 6,
                    lambda: r.choice((0, MIB, 2 * MIB, 3 * MIB, len(data), len(data) - MIB, 1 << 50)) | r.choice(STATES),
                    lambda: other_value(r, number(data, at, 8, "little"), 8, len(data))))()
    change(r, data, at, 8, new)


def make_vhdx(r, path):
    del path
    image = template(r)
    data = bytearray(image.build())
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        what = r.random()
        if what < .2:
            change_twice(r, data, HEADERS, 4096, HEADER_FIELDS)
        elif what < .4:
            change_twice(r, data, REGIONS, 65536, REGION_FIELDS)
        elif what < .7:
            change_metadata(r, data, image.meta_off)
        else:
            change_entry(r, data, image)
    return cut(r, data)


def log_guid(j):
    return any(j.data[at + 48:at + 64].strip(b"\0") for at in HEADERS)


def odd_log_place(j):
    """Of a log that is empty: nobody needs its place for reading."""
    return any(number(j.data, at + 68, 4, "little") % MIB or number(j.data, at + 72, 8, "little") % MIB or
               number(j.data, at + 72, 8, "little") < MIB for at in HEADERS)


def long_log(j):
    return any(number(j.data, at + 68, 4, "little") != MIB or number(j.data, at + 72, 8, "little") != MIB for at in HEADERS)


# Name and test, in order; README.md says why.
VHDX_RULES = [
    ("vhdx-log-waits", lambda j: they_refuse(j, "contains a log that needs to be replayed")),
    ("vhdx-log", lambda j: they_refuse(j, "Invalid argument") and log_guid(j)),
    ("vhdx-log-place", lambda j: they_refuse(j, "Invalid argument", "overlaps with region") and odd_log_place(j)),
    ("vhdx-second-copy", lambda j: they_refuse(j, "Invalid argument") and {"N:VHDX-2", "N:VHDX-3"} & set(j.broken)),
    ("vhdx-overlap", lambda j: they_refuse(j, "overlaps with region") and {"D:VHDX-8", "D:VHDX-9"} & set(j.broken)),
    ("vhdx-behind-the-end", lambda j: they_refuse(j, "points after end of file") and {"D:VHDX-8", "N:VHDX-13"} & set(j.broken)),
    ("vhdx-behind-the-end", lambda j: j.ours == "part" and j.theirs == "all" and "beyond the end of the file" in j.we_said),
    ("vhdx-headers", lambda j: j.ours == "part" and j.theirs == "all" and "into the headers" in j.we_said),
    ("vhdx-state", lambda j: j.ours == "part" and "is none that this image can have" in j.we_said),
    ("vhdx-version", lambda j: we_refuse(j, "with log version")),
    ("vhdx-metadata", lambda j: we_refuse(j, "an item of metadata has", "two items of metadata", "of a physical sector is none", "size of the disk is none")),
    ("vhdx-region", lambda j: we_refuse(j, "does not lie inside the file")),
    ("vhdx-log-place", lambda j: they_refuse(j, "overlaps with region") and long_log(j)),
    ("vhdx-behind-the-end", lambda j: they_refuse(j, "offset overflow") and "D:VHDX-8" in j.broken),
]
