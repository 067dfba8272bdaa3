#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Reads VMDK disks as "Virtual Disk Format 5.0" and libvmdk's documentation describe them; shares nothing with libimg.
#   vmdk_reader.py hash FILE      sha256 of the disk
#   vmdk_reader.py verify FILE    complains of what breaks the rules of a disk that was closed
#   vmdk_reader.py values FILE    KEY=VALUE lines of the descriptor
import hashlib
import os
import struct
import sys

SECTOR = 512
HEADER = '<4sIIQQQQIQQQB4sH'


class Bad(Exception):
    pass


def descriptor_of(path):
    """Its text, and the header of the sparse extent that it stands in (None: a file of its own)."""
    with open(path, 'rb') as f:
        head = f.read(SECTOR)
        if head[:4] != b'KDMV':
            f.seek(0)
            return f.read(), None
        h = sparse_header(head)
        f.seek(h['desc'] * SECTOR)
        return f.read(h['desc_size'] * SECTOR), h


def sparse_header(b):
    names = ('magic version flags capacity grain desc desc_size gtes rgd gd overhead unclean newlines compress').split()
    h = dict(zip(names, struct.unpack_from(HEADER, b)))
    if h['magic'] != b'KDMV' or h['newlines'] != b'\n \r\n':
        raise Bad('no header')
    return h


class Disk:
    def __init__(self, path, alone=False):
        self.path = path
        text, self.header = descriptor_of(path)
        self.keys, self.extents = {}, []
        for line in text.split(b'\0')[0].decode('utf-8').splitlines():
            line = line.strip()
            if not line or line.startswith('#'):
                continue
            word = line.split()[0].upper()
            if word in ('RW', 'RDONLY', 'NOACCESS'):
                self.extents.append(self.extent(word, line))
            else:
                key, value = line.split('=', 1)
                self.keys[key.strip().lower()] = value.strip().strip('"')
        self.size = sum(e['bytes'] for e in self.extents)
        self.parent = None
        if int(self.keys['parentcid'], 16) != 0xffffffff and not alone:
            name = self.keys['parentfilenamehint']
            self.parent = Disk(os.path.join(os.path.dirname(path), name))
            if int(self.parent.keys['cid'], 16) != int(self.keys['parentcid'], 16):
                raise Bad('parent has another CID')

    def extent(self, access, line):
        rest = line.split(None, 2)
        e = {'access': access, 'bytes': int(rest[1]) * SECTOR}
        e['kind'] = rest[2].split()[0].upper()
        if '"' in line:
            e['name'] = line.split('"')[1]
            tail = line.rsplit('"', 1)[1].split()
            e['off'] = int(tail[0]) * SECTOR if tail else 0
            e['file'] = self.path if self.header else os.path.join(os.path.dirname(self.path), e['name'])
        return e

    def below(self, off, n):
        if not self.parent:
            return bytes(n)
        there = max(min(n, self.parent.size - off), 0)
        return self.parent.read(off, there) + bytes(n - there)

    def read(self, off, n):
        out, at = b'', 0
        for e in self.extents:
            lo, hi = max(off, at), min(off + n, at + e['bytes'])
            if lo < hi:
                out += self.read_extent(e, at, lo - at, hi - lo)
            at += e['bytes']
        return out

    def read_extent(self, e, base, off, n):
        if e['kind'] == 'ZERO':
            return bytes(n)
        if e['access'] == 'NOACCESS':
            raise Bad('no access')
        if 'data' not in e:
            with open(e['file'], 'rb') as f:
                e['data'] = f.read()
        if e['kind'] in ('FLAT', 'VMFS'):
            return e['data'][e['off'] + off:e['off'] + off + n]
        if 'grains' not in e:
            e['grain'], e['grains'] = {'SPARSE': kdmv, 'VMFSSPARSE': cowd, 'SESPARSE': sesparse}[e['kind']](e)
        out = b''
        while n > 0:
            number, inside = divmod(off, e['grain'])
            step = min(n, e['grain'] - inside)
            place = e['grains'].get(number)
            if place is None:
                out += self.below(base + off, step)
            elif place == 'zero':
                out += bytes(step)
            else:
                out += e['data'][place + inside:place + inside + step].ljust(step, b'\0')
            off, n = off + step, n - step
        return out


def table(data, sector, count, width):
    return struct.unpack_from('<%d%s' % (count, 'I' if width == 4 else 'Q'), data, sector * SECTOR)


