#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Images that others made, of every format but qcow2 (which has its own test): what the manifest has a digest of is read with that
digest, if this build knows the format; nothing is changed, whatever the image says.

    foreign_samples.py [FORMAT...]      IMG_SAMPLES names the collection, IMGTOOL the tool
"""
import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
UNPACK = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}
SECONDS = 120


def unpack(path, folder):
    name, ext = os.path.splitext(os.path.basename(path))
    out = os.path.join(folder, name if ext in UNPACK else name + ext)
    with UNPACK.get(ext, open)(path, 'rb') as source, open(out, 'wb') as to:
        shutil.copyfileobj(source, to, 1 << 20)
    return out


def file_digest(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def run(*args):
    return subprocess.run([IMGTOOL, *args], capture_output=True, check=False, timeout=SECONDS)


def judge(row, path):
    """None: not for us; else '' or what is wrong."""
    told = run('info', '--json', path)
    if told.returncode:
        return None
    info = json.loads(told.stdout)
    if info['format'] in ('raw', 'qcow2') or len(sys.argv) > 1 and info['format'] not in sys.argv[1:]:
        return None
    want, before = row['content_sha256'], file_digest(path)
    if want == 'ALLZERO':    # may be large: beside a hole
        want, hole = '', path + '.hole'
        with open(hole, 'wb') as file:
            file.truncate(int(row['virtual_size']))
        got = run('compare', '-q', path, hole)
        os.unlink(hole)
    else:
        got = run('checksum', '-q', path)
    if got.returncode or got.stdout.decode().split()[:1] != want.split():
        return '%s: size %d, wanted %s; %s' % (info['format'], info['virtual_size'], row['virtual_size'],
                                              (got.stdout + got.stderr).decode(errors='replace')[:200])
    checked = run('check', '-q', path)
    if checked.returncode not in (0, 6):    # 6: there is nothing to check in some
        return 'check: ' + checked.stdout.decode(errors='replace')[:200]
    return '' if file_digest(path) == before else 'it was changed'


def main():
    source = os.path.abspath(os.environ.get('IMG_SAMPLES') or os.path.join(HERE, '..', '..', '..', 'shared', 'samples'))
    manifest = os.path.join(source, 'MANIFEST.tsv')
    if not os.path.exists(manifest):
        print('SKIPPED: no collection of samples in %s (IMG_SAMPLES names its folder)' % os.path.normpath(source))
        return 77
    with open(manifest, newline='', encoding='utf-8') as file:
        rows = [r for r in csv.DictReader(file, delimiter='\t') if r['content_sha256'] not in ('-', '')]
    bad = nr = 0
    with tempfile.TemporaryDirectory(prefix='samples.') as folder:
        for row in rows:
            path = unpack(os.path.join(source, row['stored_path']), folder)
            wrong = judge(row, path)
            os.unlink(path)
            nr += wrong is not None
            if wrong:
                print('FAILED %s (%s): %s' % (row['stored_path'], row['variant'], wrong))
                bad += 1
    print('samples: %d images of others: %d wrong' % (nr, bad))
    return 1 if bad or not nr else 0


if __name__ == '__main__':
    sys.exit(main())
