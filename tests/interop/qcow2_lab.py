# SPDX-License-Identifier: MIT
"""
What the tests of qcow2 against QEMU's tools share: running the tools, a flat model of an image and of its snapshots,
and two judges that compare an image with the model: one uses nothing of ours, the other nothing of theirs.

IMGTOOL names imgtool, IMAGE_IO the program of image_io.c, IMGTOOL_WRAPPER the command that they run under.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys

IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
IMAGE_IO = os.environ.get('IMAGE_IO', 'image-io')
WRAPPER = os.environ.get('IMGTOOL_WRAPPER', '').split()
SECTOR = 512


class Wrong(Exception):
    """A judge objects."""


def need_tools(*names):
    """Ends the program as skipped where one is missing, or this build has no qcow2."""
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        print('SKIPPED: not installed: %s (Debian package qemu-utils)' % ', '.join(missing))
        sys.exit(77)
    formats = subprocess.run([*WRAPPER, IMGTOOL, 'create', '-f', 'qcow2', '-o', 'help', '-'], capture_output=True, check=False)
    if formats.returncode:
        print('SKIPPED: this build has no qcow2: %s' % formats.stderr.decode(errors='replace').strip())
        sys.exit(77)


def run(*args, stdin=None, want=(0,)):
    """want None: any exit status but a signal's."""
    done = subprocess.run([str(a) for a in args], input=stdin, capture_output=True, check=False)
    bad = done.returncode < 0 if want is None else done.returncode not in want
    if bad:
        raise Wrong('%s ended with %d: %s' % (' '.join(str(a) for a in args), done.returncode,
                                              (done.stdout + done.stderr).decode(errors='replace').strip()[:800]))
    return done


def imgtool(*args, stdin=None, want=(0,)):
    return run(*WRAPPER, IMGTOOL, *args, stdin=stdin, want=want)


def ours(path, *commands):
    return run(*WRAPPER, IMAGE_IO, '-f', 'qcow2', path, *commands)


def qemu_io(path, *commands):
    """qemu-io says in its output, not always in its exit status, that a command failed."""
    args = [x for command in commands for x in ('-c', command)]
    done = run('qemu-io', '-f', 'qcow2', '-d', 'unmap', *args, path)
    text = (done.stdout + done.stderr).decode(errors='replace')
    if 'fail' in text or 'error' in text.lower() or 'not aligned' in text:
        raise Wrong('qemu-io %s: %s' % (commands, text[:800]))
    return text


