# SPDX-License-Identifier: MIT
"""What the makers and rules of plain.py have in common."""

SECTOR = 512


def number(data, at, width, order):
    return int.from_bytes(data[at:at + width], order)


def other_value(r, old, width, size):
    return r.choice((lambda: old ^ 1 << r.randrange(8 * width), lambda: 0, lambda: (1 << 8 * width) - 1, lambda: old + 1,
                     lambda: old - 1, lambda: old * 2, lambda: old // 2, lambda: size, lambda: size // SECTOR, lambda: 1 << 20,
                     lambda: r.getrandbits(8 * width), lambda: r.randrange(16)))() & (1 << 8 * width) - 1


def change(r, data, at, width, new=None):
    """A little-endian number becomes another one."""
    new = other_value(r, number(data, at, width, "little"), width, len(data)) if new is None else new
    data[at:at + width] = new.to_bytes(width, "little")


def cut(r, data):
    if r.random() < .1:
        return data[:r.choice((0, 100, 511, 512, 1024, len(data) // 2, len(data) - 512, len(data) - 1))]
    return data


def they_refuse(j, *words):
    return j.theirs == "refused" and j.ours != "refused" and any(w in j.they_said for w in words)


def we_refuse(j, *words):
    return j.ours == "refused" and j.theirs != "refused" and any(w in j.we_said for w in words)


def other_content(j, *kinds):
    return j.ours == j.theirs == "all" and j.where.split()[0] in kinds
