# SPDX-License-Identifier: MIT
"""
What is wrong with the images that a power failure left: asked of imgtool, of qemu-img or the format's independent reader, and
of what was worked out to be in them.
"""
import hashlib
import json
import os
import shutil
import struct
import subprocess

from guest import HERE, IMGTOOL
from scenario import BITMAPS, SECTOR

INTEROP = os.path.join(HERE, '..', 'interop')
READERS = {fmt: os.path.join(INTEROP, fmt + '_reader.py') for fmt in ('limg', 'vdi', 'vhd', 'vhdx', 'vmdk', 'parallels')}
# What may be left in formats that count or keep copies: space that is lost, and a spare copy.
LOOSE = ('leaks', 'redundancy')
BLOCK = 4096


class Finding(Exception):
    pass


def call(*words, want=0):
    done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if want is not None and done.returncode != want:
        raise Finding('%s %s ended with %d: %s' % (os.path.basename(words[0]), ' '.join(words[1:]), done.returncode,
                                                  (done.stderr + done.stdout).decode(errors='replace').strip()[-400:]))
    return done


def imgtool(*words, want=0):
    return call(IMGTOOL, *words, want=want)


class Judge:
    """Looks at folders of images of one format. What was seen of a file once, its parents being the same, is not asked again."""

    def __init__(self, fmt, folder):
        self.format, self.folder, self.seen, self.looks, self.loose = fmt, folder, {}, 0, 0

    def path(self, name):
        return os.path.join(self.folder, name)

    def lay_out(self, files):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.mkdir(self.folder)
        for name, (data, time_ns) in files.items():
            with open(self.path(name), 'wb') as file:
                file.write(data)
            os.utime(self.path(name), ns=(time_ns, time_ns))    # overlays know their parents by it

    def content(self, name, snap=None):
        return imgtool('read', '-q', self.path(name) + ('@' + snap if snap else '')).stdout

    def view(self, name):
        """-> the disk and the snapshots"""
        listed = json.loads(imgtool('snapshot', 'list', '--json', self.path(name), want=None).stdout or '{"snapshots": []}')
        return self.content(name), {snap['name']: self.content(name, snap['name']) for snap in listed['snapshots']}

    def bitmaps(self, name):
        """-> of each that can be used whether it is on, and its dirty sectors; None of the others"""
        found = {}
        if self.format in BITMAPS:
            for one in json.loads(imgtool('bitmap', 'list', '--json', self.path(name)).stdout)['bitmaps']:
                found[one['name']] = None
                if one['state'] != 'inconsistent':
                    ranges = json.loads(imgtool('map', '--json', '--bitmap', one['name'], self.path(name)).stdout)['extents']
                    found[one['name']] = one['state'] == 'enabled', {
                        at for r in ranges for at in range(r['start'], r['start'] + r['length'], SECTOR)}
        return found

    def check(self, name):
        """It opens as it is, and nothing is wrong but what a crash may leave in its format."""
        path = self.path(name)
        found = json.loads(imgtool('check', '--json', path, want=None).stdout or '{}')
        loose = sum(found.get(kind, 1) for kind in LOOSE)
        self.loose += bool(loose)
        if found.get('damage', 1) or loose and self.format == 'limg':
            raise Finding('imgtool check finds in %s: %s' % (name, found.get('findings') or imgtool('check', path)))
        if self.format == 'qcow2':
            theirs = call('qemu-img', 'check', '-q', '-f', 'qcow2', path, want=None)
            if theirs.returncode not in (0, 3):
                raise Finding('qemu-img check of %s ends with %d: %s' % (name, theirs.returncode, theirs.stderr.decode()[-400:]))
        elif not found.get('findings') and self.looks % 3 == 0:    # a note may say that it was not closed
            call('/usr/bin/python3', READERS[self.format], 'verify', path)

    def look(self, name, key, unclean):
        """-> view(), bitmaps(), after check()"""
        if (key, unclean) not in self.seen:
            self.looks += 1
            if not unclean:
                self.check(name)
            self.seen[key, unclean] = self.view(name), self.bitmaps(name)
        return self.seen[key, unclean]

    def folder_of(self, files, before, step):
        """The images of a folder when everything in `before` was done and `step`, if any, was under way."""
        after = step.after if step else before
        for name in files:
            if name not in before and name not in after and not name.startswith('.'):
                raise Finding('nobody made %s' % name)
        self.lay_out(files)
        sums = {name: (hashlib.sha256(data).digest(), time_ns) for name, (data, time_ns) in files.items()}
        everything = tuple(sorted(sums.items()))
        for name in sorted({*before, *after}):
            if name not in files:
                if name in before:
                    raise Finding('%s is gone' % name)
                continue
            alone = not any(images[name].parent for images in (before, after) if name in images)
            got, bitmaps = self.look(name, (name, sums[name] if alone else everything), bool(step) and name == step.damaged)
            allowed = [images[name].view() for images in (before, after) if name in images]
            if got not in allowed and not (step and name in step.torn and torn(got, *allowed)):
                raise Finding('%s is neither as before nor as after: %s' % (name, different(got, allowed)))
            judge_bitmaps(name, bitmaps, got[0], [images[name] for images in (before, after) if name in images])
        if step and step.again:
            self.again(step)
        return everything

    def again(self, step):
        words = step.again.split()
        imgtool(*[self.path(word) if '.' in word else word for word in words])
        for name in step.after:
            self.check(name)
            if self.view(name) != step.after[name].view():
                raise Finding('after imgtool %s, run again, %s is not as it should be' % (step.again, name))

    def use(self, before, step, rng):
        """An image that is written after the crash, which lets it replay its journal, holds what it held when it was read."""
        parents = [image.parent for image in before.values()]
        names = [name for name in before if name not in parents and not (step and (step.again or name == step.damaged))]
        for name in rng.sample(names, min(1, len(names))):
            view = self.view(name)
            subprocess.run([IMGTOOL, 'write', '-q', self.path(name)], input=view[0][:BLOCK], check=True, capture_output=True)
            self.check(name)
            if self.view(name) != view:
                raise Finding('%s changes when it is written for the first time' % name)