def random_bytes(count, seed):
    """As image-io makes them: splitmix64."""
    mask, out = (1 << 64) - 1, []
    for _ in range((count + 7) // 8):
        seed = (seed + 0x9e3779b97f4a7c15) & mask
        z = ((seed ^ seed >> 30) * 0xbf58476d1ce4e5b9) & mask
        z = ((z ^ z >> 27) * 0x94d049bb133111eb) & mask
        out.append((z ^ z >> 31).to_bytes(8, 'little'))
    return b''.join(out)[:count]


def first_difference(a, b):
    if len(a) != len(b):
        return 'lengths %d and %d' % (len(a), len(b))
    low, high = 0, len(a)
    while high - low > 1:    # the first half that differs
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return 'at 0x%x: 0x%02x, should be 0x%02x' % (low, a[low], b[low])


class Lab:
    """One image, the truth of its head and its snapshots, and who did what."""

    def __init__(self, folder, size, name='t.qcow2'):
        self.folder = folder
        self.path = os.path.join(folder, name)
        self.head = bytearray(size)
        self.snaps = {}
        self.data_file = None    # a raw external data file, whose bytes must be the truth's too
        self.log = []

    def note(self, who, what):
        self.log.append('%s: %s' % (who, what))

    def truth_file(self, content=None):
        path = os.path.join(self.folder, 'truth.raw')
        with open(path, 'wb') as file:
            file.write(self.head if content is None else content)
        return path

    # -- changes ----------------------------------------------------------------------------------------------------

    def write(self, who, off, count, fill, compressed=False):
        self.note(who, 'write 0x%x+0x%x of 0x%02x%s' % (off, count, fill, ' compressed' if compressed else ''))
        if who == 'qemu':
            qemu_io(self.path, 'write %s-P %d %d %d' % ('-c ' if compressed else '', fill, off, count))
        else:
            ours(self.path, '%s %d %d %d' % ('W' if compressed else 'w', off, count, fill))
        self.head[off:off + count] = bytes([fill]) * count

    def write_random(self, who, off, count, seed):
        """What does not compress."""
        data = random_bytes(count, seed)
        self.note(who, 'write 0x%x+0x%x of random bytes' % (off, count))
        if who == 'qemu':
            path = os.path.join(self.folder, 'pattern')
            with open(path, 'wb') as file:
                file.write(data)
            qemu_io(self.path, 'write -s %s %d %d' % (path, off, count))
        elif seed % 2:
            imgtool('write', '-q', '-f', 'qcow2', self.path, '--offset', off, stdin=data)
        else:
            ours(self.path, 'r %d %d %d' % (off, count, seed))
        self.head[off:off + count] = data

    def zero(self, who, off, count, unmap):
        self.note(who, 'zero 0x%x+0x%x%s' % (off, count, ' unmap' if unmap else ''))
        if who == 'qemu':
            qemu_io(self.path, 'write -z %s%d %d' % ('-u ' if unmap else '', off, count))
        else:
            ours(self.path, '%s %d %d' % ('z' if unmap else 'Z', off, count))
        self.head[off:off + count] = bytes(count)

    def discard(self, who, off, count):
        """Each byte may be zero afterwards or as before; what it is then is the truth."""
        self.note(who, 'discard 0x%x+0x%x' % (off, count))
        if who == 'qemu':
            qemu_io(self.path, 'discard %d %d' % (off, count))
            now = self.theirs_content()
        else:
            ours(self.path, 'd %d %d' % (off, count))
            now = self.ours_content()
        old = bytes(self.head)
        if now[:off] != old[:off] or now[off + count:] != old[off + count:]:
            raise Wrong('a discard changed what lies outside of it')
        for at in range(off // SECTOR * SECTOR, off + count, SECTOR):
            piece, was = now[at:at + SECTOR], old[at:at + SECTOR]
            if piece != was and any(x not in (0, y) for x, y in zip(piece, was)):
                raise Wrong('after a discard the sector at 0x%x is neither zeros nor as before' % at)
        self.head[:] = now

    def snapshot(self, who, name):
        self.note(who, 'snapshot ' + name)
        if who == 'qemu':
            run('qemu-img', 'snapshot', '-c', name, self.path)
        else:
            imgtool('snapshot', 'create', self.path + '@' + name)
        self.snaps[name] = bytes(self.head)

    def delete(self, who, name):
        self.note(who, 'delete ' + name)
        if who == 'qemu':
            run('qemu-img', 'snapshot', '-d', name, self.path)
        else:
            imgtool('snapshot', 'delete', self.path + '@' + name)
        del self.snaps[name]

    def revert(self, who, name):
        self.note(who, 'revert ' + name)
        if who == 'qemu':
            run('qemu-img', 'snapshot', '-a', name, self.path)
        else:
            imgtool('revert', '-q', self.path + '@' + name)
        self.head = bytearray(self.snaps[name])

    def resize(self, who, size):
        self.note(who, 'resize %d' % size)
        if who == 'qemu':
            run('qemu-img', 'resize', '-q', '--shrink', '-f', 'qcow2', self.path, size)
        else:
            imgtool('resize', '-q', '--shrink', self.path, size)
        self.head = self.head[:size] + bytearray(max(0, size - len(self.head)))

    # -- content by either ------------------------------------------------------------------------------------------

    def theirs_content(self, snap=None):
        out = os.path.join(self.folder, 'theirs.raw')
        select = ['-l', 'snapshot.name=' + snap] if snap else []
        run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', *select, self.path, out)
        with open(out, 'rb') as file:
            return file.read()

    def ours_content(self, snap=None):
        return imgtool('read', '-q', self.path + ('@' + snap if snap else '')).stdout

    # -- judges -----------------------------------------------------------------------------------------------------

    def theirs_judge(self, leaks_allowed=False):
        run('qemu-img', 'check', '-f', 'qcow2', self.path, want=(0, 3) if leaks_allowed else (0,))
        got = self.theirs_content()
        if got != self.head:
            raise Wrong('qemu-img reads other content %s' % first_difference(got, bytes(self.head)))
        for name, content in self.snaps.items():
            got = self.theirs_content(name)
            if got[:len(content)] != content or any(got[len(content):]):
                raise Wrong('qemu-img reads other content of snapshot %s %s' % (
                    name, first_difference(got[:len(content)], content)))
        listed = json.loads(run('qemu-img', 'info', '--output=json', self.path).stdout).get('snapshots', [])
        if sorted(s['name'] for s in listed) != sorted(self.snaps):
            raise Wrong('qemu-img lists the snapshots %s, not %s' % (listed, sorted(self.snaps)))
        self.judge_data_file()

    def judge_data_file(self):
        if self.data_file:
            with open(self.data_file, 'rb') as file:
                got = file.read()
            if got.ljust(len(self.head), b'\0')[:len(self.head)] != self.head:
                raise Wrong('the raw data file does not hold the content')

    def ours_judge(self):
        imgtool('check', self.path)
        want = hashlib.sha256(self.head).hexdigest()
        said = imgtool('checksum', '--algo', 'sha256', self.path).stdout.decode()
        if want not in said:
            raise Wrong('imgtool reads other content %s' % first_difference(self.ours_content(), bytes(self.head)))
        for name, content in self.snaps.items():
            said = imgtool('checksum', '--algo', 'sha256', self.path + '@' + name).stdout.decode()
            if hashlib.sha256(content).hexdigest() not in said:
                raise Wrong('imgtool reads other content of snapshot %s %s' % (
                    name, first_difference(self.ours_content(name), content)))
        listed = json.loads(imgtool('snapshot', 'list', '--json', self.path).stdout)['snapshots']
        if sorted(s['name'] for s in listed) != sorted(self.snaps):
            raise Wrong('imgtool lists the snapshots %s, not %s' % (listed, sorted(self.snaps)))
        self.judge_map()
        self.judge_data_file()

    def judge_map(self):
        """Zeros are zeros, and what is said to lie plainly in the file lies there."""
        at = 0
        with open(self.data_file or self.path, 'rb') as file:
            for e in json.loads(imgtool('map', '--json', self.path).stdout)['extents']:
                start, length = e['start'], e['length']
                if start != at:
                    raise Wrong('map: extent at 0x%x, wanted from 0x%x' % (start, at))
                at += length
                if e['zero'] and any(self.head[start:at]):
                    raise Wrong('map: 0x%x+0x%x is said to be zeros' % (start, length))
                if e['offset'] is not None and e['data'] and not e['compressed'] and not self.external:
                    file.seek(e['offset'])
                    if file.read(length).ljust(length, b'\0') != self.head[start:at]:
                        raise Wrong('map: 0x%x+0x%x is not at file offset 0x%x' % (start, length, e['offset']))
        if at != len(self.head):
            raise Wrong('map ends at 0x%x, the disk at 0x%x' % (at, len(self.head)))

    external = False    # an external data file that is not raw is not looked into

    def judge(self):
        self.theirs_judge()
        self.ours_judge()
