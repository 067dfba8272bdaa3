#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Proves limg_reader.py on images of limg_writer.py: that it reads what was written, that it finds every changed byte that
matters, and that it finds images that are well-sealed but wrong. IMAGES=N sets how many random images are made.
"""
import os
import random
import re
import struct
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import limg_reader as reader    # noqa: E402
import limg_verify as verify    # noqa: E402
import limg_writer as writer    # noqa: E402

AU = 4096
IMAGES = int(os.environ.get('IMAGES', '20'))


def content(layer, problems):
    out = bytearray()
    for off, length, data in layer.pieces(0, layer.size, problems.append):
        assert off == len(out)
        out += bytes(length) if data is None else data
    return bytes(out)


def rules(path):
    """Rules that verify finds broken."""
    try:
        verifier = verify.Verifier(reader.Image(path))
        verifier.run()
        return [p.rule for p in verifier.problems], list(map(str, verifier.problems)), verifier.image.notes
    except reader.Damage as damage:
        return [damage.rule], [str(damage)], []


class Case(unittest.TestCase):
    def setUp(self):
        # Many small files, again and again: in memory where that can be had.
        folder = tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(folder.name, 'a.limg')

    def states(self, w):
        """(snapshot or None, volume, content) of everything that can be read."""
        for kind in (writer.DISK, writer.VMSTATE):
            yield None, kind, w.content(w.head, kind)
            for snap in w.snaps:
                if snap and not snap.deleted:
                    yield snap.name, kind, w.content(snap.state, kind)


class RandomImages(Case):
    def test_content_and_verify(self):
        for seed in range(IMAGES):
            with self.subTest(seed=seed):
                w = writer.random_image(seed)
                w.save(self.path)
                image = reader.Image(self.path)
                problems = []
                for name, kind, truth in self.states(w):
                    snap = image.find(name) if name else None
                    self.assertEqual(content(reader.LimgLayer(image, snap, kind), problems), truth, (seed, name, kind))
                    whole = b''.join(bytes(n) if d is None else d for a in range(0, len(truth), 77777) for _, n, d in
                                     reader.LimgLayer(image, snap, kind).pieces(a, a + 77777, problems.append))
                    self.assertEqual(whole, truth, (seed, name, kind))
                self.assertEqual([str(p) for p in problems], [])
                self.assertEqual(rules(self.path), ([], [], []))

    def test_changed_bytes(self):
        """
        A changed byte is reported, or nothing depends on it; content is never wrong. The last records of a journal are
        the exception: one that was damaged cannot be told from one that was never written whole.
        """
        for seed in (2, 3, 12, 21, 33):
            w = writer.random_image(seed)
            w.save(self.path)
            with open(self.path, 'rb') as file:
                whole = bytearray(file.read())
            used = self.used_bytes(w, whole)
            truth = list(self.states(w))
            rng = random.Random(seed)
            for off in rng.sample(used, min(len(used), 60)):
                bit = 1 << rng.randrange(8)
                self.flip(off, bit)
                in_ring = w.ring and 0 <= off // AU - w.ring['addr'] < w.ring['aus']
                self.check_flipped(off, truth, seed, in_ring)
                self.flip(off, bit)

    def used_bytes(self, w, whole):
        """Bytes of AUs that hold something."""
        return [off for au in range(len(whole) // AU) if any(whole[au * AU:au * AU + AU])
                for off in range(au * AU, au * AU + AU, 7)]

    def flip(self, off, bit):
        with open(self.path, 'r+b') as file:
            file.seek(off)
            byte = file.read(1)[0]
            file.seek(off)
            file.write(bytes([byte ^ bit]))

    def check_flipped(self, off, truth, seed, in_ring):
        found, _, notes = rules(self.path)
        for name, kind, plain in truth:
            problems = []
            try:
                image = reader.Image(self.path)
                got = content(reader.LimgLayer(image, image.find(name) if name else None, kind), problems)
            except reader.Damage as damage:
                problems, got = [damage], None
            dropped = in_ring or any('dropped' in n for n in notes)
            if got != plain and not dropped:
                self.assertTrue(problems and found, 'seed %d offset 0x%x: wrong data of %s' % (seed, off, name))

    def test_used_data_is_watched(self):
        """Every byte of nodes and data of a fixed image, one by one."""
        w = writer.Writer(300 << 10, rng=random.Random(5))
        w.write(0, random.Random(1).randbytes(8192))
        w.write(128 << 10, writer.compressible(random.Random(2), 128 << 10), compress=writer.ZSTD)
        w.snapshot('a')
        w.zero(4096, 4096)
        w.save(self.path)
        with open(self.path, 'rb') as file:
            whole = file.read()
        off_bitmap = range(2 * AU, 3 * AU)
        unit = w.head.entries[1][32]
        at = (unit[0] & writer.ADDR_MASK) * AU
        payload, = struct.unpack_from('<I', whole, at)
        slack = range(at + 16 + payload, at + (unit[1] & 255) * AU)
        # What the superblock before this one says is nobody's concern any more.
        older = {(w.generation - 1) % 2, 192 + (w.generation - 1) % 2}
        for off in range(0, len(whole), 41):
            if off // AU in older or not any(whole[off // AU * AU:off // AU * AU + AU]):
                continue
            self.flip(off, 0x10)
            found, _, notes = rules(self.path)
            self.assertTrue(found or notes or off in slack, 'offset 0x%x' % off)
            if off in off_bitmap:
                self.assertIn('LIMG-4', found)
            self.flip(off, 0x10)
        self.assertEqual(rules(self.path), ([], [], []))


class WrongImages(Case):
    """Images whose checksums hold and that break one rule each."""

    def make(self, size=4 << 20):
        w = writer.Writer(size, rng=random.Random(9))
        w.write(0, random.Random(1).randbytes(40960))
        w.snapshot('one')
        w.write(8192, random.Random(2).randbytes(4096))
        w.snapshot('two')
        w.write(size // 2, random.Random(3).randbytes(8192))
        return w

    def assert_rule(self, w, rule):
        w.save(self.path)
        found, texts, _ = rules(self.path)
        self.assertIn(rule, found, texts)

    def test_sound(self):
        self.make().save(self.path)
        self.assertEqual(rules(self.path), ([], [], []))

    def test_two_uses(self):
        w = self.make()
        e = w.head.entries[1]
        e[700] = (writer.word(2, e[512][0] & writer.ADDR_MASK, w.epoch), e[512][1])
        self.assert_rule(w, 'LIMG-9')

    def test_shared_across_branches(self):
        w = self.make()
        stray = w.head.entries[1][512]
        w.revert('one')
        w.head.entries[1][512] = stray
        w.snapshot('three')
        w.revert('two')
        w.head.entries[1][512] = stray
        self.assert_rule(w, 'LIMG-9')

    def test_older_than_parent_but_not_there(self):
        w = self.make()
        addr = w.alloc(1)
        w.put(addr, b'x' * AU)
        w.head.entries[1][300] = (writer.word(2, addr, 1), writer.xxh64(b'x' * AU))
        self.assert_rule(w, 'LIMG-9')

    def test_too_young(self):
        w = self.make()
        addr = w.alloc(1)
        w.put(addr, b'x' * AU)
        w.head.entries[1][300] = (writer.word(2, addr, w.epoch + 1), writer.xxh64(b'x' * AU))
        self.assert_rule(w, 'LIMG-7')

    def test_beyond_the_end(self):
        w = self.make((1 << 20) + 8192)
        w.head.entries[1][260] = (writer.word(1, 0, w.epoch), 0)
        self.assert_rule(w, 'LIMG-6')

    def test_on_fixed_au(self):
        w = self.make()
        w.put(192, b'x' * AU)
        w.head.entries[1][300] = (writer.word(2, 192, w.epoch), writer.xxh64(b'x' * AU))
        self.assert_rule(w, 'LIMG-16')

    def test_lost_and_missing_bits(self):
        for wrong in ({5000}, None):
            w = self.make()
            free_map = w.free_map

            def changed(used, groups):
                return free_map(used | wrong if wrong else used - {max(used)}, groups)
            w.free_map = changed
            self.assert_rule(w, 'LIMG-10')

    def test_wrong_data(self):
        w = self.make()
        word, csum = w.head.entries[1][512]
        w.head.entries[1][512] = (word, csum ^ 1)
        self.assert_rule(w, 'LIMG-11')

    def test_undefined_state(self):
        w = self.make()
        w.head.entries[1][300] = (writer.word(9, 0, 1), 0)
        self.assert_rule(w, 'LIMG-5')

    def test_zero_with_address(self):
        w = self.make()
        w.head.entries[1][300] = (writer.word(1, 77, 1), 0)
        self.assert_rule(w, 'LIMG-5')

    def test_catalog(self):
        for change in ('name', 'id', 'parent', 'circle', 'epoch', 'size', 'illegal'):
            w = self.make()
            one, two = w.snaps
            if change == 'name':
                two.name = 'one'
            elif change == 'id':
                w.next_id = 2
            elif change == 'parent':
                two.parent = 77
            elif change == 'circle':
                one.parent = 2
            elif change == 'epoch':
                two.epoch = 1
            elif change == 'size':
                one.state.size[writer.DISK] -= 1
            else:
                one.name = 'a@b'
            with self.subTest(change=change):
                self.assert_rule(w, 'LIMG-13')

    def test_logical_and_count(self):
        for field in (16, 32):
            w = self.make()
            store = w.store_node

            def changed(page, kind, level, index, logical, count, epoch, state, parent):
                if kind == 1 and level == 0 and index == 2:
                    logical, count = (bytes(16), count) if field == 16 else (logical, count + 1)
                return store(page, kind, level, index, logical, count, epoch, state, parent)
            w.store_node = changed
            self.assert_rule(w, 'LIMG-8')

    def test_cut_file(self):
        self.make().save(self.path)
        os.truncate(self.path, os.path.getsize(self.path) - 1)
        self.assertEqual(rules(self.path)[0], ['LIMG-3'])

    def test_unit_header(self):
        w = self.make()
        w.write(1 << 20, writer.compressible(random.Random(4), 128 << 10), compress=writer.DEFLATE)
        addr = w.head.entries[1][256][0] & writer.ADDR_MASK
        w.memory[addr] = struct.pack('<I', 9) + w.memory[addr][4:]
        self.assert_rule(w, 'LIMG-12')


class Journals(Case):
    def make(self):
        w = writer.Writer(1 << 20, rng=random.Random(3))
        w.write(0, random.Random(1).randbytes(40960))
        w.start_journal(16, 4096 * 3, 41)
        w.ring['base0'] = w.head.copy()
        return w

    def read(self):
        problems = []
        image = reader.Image(self.path)
        return content(reader.LimgLayer(image), problems), [p.rule for p in problems + image.problems]

    def test_replay_and_wrap(self):
        w = self.make()
        for i in range(20):
            w.write(4096 * (i % 7), bytes([i]) * 9000)
            w.journal()
            if w.ring['next'] - 41 >= 12:
                break
        w.save(self.path)
        self.assertEqual(self.read(), (w.content(w.head), []))
        self.assertEqual(rules(self.path), ([], [], []))

    def test_torn_tail_is_dropped(self):
        w = self.make()
        w.write(4096, b'a' * 4096)
        w.journal()
        truth = w.content(w.head)
        w.write(8192, b'b' * 4096)
        w.journal()
        w.memory[w.head.entries[1][2][0] & writer.ADDR_MASK] = bytes(AU)
        w.save(self.path)
        self.assertEqual(self.read(), (truth, []))

    def test_mismatch_below_stable_is_damage(self):
        w = self.make()
        w.write(4096, b'a' * 4096)
        w.journal()
        w.write(8192, b'b' * 4096)
        w.journal()
        w.memory[w.head.entries[1][1][0] & writer.ADDR_MASK] = bytes(AU)
        w.save(self.path)
        self.assertEqual(self.read()[1], ['LIMG-11'])

    def test_break_below_stable(self):
        w = self.make()
        for i in range(4):
            w.write(4096, bytes([i + 1]) * 4096)
            w.journal()
        at = w.ring['addr'] + 3 + 1
        w.memory[at] = w.memory[at][:100] + b'\xff' + w.memory[at][101:]
        w.save(self.path)
        self.assertIn('LIMG-15', self.read()[1])


class Chains(Case):
    def test_overlay_on_snapshot_of_overlay_of_raw(self):
        rng = random.Random(8)
        raw = os.path.join(self.folder, 'base.raw')
        base = rng.randbytes(300 << 10)
        with open(raw, 'wb') as file:
            file.write(base)
        w = writer.Writer(400 << 10, rng=rng)
        layer = reader.RawLayer(raw)
        w.set_backing('base.raw', 'raw', 2, len(base), digest=reader.fingerprint(layer), mtime=os.stat(raw).st_mtime_ns)
        w.write(8192, rng.randbytes(8192))
        w.zero(64 << 10, 8192)
        w.snapshot('gold')
        truth = w.content(w.head, below=base)
        w.write(0, b'x' * 4096)
        w.save(self.path)
        gold = w.snaps[0]
        top = writer.Writer(500 << 10, rng=rng)
        top.set_backing('a.limg', 'limg', 1, 400 << 10, w.uuid, gold.uuid, w.logical_root(gold.state.roots[1]), 0,
                        'gold')
        top.write(32768, b'y' * 4096)
        top.save(os.path.join(self.folder, 'top.limg'))
        problems = []
        got = content(reader.LimgLayer(reader.Image(os.path.join(self.folder, 'top.limg'))), problems)
        self.assertEqual(got, top.content(top.head, below=truth))
        self.assertEqual(problems, [])
        with open(raw, 'r+b') as file:
            file.write(b'!')
        with self.assertRaises(reader.Damage) as caught:
            reader.LimgLayer(reader.Image(os.path.join(self.folder, 'top.limg')))
        self.assertEqual(caught.exception.rule, 'pin')

    def test_pin_of_a_replayed_parent(self):
        w = writer.Writer(5 << 20, rng=random.Random(3))
        w.write(0, random.Random(1).randbytes(40960))
        w.start_journal(16, 0, 1)
        w.ring['base0'] = w.head.copy()
        w.write(1 << 20, b'a' * 9000)
        w.zero(2 << 20, 1 << 20)
        w.journal()
        w.save(self.path)
        image = reader.Image(self.path)
        replayed = image.logical_root(image.disk)
        w.ring, w.epoch = None, 1
        w.save(self.path)
        image = reader.Image(self.path)
        self.assertEqual(replayed, image.logical_root(image.disk))


class Document(Case):
    def test_example(self):
        """The image of section 16 is the one that the document shows, and whole."""
        w = writer.example()
        w.save(self.path)
        with open(self.path, 'rb') as file:
            whole = file.read()
        document = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'format-spec', 'limg.md')
        with open(document, encoding='utf-8') as file:
            section = file.read().split('## 16.')[-1]
        lines = re.findall(r'^([0-9a-f]{6}): ((?:[0-9a-f]{2} )+)', section, re.M)
        self.assertGreater(len(lines), 40)
        for off, text in lines:
            off, shown = int(off, 16), bytes.fromhex(text)
            self.assertEqual(whole[off:off + len(shown)], shown, 'offset 0x%x' % off)
        self.assertEqual(rules(self.path), ([], [], []))


if __name__ == '__main__':
    unittest.main()