def judge_bitmaps(name, found, head, images):
    """They are those before or after, and say no less than they must; one of an image that was being changed may be broken."""
    if set(found) not in [set(image.bitmaps) for image in images]:
        raise Finding('%s has the bitmaps %s' % (name, sorted(found)))
    for bitmap, said in found.items():
        if said is None and len({id(image) for image in images}) > 1:
            continue
        if said is None:
            raise Finding('bitmap %s of %s is inconsistent, and nobody was changing it' % (bitmap, name))
        wanted = [image.bitmaps[bitmap] for image in images if bitmap in image.bitmaps]
        if not any(said[0] == (want.since is not None) and want.least(head) <= said[1] for want in wanted):
            raise Finding('bitmap %s of %s is %s and has %d sectors; it lacks %s' % (
                bitmap, name, 'on' if said[0] else 'off', len(said[1]), [sorted(want.least(head) - said[1])[:5] for want in wanted]))


def torn(got, before, after):
    """Each sector is that before or that after, and all snapshots are as they were."""
    return got[1] == before[1] == after[1] and len(got[0]) == len(before[0]) and all(
        got[0][at:at + SECTOR] in (before[0][at:at + SECTOR], after[0][at:at + SECTOR])
        for at in range(0, len(got[0]), SECTOR))


def different(got, allowed):
    said = []
    for head, snaps in allowed:
        bad = [at for at in range(0, min(len(head), len(got[0])), SECTOR) if head[at:at + SECTOR] != got[0][at:at + SECTOR]]
        said.append('%d bytes for %d, %d sectors differ from 0x%x on, snapshots %s for %s%s' % (
            len(got[0]), len(head), len(bad), bad[0] if bad else 0, sorted(got[1]), sorted(snaps),
            ''.join(', %s differs' % snap for snap in snaps if snap in got[1] and got[1][snap] != snaps[snap])))
    return '; or '.join(said)


# ---- what kill-writer says (see there) ----

class Writer:
    """The blocks that it wrote, the operations that wrote them, and the snapshots that it deleted, or began to."""

    def __init__(self, said):
        self.wrote, self.doubtful = {}, set()
        for line in said.splitlines():
            what, *words = line.split()
            if what == 'w':
                op, first, count = map(int, words)
                for block in range(first, first + count):
                    self.wrote.setdefault(block, []).append(op)
            elif what == 'd':
                self.doubtful.add(words[0])

    def blocks(self, data, least, most):
        """Each block holds the last operation up to `least`, or one up to `most`; one that was not written, zeros."""
        for at in range(0, len(data), BLOCK):
            ops = self.wrote.get(at // BLOCK, [])
            before = [op for op in ops if op <= least]
            got = data[at:at + BLOCK]
            if not before and not any(got):
                continue
            block, op = struct.unpack_from('<QQ', got)
            allowed = before[-1:] + [op for op in ops if least < op <= most]
            if block != at // BLOCK or op not in allowed or got != got[:16] * (BLOCK // 16):
                raise Finding('block %d holds operation %d of block %d, allowed are %s' % (at // BLOCK, op, block, allowed[:5]))

    def judge(self, view, marks):
        """Everything of which a mark says that it is durable is there."""
        durable, snaps = 0, {}
        for what, *words in (mark.split() for mark in marks):
            if what == 'f':
                durable = int(words[0])
            elif what == 's':
                snaps[words[0]] = durable = int(words[1])
            elif what == 'D':
                del snaps[words[0]]
        for name, op in snaps.items():
            if name in view[1]:
                self.blocks(view[1][name], op, op)
            elif name not in self.doubtful:
                raise Finding('snapshot %s was acknowledged and is not there' % name)
        self.blocks(view[0], durable, 1 << 62)
