# SPDX-License-Identifier: MIT
"""
VHDX images as no tool at hand writes them: differences with sector bitmaps, logs of every shape, metadata and regions in any order. Written
from [MS-VHDX], not with the library. Content is a dict of block number -> bytes, or None for zeros; what is not in it is not
present.

    vhdx_image.py FOLDER      writes one of each kind, and their content as NAME.raw
"""
import os
import struct
import sys
import uuid

MIB = 1 << 20
BAT = uuid.UUID('2DC27766-F623-4200-9D64-115E9BFD4A08').bytes_le
META = uuid.UUID('8B7CA206-4790-4B9A-B8FE-575F050F886E').bytes_le
ITEMS = {
    'parameters': uuid.UUID('CAA16737-FA36-4D43-B3B6-33F0AA44E76B').bytes_le,
    'size': uuid.UUID('2FA54224-CD1B-4876-B211-5DBED83BF4B8').bytes_le,
    'logical': uuid.UUID('8141BF1D-A96F-4709-BA47-F233A8FAAB5F').bytes_le,
    'physical': uuid.UUID('CDA348C7-445D-4471-9CC9-E9885251C556').bytes_le,
    'page83': uuid.UUID('BECA12AB-B2E6-4523-93EF-C309E000C746').bytes_le,
    'locator': uuid.UUID('A8D35F2D-B30B-454D-ABF7-D3D84834AB0C').bytes_le,
}
LOCATOR = uuid.UUID('B04AEFB7-D19E-4A81-B789-25B8E9445913').bytes_le
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, PRESENT, PARTLY = 0, 1, 2, 3, 6, 7


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xffffffff


def _crc_table():
    out = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
        out.append(i)
    return out


CRC = _crc_table()


def summed(data, at=4):
    data = bytearray(data)
    data[at:at + 4] = bytes(4)
    struct.pack_into('<I', data, at, crc32c(data))
    return bytes(data)


def guid(n):
    return uuid.UUID(int=n << 64 | 0x1234)


