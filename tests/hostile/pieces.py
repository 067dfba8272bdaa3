#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Damaged and hostile images of the formats that are only read (tests/images/gen/pieces_image.py). Each must be refused with
the stated exit status and one line, in time and in little memory; then random damage, of which any documented status will do.

pieces.py IMGTOOL..."""
import os
import random
import struct
import subprocess
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, '..', 'images', 'gen'))
from pieces_image import (ADC, BZIP2, Dmg, LZFSE, PLAIN, XZ, ZERO, ZLIB, asif, bochs, cloop, dmg_tables,    # noqa: E402
                          lzfse, sample_content)

TEXT = sample_content(1 << 16)
SECONDS = 20
DAMAGE, REFUSED = 4, 6


def put(data, at, what):
    return data[:at] + what + data[at + len(what):]


def changed(**fields):
    """A dmg with other trailer fields: name -> (offset, format, value)."""
    data = Dmg(dmg_tables(TEXT)).build()
    for at, form, value in fields.values():
        data = put(data, len(data) - 512 + at, struct.pack(form, value))
    return data


def dmg_run(run, **fields):
    image = Dmg(dmg_tables(TEXT))
    for name, value in fields.items():
        image.runs[run][{'kind': 1, 'at': 2, 'sectors': 3, 'off': 4, 'size': 5}[name]] = value
    return image.build()


def dmg_list(text):
    return Dmg(dmg_tables(TEXT)).build(text)


def packed(kind, damage):
    """One piece, damaged after it was packed."""
    image = Dmg([(0, [(kind, TEXT[:32768])])])
    image.data = bytearray(damage(bytes(image.data)))
    image.runs[0][5] = len(image.data)
    return image.build()


def flipped(data):
    return put(data, len(data) // 2, bytes([data[len(data) // 2] ^ 0x55]))


def cases():
    """(name, file, exit status of convert, a part of the message)"""
    yield 'segment', changed(n=(60, '>I', 3)), REFUSED, 'in parts'
    yield 'version', changed(n=(4, '>I', 5)), REFUSED, 'version 5'
    yield 'list-outside', changed(n=(216, '>Q', 1 << 40)), DAMAGE, 'outside the file'
    yield 'list-overflow', changed(n=(216, '>Q', (1 << 64) - 16)), DAMAGE, 'outside the file'
    yield 'no-list-no-fork', changed(n=(224, '>Q', 0)), DAMAGE, 'outside the file'
    yield 'sectors', changed(n=(492, '>Q', 1 << 60)), DAMAGE, 'sectors'
    yield 'encrypted', b'encrcdsa' + bytes(4096), REFUSED, 'encrypted'
    yield 'run-outside', dmg_run(0, off=1 << 30), DAMAGE, 'beyond the file'
    yield 'run-overflow', dmg_run(0, off=(1 << 64) - 1), DAMAGE, 'beyond the file'
    yield 'run-overlap', dmg_run(2, at=1), DAMAGE, 'stands where'
    yield 'run-sectors', dmg_run(0, sectors=1 << 62), DAMAGE, 'beyond everything'
    yield 'run-large', dmg_run(7, sectors=1 << 20), REFUSED, 'expanded at once'
    yield 'run-type', dmg_run(0, kind=0x80000010), REFUSED, 'unknown type'
    yield 'run-short', dmg_run(0, sectors=1), DAMAGE, 'does not expand'
    yield 'run-long', dmg_run(7, sectors=2000), DAMAGE, 'stands where'
    yield 'plain-short', dmg_run(4, size=512), DAMAGE, 'plain piece'
    for text, name in ((b'', 'empty'), (b'<plist>', 'open'), (b'<a></b>', 'crossed'), (b'<a>' * 40 + b'</a>' * 40, 'deep'),
                       (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', 'entity'), (b'<a b=c/>', 'attribute'),
                       (b'<d><key>blkx</key><array><d><key>Data</key><data>!!!!</data></d></array></d>', 'base64'),
                       (b'<d><key>blkx</key><array><d><key>Data</key><data>bWlzaA==</data></d></array></d>', 'short'),
                       (b'<a/><b/>', 'two'), (b'text', 'text'), (b'<a><!-- </a>', 'comment')):
        yield 'list-' + name, dmg_list(text), DAMAGE, ''
    for kind, name in ((ADC, 'adc'), (ZLIB, 'zlib'), (BZIP2, 'bzip2'), (LZFSE, 'lzfse'), (XZ, 'xz')):
        yield name + '-cut', packed(kind, lambda d: d[:-3]), DAMAGE, 'does not expand'
        yield name + '-more', packed(kind, lambda d: d + b'\x80x\x80y'), DAMAGE, 'does not expand'
    for name in ('zlib', 'bzip2', 'xz'):
        kind = {'zlib': ZLIB, 'bzip2': BZIP2, 'xz': XZ}[name]
        yield name + '-flipped', packed(kind, flipped), DAMAGE, 'does not expand'
    yield 'lzfse-magic', packed(LZFSE, lambda d: put(d, 0, b'bvx1')), DAMAGE, 'does not expand'
    yield 'lzfse-raw', packed(LZFSE, lambda d: put(d, 4, struct.pack('<I', 1 << 30))), DAMAGE, 'does not expand'
    yield 'adc-back', packed(ADC, lambda d: b'\x40\xff\xff' + d[3:]), DAMAGE, 'does not expand'

    good = cloop(TEXT, 4096)
    yield 'cloop-block-0', put(good, 128, bytes(4)), DAMAGE, 'size of a block'
    yield 'cloop-block-odd', put(good, 128, struct.pack('>I', 4097)), DAMAGE, 'size of a block'
    yield 'cloop-block-large', put(good, 128, struct.pack('>I', 1 << 28)), REFUSED, 'expanded at once'
    yield 'cloop-count', put(good, 132, struct.pack('>I', 0xffffffff)), DAMAGE, 'number of blocks'
    yield 'cloop-backward', put(good, 136 + 8, struct.pack('>Q', 0)), DAMAGE, "block's end"
    yield 'cloop-outside', put(good, 136 + 8 * 16, struct.pack('>Q', 1 << 50)), DAMAGE, ''
    yield 'cloop-short', good[:130], DAMAGE, ''
    yield 'cloop-flipped', flipped(good), DAMAGE, 'does not expand'

    good = bochs(TEXT)
    for name, at, value in (('extent-0', 80, 0), ('extent-odd', 80, 513), ('extent-large', 80, 1 << 30), ('bitmap-0', 76, 0),
                            ('bitmap-large', 76, 1 << 30), ('catalog', 72, 1 << 30), ('header', 68, 8), ('header-far', 68, 1 << 31)):
        yield 'bochs-' + name, put(good, at, struct.pack('<I', value)), DAMAGE, 'does not fit'
    yield 'bochs-size', put(good, 88, struct.pack('<Q', 1 << 62)), DAMAGE, 'does not fit'
    yield 'bochs-entry', put(good, 512, struct.pack('<I', 0xfffffffe)), DAMAGE, 'beyond the file'
    yield 'bochs-version', put(good, 64, struct.pack('<I', 3 << 16)), REFUSED, 'version'
    yield 'bochs-undoable', put(good, 48, b'Undoable'), REFUSED, 'growing'

    good = asif(TEXT)
    yield 'asif-version', put(good, 4, struct.pack('>I', 2)), REFUSED, 'version'
    yield 'asif-flags', asif(TEXT, flags=1), REFUSED, 'flags'
    yield 'asif-partial', asif(TEXT, state=2), REFUSED, 'state of a chunk'
    yield 'asif-partial-3', asif(TEXT, state=3), REFUSED, 'state of a chunk'
    yield 'asif-chunk', put(good, 64, struct.pack('>I', 4097)), DAMAGE, 'size of a chunk'
    yield 'asif-sectors', put(good, 48, struct.pack('>Q', 1 << 62)), DAMAGE, 'size of the disk'
    yield 'asif-larger', put(good, 48, struct.pack('>Q', 1 << 40)), DAMAGE, 'largest size'
    yield 'asif-directory', put(good, 16, struct.pack('>Q', 1 << 40)), DAMAGE, 'directory'
    yield 'asif-directories-0', put(put(good, 512, bytes(8)), 1024, bytes(8)), DAMAGE, 'directory'
    yield 'asif-table', put(good, 1024 + 8, struct.pack('>Q', 1 << 30)), DAMAGE, 'table'
    yield 'asif-table-overflow', put(good, 1024 + 8, struct.pack('>Q', (1 << 55) - 1)), DAMAGE, 'table'
    yield 'asif-cut', good[:-1], DAMAGE, 'beyond the file'


def run(tool, *argv):
    done = subprocess.run([*tool, *argv], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    text = done.stderr.decode(errors='replace')
    if done.returncode not in (0, 2, 3, 4, 6) or (done.returncode and text.count('\n') > 1 and argv[0] == 'convert'):
        sys.exit('FAILED: %s ended with %d: %s' % (' '.join(argv), done.returncode, text[-2000:]))
    return done.returncode, text


def judge(tool):
    nr = bad = 0
    for name, data, status, message in cases():
        with open('hostile', 'wb') as file:
            file.write(data)
        got, text = run(tool, 'convert', '-f', name.split('-')[0] if name.split('-')[0] in ('cloop', 'bochs', 'asif') else 'dmg',
                        '-O', 'raw', 'hostile', 'hostile.raw')
        if got != status or message not in text:
            print('FAILED: %s: exit %d, not %d with "%s": %s' % (name, got, status, message, text))
            bad += 1
        if os.path.exists('hostile.raw'):
            print('FAILED: %s left a file' % name)
            os.unlink('hostile.raw')
            bad += 1
        for verb in ('info', 'check', 'map', 'inspect'):
            run(tool, verb, 'hostile')
        nr += 1
    if bad:
        sys.exit(1)
    return nr


def damage_at_random(tool, count):
    rng, nr = random.Random(1), 0
    good = [Dmg(dmg_tables(TEXT)).build(), Dmg(dmg_tables(TEXT), resource_fork=True).build(), cloop(TEXT, 8192),
            bochs(TEXT), asif(TEXT), Dmg([(0, [(LZFSE, TEXT), (ADC, TEXT), (PLAIN, TEXT), (ZERO, 512)])]).build()]
    for _ in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 5)):
            at = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 2048)), len(data) - 1 - rng.randrange(512)))
            data[at] = rng.choice((0, 0xff, rng.randrange(256), data[at] ^ 1 << rng.randrange(8)))
        with open('hostile', 'wb') as file:
            file.write(data)
        run(tool, 'check', 'hostile')
        run(tool, 'inspect', 'hostile')
        nr += 1
    return nr


if __name__ == '__main__':
    assert lzfse(TEXT) and BZIP2
    print('%d hostile images refused as they should be' % judge(sys.argv[1:]))
    print('%d images with random damage' % damage_at_random(sys.argv[1:], 60))
