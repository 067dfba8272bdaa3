#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
VHD beside readers that have nothing to do with it: vhd_reader.py, libvhdi (python3-libvhdi) and qemu-img where that is right.

    vhd_chains.py [--rounds N] [--seed N] [--ops N]

Each round: a chain is made by a generator, fixed or dynamic disk below, differencing ones above, with the locators, bitmaps, block sizes and
orders of blocks that other programs write; its content is known. imgtool and the readers must see it. Then imgtool goes on: writes, overlays,
commits, rebases, flattens, resizes; after each step everybody must see the same, and a strict reader find nothing to object to.
"""
import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import uuid

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, '..', 'images', 'gen')]
import vhd_image                        # noqa: E402
from vhd_reader import Bad, Vhd         # noqa: E402
try:
    import pyvhdi
except ImportError:
    pyvhdi = None

IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
WRAPPER = os.environ.get('IMGTOOL_WRAPPER', '').split()
SECTOR = 512


class Wrong(Exception):
    """Somebody sees something else."""


def imgtool(*args, stdin=None, want=0):
    done = subprocess.run([*WRAPPER, IMGTOOL, *[str(a) for a in args]], input=stdin, capture_output=True, check=False)
    if done.returncode != want:
        raise Wrong('imgtool %s ended with %d: %s' % (' '.join(str(a) for a in args), done.returncode,
                                                     (done.stdout + done.stderr).decode(errors='replace')[:500]))
    return done.stdout


def sha(data):
    return hashlib.sha256(data).hexdigest()


def libvhdi(path):
    """libvhdi knows the parents when it is told of them."""
    files, image = [], Vhd(path)
    while image:
        file = pyvhdi.file()
        file.open(image.path)
        if files:
            files[-1].set_parent(file)
        files.append(file)
        image = image.parent
    size = files[0].get_media_size()
    digest = hashlib.sha256()
    for off in range(0, size, 1 << 20):
        digest.update(files[0].read_buffer_at_offset(min(1 << 20, size - off), off))
    return digest.hexdigest()


class Round:
    def __init__(self, rng, folder):
        self.rng, self.folder = rng, folder
        self.layers = []        # (name, ident)
        self.content = bytearray()
        self.sizes = []
        self.strict = False     # what imgtool wrote keeps to the letter; what others write does not
        self.libvhdi_right = True
        # libvhdi 20210425 takes a byte of a bitmap that has a bit for one that has all, and loses its way among small blocks: in a
        # chain it can judge one half of the rounds.
        self.usual = rng.random() < .5
        self.grain = 8 if self.usual else 1

    def path(self, name):
        return os.path.join(self.folder, name)

    @property
    def top(self):
        return self.layers[-1][0]

    # ---- generated chains ----

    def sectors(self, size, share):
        rng, out = self.rng, {}
        for _ in range(max(1, int(size // SECTOR * share / 8))):
            first = rng.randrange(size // SECTOR) // self.grain * self.grain
            for n in range(first, min(first + self.grain * rng.randrange(1, 17 // self.grain + 1), size // SECTOR)):
                out[n] = rng.randbytes(SECTOR) if rng.random() < .9 else bytes(SECTOR)
        return out

    def lay(self, sectors, size):
        self.content = self.content[:size].ljust(size, b'\0')
        for n, data in sectors.items():
            self.content[n * SECTOR:(n + 1) * SECTOR] = data

    def locators(self, parent):
        """The kinds that are met, in the orders that are met."""
        win = parent.replace('/', '\\')
        relative = (b'W2ru', ('.\\' + win).encode('utf-16-le'))
        absolute = (b'W2ku', ('C:\\disks of mine\\' + win).encode('utf-16-le'))
        mac = (b'MacX', b'file://localhost/gone/' + parent.encode())
        kinds = [[absolute, relative], [relative], [absolute], [relative, absolute, mac], [(b'Wi2r', parent.encode()), relative], []]
        return self.rng.choice(kinds)

    def generate(self):
        rng = self.rng
        depth = rng.randrange(1, 5)
        for level in range(depth):
            block = 2 << 20 if self.usual else rng.choice([4096, 16384, 65536, 1 << 19, 2 << 20])
            size = rng.randrange(1, 9000 if self.usual else 600) * SECTOR if level == 0 else self.sizes[-1]
            if level and rng.random() < .2:
                size = max(SECTOR, size + rng.randrange(-64, 64) * SECTOR)
            name = rng.choice(['l%d.vhd', 'größe %d.vhd', '磁盘\U0001f4be%d.vhd']) % level
            image = vhd_image.Image(size, block, creator=rng.choice([b'win ', b'limg', b'tap\0', b'vbox']))
            sectors = self.sectors(size, rng.choice([.01, .05, .1] if self.usual else [.02, .2, .8]))
            layout = {'order': rng if rng.random() < .5 else None, 'seed': rng.random(), 'extra_entries': rng.choice([0, 0, 3, 200]),
                      'header_off': rng.choice([512, 512, 1024, 4096]), 'old_footer': rng.random() < .1,
                      'space': rng.choice([None, 1, 65536])}
            if level == 0 and rng.random() < .3:
                image.fixed(sectors)
            elif level == 0:
                full = rng.random() < .8
                image.dynamic(sectors, full=full, **layout)
                self.libvhdi_right &= full
            else:
                parent, ident = self.layers[-1]
                image.differencing(sectors, ident, self.locators(parent), name='C:\\somewhere\\' + parent, **layout)
            image.save(self.path(name))
            self.lay(sectors, size)
            # A layer that is smaller than the one below hides the rest; what is larger reads zeros there.
            self.libvhdi_right &= not self.sizes or size == self.sizes[-1]
            self.libvhdi_right &= not layout['old_footer']
            self.layers.append((name, image.ident))
            self.sizes.append(size)

    # ---- judges ----

    def judge(self, what):
        path, want = self.path(self.top), sha(self.content)
        said = imgtool('checksum', '-q', '--algo', 'sha256', path).decode().split()[0]
        if said != want:
            raise Wrong('%s: imgtool reads other content' % what)
        try:
            image = Vhd(path)
            digest = hashlib.sha256()
            for piece in image.pieces():
                digest.update(piece)
            if image.size != len(self.content) or digest.hexdigest() != want:
                raise Wrong('%s: the independent reader reads other content' % what)
            if self.strict:
                image.verify()
        except Bad as bad:
            raise Wrong('%s: the independent reader: %s' % (what, bad)) from bad
        if pyvhdi and self.libvhdi_right and (self.usual or len(self.layers) == 1) and libvhdi(path) != want:
            raise Wrong('%s: libvhdi reads other content' % what)
        if self.strict and len(self.layers) == 1:
            self.judge_qemu(path, what)
        imgtool('check', '-q', path)

    def judge_qemu(self, path, what):
        if not shutil.which('qemu-img'):
            return
        raw = self.path('raw')
        with open(raw, 'wb') as file:
            file.write(self.content)
        done = subprocess.run(['qemu-img', 'compare', '-f', 'raw', '-F', 'vpc', raw, path], capture_output=True, check=False)
        if done.returncode:
            raise Wrong('%s: qemu-img reads other content: %s' % (what, (done.stdout + done.stderr).decode()))

    # ---- imgtool goes on ----

    def write(self):
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            off = rng.randrange(len(self.content))
            length = rng.choice([1, 512, 3000, 100000])
            if self.grain == 8:
                off, length = off // 4096 * 4096, -(-length // 4096) * 4096
            data = rng.randbytes(min(length, len(self.content) - off))
            imgtool('write', '-q', '--offset', off, self.path(self.top), stdin=data)
            self.content[off:off + len(data)] = data
        return 'write'

    def overlay(self):
        name = 'o%d.vhd' % len(self.layers)
        imgtool('create', '-q', '--force', '-f', 'vhd', '-o', 'block_size=%s' % ('2M' if self.usual else self.rng.choice(['4K', '64K', '2M'])), '-b', self.top,
                self.path(name))
        self.layers.append((name, None))
        return 'overlay'

    def commit(self):
        if len(self.layers) > 1:
            imgtool('commit', '-q', self.path(self.top))
            os.unlink(self.path(self.layers.pop()[0]))
            # A larger parent goes on to be it.
            size = Vhd(self.path(self.top)).size
            if size > len(self.content):
                raise LookupError
        return 'commit'

    def flatten(self):
        imgtool('flatten', '-q', self.path(self.top))
        self.layers = [self.layers[-1]]
        self.libvhdi_right = True
        return 'flatten'

    def rebase(self):
        if len(self.layers) > 2:
            under = self.rng.randrange(len(self.layers) - 1)
            imgtool('rebase', '-q', '-b', self.layers[under][0], self.path(self.top))
            self.layers = self.layers[:under + 1] + self.layers[-1:]
            self.libvhdi_right = False      # sizes may differ from layer to layer
        return 'rebase'

    def resize(self):
        size = max(SECTOR, len(self.content) + self.rng.randrange(-200, 300) * SECTOR)
        imgtool('resize', '-q', '--shrink', self.path(self.top), size)
        self.content = self.content[:size].ljust(size, b'\0')
        self.libvhdi_right = False
        return 'resize'

    def convert(self):
        options = self.rng.choice(['subformat=fixed', 'subformat=dynamic', 'block_size=64K', 'uuid=' + str(uuid.uuid4())])
        imgtool('convert', '-q', '-O', 'vhd', '-o', options, self.path(self.top), self.path('new.vhd'))
        os.rename(self.path('new.vhd'), self.path('conv.vhd'))
        self.layers = [('conv.vhd', None)]
        self.libvhdi_right = True
        self.strict = True
        return 'convert'

    def go_on(self, ops):
        steps = [self.write] * 4 + [self.overlay] * 2 + [self.commit, self.flatten, self.rebase, self.resize, self.convert]
        for _ in range(ops):
            step = self.rng.choice(steps)
            if len(self.layers) > 5 and step == self.overlay:
                continue
            try:
                self.judge('after %s' % step())
            except LookupError:
                return


def main(kind=Round, format_='vhd', judge='libvhdi, the Debian package python3-libvhdi', judges=bool(pyvhdi)):
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--ops', type=int, default=6)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    done = subprocess.run([*WRAPPER, IMGTOOL, 'create', '-f', format_, '-o', 'help', '-'], capture_output=True, check=False)
    if done.returncode:
        print('SKIPPED: this build has no ' + format_)
        return 77
    if not judges:
        print('without %s: its opinion is not asked' % judge)
    for seed in range(args.seed, args.seed + args.rounds):
        folder = tempfile.mkdtemp(prefix=format_ + '_chains.')
        this = kind(random.Random(seed), folder)
        try:
            this.generate()
            this.judge('generated')
            this.go_on(args.ops)
        except Exception as wrong:
            print('seed %d, in %s: %s' % (seed, folder, wrong))
            if not isinstance(wrong, Wrong):
                raise
            return 1
        shutil.rmtree(folder)
    print('%d chains: all see the same' % args.rounds)
    return 0


if __name__ == '__main__':
    sys.exit(main())