class Vhdx:
    def __init__(self, size, block=MIB, sector=512, parent=None, linkage=None, swapped=False, ident=1, absolute=None):
        self.size, self.block, self.sector = size, block, sector
        self.parent, self.linkage, self.absolute = parent, linkage, absolute
        self.data_write = guid(ident)
        self.log_guid = bytes(16)
        self.ratio = (1 << 23) * sector // block
        self.nr = -(-size // block)
        chunks = -(-self.nr // self.ratio)
        slots = chunks * (self.ratio + 1) if parent else self.nr + (self.nr - 1) // self.ratio
        self.bat = [0] * slots
        bat_mib = -(-slots * 8 // MIB)
        self.log_off, self.log = MIB, bytes(MIB)
        at = [2 * MIB, 3 * MIB] if not swapped else [2 * MIB + bat_mib * MIB, 2 * MIB]    # metadata, bat
        self.meta_off, self.bat_off, self.bat_bytes = at[0], at[1], bat_mib * MIB
        self.swapped = swapped
        self.out = bytearray((3 + bat_mib) * MIB)

    def slot(self, block):
        return block + block // self.ratio

    def place(self, data):
        off = len(self.out)
        self.out += data
        self.out += bytes(-len(self.out) % MIB)
        return off

    def put(self, block, data, state=PRESENT):
        if data is None:
            self.bat[self.slot(block)] = state
        else:
            self.bat[self.slot(block)] = self.place(data.ljust(self.block, b'\0')) | state

    def put_sectors(self, block, data, held):
        """held: the numbers of the sectors that the child has."""
        chunk = block // self.ratio
        index = chunk * (self.ratio + 1) + self.ratio
        if self.bat[index] == 0:
            self.bat[index] = self.place(bytes(MIB)) | PRESENT
        bitmap = (self.bat[index] & ~(MIB - 1)) + block % self.ratio * (self.block // self.sector // 8)
        for s in held:
            self.out[bitmap + s // 8] |= 1 << s % 8
        self.put(block, data, PARTLY)

    def metadata(self):
        keys = []
        if self.parent:
            keys = [('parent_linkage', '{%s}' % self.linkage)]
            if self.parent != 'none':
                keys.append(('relative_path', self.parent))
            if self.absolute:
                keys.append(('absolute_win32_path', self.absolute))
        head, text = LOCATOR + struct.pack('<HH', 0, len(keys)), b''
        for key, value in keys:
            k, v = key.encode('utf-16-le'), value.encode('utf-16-le')
            at = 20 + 12 * len(keys) + len(text)
            head += struct.pack('<IIHH', at, at + len(k), len(k), len(v))
            text += k + v
        values = [('parameters', struct.pack('<II', self.block, 2 if self.parent else 0)), ('size', struct.pack('<Q', self.size)),
                  ('page83', guid(99).bytes_le), ('logical', struct.pack('<I', self.sector)), ('physical', struct.pack('<I', 4096))]
        if self.parent:
            values.append(('locator', head + text))
        if self.swapped:
            values.reverse()
        table, at, body = b'metadata' + struct.pack('<HH', 0, len(values)) + bytes(20), 65536, b''
        for name, value in values:
            table += ITEMS[name] + struct.pack('<IIII', at + len(body), len(value), 4, 0)
            body += value
        return (table.ljust(65536, b'\0') + body).ljust(MIB, b'\0')

    def headers(self):
        out = []
        for seq in (7, 8):
            h = b'head' + bytes(4) + struct.pack('<Q', seq) + guid(50 + seq).bytes_le + self.data_write.bytes_le + self.log_guid
            h += struct.pack('<HHIQ', 0, 1, MIB, self.log_off)
            out.append(summed(h.ljust(4096, b'\0')))
        return out

    def regions(self):
        entries = [BAT + struct.pack('<QII', self.bat_off, self.bat_bytes, 1), META + struct.pack('<QII', self.meta_off, MIB, 1)]
        if self.swapped:
            entries.reverse()
        return summed((b'regi' + bytes(4) + struct.pack('<II', 2, 0) + b''.join(entries)).ljust(65536, b'\0'))

    def build(self):
        out = self.out
        a, b = self.headers()
        for at, data in ((0, b'vhdxfile' + 'test'.encode('utf-16-le')), (65536, a), (131072, b), (196608, self.regions()),
                         (262144, self.regions()), (self.log_off, self.log), (self.meta_off, self.metadata()),
                         (self.bat_off, struct.pack('<%dQ' % len(self.bat), *self.bat))):
            out[at:at + len(data)] = data
        return bytes(out)


def log_entry(log_guid, sequence, tail, changes, file_bytes):
    """changes: (offset, 4096 bytes) or (offset, number of bytes of zeros)."""
    nr = len(changes)
    sectors = 1 if nr <= 126 else 1 + -(-(nr - 126) // 128)
    data = [d for _, d in changes if isinstance(d, bytes)]
    size = 4096 * (sectors + len(data))
    out = b'loge' + bytes(4) + struct.pack('<IIQII', size, tail, sequence, nr, 0) + log_guid + struct.pack('<QQ', *file_bytes)
    for off, d in changes:
        if isinstance(d, bytes):
            out += b'desc' + d[-4:] + d[:8] + struct.pack('<QQ', off, sequence)
        else:
            out += b'zero' + bytes(4) + struct.pack('<QQQ', d, off, sequence)
    out = out.ljust(4096 * sectors, b'\0')
    for d in data:
        out += b'data' + struct.pack('<I', sequence >> 32) + d[8:-4] + struct.pack('<I', sequence & 0xffffffff)
    return summed(out)


def ring(entries, start, size=MIB):
    """Entries one behind the other from start on, around the end."""
    out = bytearray(size)
    data = b''.join(entries)
    first = min(len(data), size - start)
    out[start:start + first] = data[:first]
    out[:len(data) - first] = data[first:]
    return bytes(out)


# ---- samples ----

def noise(n, seed):
    out = bytearray()
    while len(out) < n:
        seed = (seed * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        out += struct.pack('<Q', seed) * 8
    return bytes(out[:n])


def flat(img, blocks, below=None):
    out = bytearray(below if below else img.size)
    if len(out) < img.size:
        out += bytes(img.size - len(out))
    for block, data in blocks.items():
        at = block * img.block
        n = min(img.block, img.size - at)
        out[at:at + n] = (data or b'').ljust(n, b'\0')[:n]
    return bytes(out[:img.size])


def logged(kind):
    """An image of which the log adds a block, changes another's data and zeroes a part of a third."""
    img = Vhdx(5 * MIB - 512)
    blocks = {0: noise(MIB, 1), 2: noise(MIB, 2), 3: noise(MIB, 3)}
    for block, data in blocks.items():
        img.put(block, data)
    new = noise(MIB, 4)
    place = img.place(new)
    img.log_guid = guid(77).bytes_le
    bat = list(img.bat)
    bat[img.slot(1)] = place | PRESENT
    at0, at2 = img.bat[img.slot(0)] & ~(MIB - 1), img.bat[img.slot(2)] & ~(MIB - 1)
    size = (len(img.out), len(img.out))
    page = struct.pack('<%dQ' % len(bat), *bat).ljust(4096, b'\0')
    start = {'plain': 0, 'wrapped': MIB - 4096, 'stale': 40960}.get(kind, 8192)
    second = log_entry(img.log_guid, 11, start, [(at2, 65536), (at0 + 8192, noise(4096, 5))], size)
    first = log_entry(img.log_guid, 10, start, [(img.bat_off, page), (at0 + 8192, noise(4096, 9))], size)
    entries = [first, second]
    if kind == 'torn':           # a third one, of which the last sector is missing
        third = log_entry(img.log_guid, 12, start, [(at2 + MIB // 2, noise(4096, 6))], size)
        entries.append(third[:-4096] + bytes(4096))
    if kind == 'moved':          # the tail has moved on: what the first one says was done, and changed again since
        done = log_entry(img.log_guid, 10, start, [(at0, noise(4096, 8))], size)
        entries = [done, log_entry(img.log_guid, 11, start + len(done),
                                   [(img.bat_off, page), (at2, 65536), (at0 + 8192, noise(4096, 5))], size)]
    if kind == 'many':           # descriptors beyond the first sector
        entries = [log_entry(img.log_guid, 20, start, [(img.bat_off, page), (at2, 65536), (at0 + 8192, noise(4096, 5))] +
                             [(at2 + 131072 + 4096 * i, 4096) for i in range(200)], size)]
    img.log = ring(entries, start)
    if kind == 'stale':          # an older sequence that holds, elsewhere
        old = log_entry(img.log_guid, 3, 0, [(at0, noise(4096, 8))], size)
        img.log = old + img.log[len(old):]
    if kind == 'foreign':        # of another log altogether: nothing counts
        img.log = ring([log_entry(guid(5).bytes_le, 10, 0, [(at0, noise(4096, 8))], size)], 0)
        return img, flat(img, blocks)
    blocks[1] = new
    blocks[0] = blocks[0][:8192] + noise(4096, 5) + blocks[0][12288:]
    blocks[2] = bytes(65536) + blocks[2][65536:]
    if kind == 'many':
        blocks[2] = blocks[2][:131072] + bytes(4096 * 200) + blocks[2][131072 + 4096 * 200:]
    return img, flat(img, blocks)


def chain():
    """(name, image, content), parents first."""
    base = Vhdx(6 * MIB, ident=21)
    blocks = {0: noise(MIB, 31), 1: noise(MIB, 32), 2: noise(MIB, 33), 3: noise(MIB, 34)}
    for block, data in blocks.items():
        base.put(block, data)
    content = flat(base, blocks)
    yield 'base.vhdx', base, content
    child = Vhdx(7 * MIB, block=2 * MIB, parent='.\\base.vhdx', linkage=base.data_write, ident=22, swapped=True,
                 absolute='C:\\disks\\base.vhdx')
    held = [0, 1, 7, 8, 9, 4095]
    data = noise(2 * MIB, 41)
    child.put_sectors(0, data, held)
    child.put(1, None, ZERO)
    child.put(3, noise(MIB, 42))
    out = bytearray(content) + bytes(MIB)
    for s in held:
        out[s * 512:s * 512 + 512] = data[s * 512:s * 512 + 512]
    out[2 * MIB:4 * MIB] = bytes(2 * MIB)
    out[6 * MIB:] = noise(MIB, 42)
    yield 'child.vhdx', child, bytes(out)
    top = Vhdx(7 * MIB, parent='none', linkage=child.data_write, ident=23, absolute='C:\\disks\\child.vhdx')
    top.put_sectors(2, noise(MIB, 43), range(100, 200))
    out[2 * MIB + 51200:2 * MIB + 102400] = noise(MIB, 43)[51200:102400]
    yield 'top.vhdx', top, bytes(out)


def samples():
    for kind in ('plain', 'wrapped', 'torn', 'moved', 'many', 'stale', 'foreign'):
        img, content = logged(kind)
        yield 'log-%s.vhdx' % kind, img, content
    for block, sector, size in ((MIB, 4096, 3 * MIB + 4096), (32 * MIB, 512, 40 * MIB), (256 * MIB, 512, 300 * MIB), (8 * MIB, 4096, 9 * MIB)):
        img = Vhdx(size, block=block, sector=sector, swapped=block > MIB)
        last = -(-size // block) - 1
        blocks = {last: noise(MIB, 51)}
        img.put(last, blocks[last])
        if last > 1:
            img.put(1, None, ZERO)
        yield 'geometry-%d-%d.vhdx' % (block >> 20, sector), img, flat(img, blocks)
    img = Vhdx(4 * MIB)
    for i, state in enumerate((UNDEFINED, ZERO, UNMAPPED, NOT_PRESENT)):
        img.put(i, None, state)
    yield 'states.vhdx', img, bytes(4 * MIB)
    yield from chain()


def write_sparse(path, data):
    with open(path, 'wb') as file:
        for at in range(0, len(data), MIB):
            piece = data[at:at + MIB]
            if any(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(data))


def main():
    for name, img, content in samples():
        write_sparse(os.path.join(sys.argv[1], name), img.build())
        write_sparse(os.path.join(sys.argv[1], name + '.raw'), content)


if __name__ == '__main__':
    main()
