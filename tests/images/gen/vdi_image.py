# SPDX-License-Identifier: MIT
"""
VDI images, made from nothing, as no tool at hand writes them: every block size, extra bytes before each block, version
0, differencing images, blocks in any order, damage. From format-spec/vdi.md.
"""
import random
import struct

FREE, ZERO = 0xffffffff, 0xfffffffe
DYNAMIC, FIXED, UNDO, DIFF = 1, 2, 3, 4
NULL = bytes(16)


class Image:
    """Fields are as on disk; change what you like before save()."""

    def __init__(self, size=1 << 20, block=65536, extra=0, kind=DYNAMIC, version=0x10001, align=512, seed=1,
                 parent=None, comment=b'', header_bytes=400):
        self.rng = random.Random(seed)
        self.size, self.block, self.extra, self.kind, self.version = size, block, extra, kind, version
        self.comment, self.header_bytes, self.flags = comment, header_bytes, 0
        self.nr_blocks = -(-size // block)
        self.entries = [FREE] * self.nr_blocks
        self.content = {}       # block -> bytes
        self.uuid, self.modification = self.rng.randbytes(16), self.rng.randbytes(16)
        self.parent, self.parent_modification = (parent.uuid, parent.modification) if parent else (NULL, NULL)
        self.below = parent
        self.count = 0
        if version == 2:
            self.map_off, self.data_off = 420, 420 + 4 * self.nr_blocks
        else:
            self.map_off = -(-(72 + header_bytes) // align) * align
            self.data_off = -(-(self.map_off + 4 * self.nr_blocks) // align) * align

    def write(self, block, data=None):
        """One whole block; random by default."""
        self.content[block] = data if data is not None else self.rng.randbytes(self.block)
        if self.entries[block] >= ZERO:
            self.entries[block] = self.count
            self.count += 1
        return self

    def zero(self, block):
        self.entries[block] = ZERO
        self.content[block] = bytes(self.block)
        return self

    def fixed(self):
        self.kind = FIXED
        for block in range(self.nr_blocks):
            self.write(block)
        return self

    def shuffle(self):
        """Places in another order than blocks."""
        used = [b for b, e in enumerate(self.entries) if e < ZERO]
        places = [self.entries[b] for b in used]
        self.rng.shuffle(places)
        for b, e in zip(used, places):
            self.entries[b] = e
        return self

    def read(self):
        below = self.below.read() if self.below else b''
        out = bytearray(below[:self.nr_blocks * self.block].ljust(self.nr_blocks * self.block, b'\0'))
        for block, data in self.content.items():
            out[block * self.block:block * self.block + len(data)] = data
        return bytes(out[:self.size])

    def header(self):
        text = b'<<< test >>>\n'.ljust(64, b'\0') + struct.pack('<II', 0xbeda107f, self.version)
        geometry = struct.pack('<IIII', 0, 0, 0, 512)
        comment = self.comment.ljust(256, b'\0')
        if self.version == 2:
            return text + struct.pack('<II', self.kind, self.flags) + comment + geometry + struct.pack(
                '<QIII', self.size, self.block, self.nr_blocks, self.count) + self.uuid + self.modification + self.parent
        return (text + struct.pack('<III', self.header_bytes, self.kind, self.flags) + comment +
                struct.pack('<II', self.map_off, self.data_off) + geometry +
                struct.pack('<IQIIII', 0, self.size, self.block, self.extra, self.nr_blocks, self.count) +
                self.uuid + self.modification + self.parent + self.parent_modification + geometry)[:72 + self.header_bytes]

    def save(self, path):
        place = self.extra + self.block
        with open(path, 'wb') as file:
            file.write(self.header())
            file.seek(self.map_off)
            file.write(struct.pack('<%dI' % len(self.entries), *self.entries))
            file.truncate(max(self.data_off + self.count * place, self.map_off + 4 * len(self.entries)))
            for block, data in self.content.items():
                if self.entries[block] < self.count:
                    file.seek(self.data_off + self.entries[block] * place)
                    file.write(self.rng.randbytes(self.extra) + data)
        return self


def sample(seed=1, **how):
    """Some blocks written in another order, some zero, some free."""
    img = Image(seed=seed, **how)
    for block in img.rng.sample(range(img.nr_blocks), max(1, img.nr_blocks // 2)):
        img.write(block)
    for block in range(0, img.nr_blocks, 5):
        if img.entries[block] == FREE:
            img.zero(block)
    return img.shuffle()
