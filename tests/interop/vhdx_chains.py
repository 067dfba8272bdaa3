#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
As vhd_chains.py, of VHDX: generated chains of a disk and differences with sector bitmaps, judged by vhdx_reader.py and, alone, by qemu-img.

    vhdx_chains.py [--rounds N] [--seed N] [--ops N]
"""
import os
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, '..', 'images', 'gen')]
import vhd_chains                                               # noqa: E402
import vhdx_image                                               # noqa: E402
from vhd_chains import SECTOR, Wrong, imgtool, sha              # noqa: E402

MIB = 1 << 20
READER = os.path.join(HERE, 'vhdx_reader.py')


def reader(verb, path):
    done = subprocess.run(['/usr/bin/python3', '-B', READER, verb, path], capture_output=True, check=False)
    if done.returncode:
        raise Wrong('vhdx_reader.py %s: %s' % (verb, done.stderr.decode(errors='replace').strip()[-300:]))
    return done.stdout.decode().split()[:1]


class Round(vhd_chains.Round):
    def __init__(self, rng, folder):
        super().__init__(rng, folder)
        self.grain, self.usual = 1, False

    # ---- generated chains ----

    def difference(self, image, block, end):
        """Some sectors of a block, which have their own content now."""
        nr = (end - block * image.block) // SECTOR
        held = set()
        for _ in range(self.rng.randrange(1, 6)):
            first = self.rng.randrange(nr)
            held |= set(range(first, min(nr, first + self.rng.choice((1, 1, 7, 300)))))
        data = self.rng.randbytes(image.block)
        image.put_sectors(block, data, held)
        for s in held:
            at = block * image.block + s * SECTOR
            self.content[at:at + SECTOR] = data[s * SECTOR:(s + 1) * SECTOR]

    def fill(self, image, size, parent):
        for block in self.rng.sample(range(image.nr), self.rng.randrange(image.nr + 1)):
            at, end = block * image.block, min((block + 1) * image.block, size)
            how = self.rng.choice(('all', 'zero', 'part') if parent else ('all', 'zero'))
            if how == 'part':
                self.difference(image, block, end)
                continue
            data = self.rng.randbytes(image.block) if how == 'all' else None
            image.put(block, data, vhdx_image.PRESENT if data else self.rng.choice((vhdx_image.ZERO, vhdx_image.UNMAPPED)))
            self.content[at:end] = (data or bytes(image.block))[:end - at]

    def generate(self):
        size, below = 0, None
        for level in range(self.rng.randrange(1, 4)):
            if level == 0 or self.rng.random() < .3:
                size = self.rng.randrange(1, 8 * MIB // SECTOR) * SECTOR
            name = self.rng.choice(('l%d.vhdx', 'größe %d.vhdx')) % level
            win = None if below is None else self.rng.choice(('.\\', '')) + self.layers[-1][0]
            image = vhdx_image.Vhdx(size, block=self.rng.choice((MIB, MIB, 2 * MIB)), parent=win, linkage=below and below.data_write,
                                    ident=self.rng.randrange(1, 1 << 30), swapped=self.rng.random() < .5)
            self.content = self.content[:size].ljust(size, b'\0')
            self.fill(image, size, below)
            with open(self.path(name), 'wb') as file:
                file.write(image.build())
            self.layers.append((name, None))
            below = image

    # ---- judges ----

    def judge(self, what):
        path, want = self.path(self.top), sha(self.content)
        if imgtool('checksum', '-q', '--algo', 'sha256', path).decode().split()[0] != want:
            raise Wrong('%s: imgtool reads other content' % what)
        if reader('digest', path) != [want]:
            raise Wrong('%s: the independent reader reads other content' % what)
        reader('verify', path)
        imgtool('check', '-q', path)
        if len(self.layers) == 1 and shutil.which('qemu-img'):
            self.judge_qemu(path, what)

    def judge_qemu(self, path, what):
        with open(self.path('raw'), 'wb') as file:
            file.write(self.content)
        done = subprocess.run(['qemu-img', 'compare', '-f', 'raw', '-F', 'vhdx', self.path('raw'), path], capture_output=True, check=False)
        if done.returncode:
            raise Wrong('%s: qemu-img reads other content: %s' % (what, (done.stdout + done.stderr).decode()))

    # ---- imgtool goes on ----

    def overlay(self):
        name = 'o%d.vhdx' % len(self.layers)
        imgtool('create', '-q', '--force', '-f', 'vhdx', '-o', 'block_size=1M', '-b', self.top, self.path(name))
        self.layers.append((name, None))
        return 'overlay'

    def commit(self):
        if len(self.layers) > 1:
            imgtool('commit', '-q', self.path(self.top))
            size = len(self.content)
            self.layers.pop()
            data = imgtool('read', '-q', self.path(self.top))
            # A larger parent goes on to be it.
            if data[:size] != self.content:
                raise Wrong('commit: the parent holds something else')
            self.content = bytearray(data)
        return 'commit'

    def convert(self):
        options = self.rng.choice(('subformat=fixed', 'subformat=dynamic', 'block_size=1M', 'block_size=2M'))
        imgtool('convert', '-q', '-O', 'vhdx', '-o', options, self.path(self.top), self.path('new.vhdx'))
        os.rename(self.path('new.vhdx'), self.path('conv.vhdx'))
        self.layers = [('conv.vhdx', None)]
        return 'convert'


if __name__ == '__main__':
    sys.exit(vhd_chains.main(Round, 'vhdx', 'qemu-img', shutil.which('qemu-img')))