def kdmv(e, second=False):
    h = sparse_header(e['data'])
    if h['flags'] & 0x10000:
        raise Bad('compressed')
    grains = {}
    number = -(-h['capacity'] // h['grain'])
    for i, gt in enumerate(table(e['data'], h['rgd'] if second else h['gd'], -(-number // h['gtes']), 4)):
        for k, entry in enumerate(table(e['data'], gt, h['gtes'], 4) if gt else ()):
            if entry == 1 and h['flags'] & 4:
                grains[i * h['gtes'] + k] = 'zero'
            elif entry:
                grains[i * h['gtes'] + k] = entry * SECTOR
    return h['grain'] * SECTOR, grains


def cowd(e):
    magic, version, _, capacity, grain, gd, entries, _ = struct.unpack_from('<4sIIIIIII', e['data'])
    if magic != b'COWD' or version != 1:
        raise Bad('no COWD')
    grains = {}
    for i, gt in enumerate(table(e['data'], gd, min(entries, -(-capacity // (grain * 4096))), 4)):
        for k, entry in enumerate(table(e['data'], gt, 4096, 4) if gt else ()):
            if entry:
                grains[i * 4096 + k] = entry * SECTOR
    return grain * SECTOR, grains


def sesparse(e):
    v = struct.unpack_from('<26Q', e['data'])
    if v[0] != 0xcafebabe or v[1] != 0x200000001:
        raise Bad('no seSparse')
    capacity, gd, gt_base, grain_base = v[2], v[16], v[18], v[24]
    grains = {}
    for i, entry in enumerate(table(e['data'], gd, -(-capacity // (8 * 4096)), 8)):
        if entry >> 60 == 1:
            for k, g in enumerate(table(e['data'], gt_base + (entry & 0xffffffff) * 64, 4096, 8)):
                if g >> 60 == 3:
                    grains[i * 4096 + k] = (grain_base + ((g >> 48 & 0xfff) | (g & 0xffffffffffff) << 12) * 8) * SECTOR
                elif g >> 60 == 2:
                    grains[i * 4096 + k] = 'zero'
    return 4096, grains


def structures(e, h):
    tables = -(-h['capacity'] // (h['grain'] * h['gtes']))
    for start in [h['gd']] + [h['rgd']] * (h['flags'] >> 1 & 1):
        yield start * SECTOR, start * SECTOR + tables * 4
        for gt in table(e['data'], start, tables, 4):
            if gt:
                yield gt * SECTOR, gt * SECTOR + h['gtes'] * 4


def verify(disk):
    for e in disk.extents:
        if e['kind'] != 'SPARSE':
            continue
        with open(e['file'], 'rb') as f:
            e['data'] = f.read()
        h = sparse_header(e['data'])
        if h['unclean']:
            raise Bad('not closed')
        if h['capacity'] * SECTOR != e['bytes']:
            raise Bad('capacity')
        grain, grains = kdmv(e)
        if h['flags'] & 2 and kdmv(e, True)[1] != grains:
            raise Bad('the second directory says something else')
        places = sorted(p for p in grains.values() if p != 'zero')
        low, others = h['overhead'] * SECTOR, structures(e, h)
        for p in places:
            if p < low:
                raise Bad('grain at 0x%x, above 0x%x' % (p, low))
            low = p + grain
        if low > len(e['data']):
            raise Bad('a grain reaches over the end')
        for a, b in others:
            for p in places:
                if p < b and a < p + grain:
                    raise Bad('a grain over the tables')
            low = max(low, -(-b // SECTOR) * SECTOR)
        if low < len(e['data']):
            raise Bad('0x%x bytes behind everything' % (len(e['data']) - low))
    cid = disk.keys['cid']
    # QEMU leaves out zeros in front.
    if not 0 < len(cid) <= 8 or int(cid, 16) >= 0xfffffffe:
        raise Bad('CID')


def main():
    command, path = sys.argv[1:]
    try:
        disk = Disk(path, alone=command == 'verify')
        if command == 'verify':
            verify(disk)
        elif command == 'values':
            for key, value in disk.keys.items():
                print('%s=%s' % (key, value))
        else:
            digest = hashlib.sha256()
            for off in range(0, disk.size, 1 << 20):
                digest.update(disk.read(off, min(1 << 20, disk.size - off)))
            print('%s  %s' % (digest.hexdigest(), path))
    except (Bad, KeyError, struct.error) as e:
        print('vmdk_reader: %s: %s' % (path, e), file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
