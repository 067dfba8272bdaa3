#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Images that others made, by the digests of their content.

    qcow2_samples.py            the collection beside the project, or where IMG_SAMPLES says (MANIFEST.tsv describes it)
    qcow2_samples.py --own      images that qemu-img makes here and now, of the kinds that the collection has

Each is read (digest, check, map, info), and the originals are left as they are. What the manifest wants refused is
refused, quickly and in little memory.
"""
import argparse
import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import resource
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from qcow2_lab import IMGTOOL, WRAPPER, Lab, Wrong, imgtool, need_tools, run    # noqa: E402

FOLDERS = ('qcow2/', 'qemu-img-7.2/')
UNPACK = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}
REFUSE_SECONDS, REFUSE_BYTES = 5, 256 << 20


def unpack(path, folder):
    name, ext = os.path.splitext(os.path.basename(path))
    if ext not in UNPACK:
        shutil.copy(path, folder)
        return os.path.join(folder, name + ext)
    out = os.path.join(folder, name)
    with UNPACK[ext](path) as source, open(out, 'wb') as to:
        shutil.copyfileobj(source, to, 1 << 20)
    return out


def file_digest(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def zeros_digest(size):
    digest, piece = hashlib.sha256(), bytes(1 << 20)
    for at in range(0, size, len(piece)):
        digest.update(piece[:size - at])
    return digest.hexdigest()


def must_refuse(path, sanitized):
    def limit():
        # The address sanitizer reserves more than any limit before it begins.
        if not sanitized:
            resource.setrlimit(resource.RLIMIT_AS, (REFUSE_BYTES, REFUSE_BYTES))

    for verb in ('info', 'check', 'map', 'checksum'):
        done = subprocess.run([*WRAPPER, IMGTOOL, verb, '-f', 'qcow2', path], capture_output=True, check=False,
                              timeout=REFUSE_SECONDS, preexec_fn=limit)
        if done.returncode not in (3, 4, 6):
            raise Wrong('%s ended with %d: %s' % (verb, done.returncode,
                                                  (done.stdout + done.stderr).decode(errors='replace')[:300]))


def must_read(path, size, digest):
    before = file_digest(path)
    info = json.loads(imgtool('info', '--json', path).stdout)
    if info['format'] != 'qcow2' or info['virtual_size'] != size:
        raise Wrong('info says %s of %d bytes, not %d' % (info['format'], info['virtual_size'], size))
    said = imgtool('checksum', '--algo', 'sha256', path).stdout.decode().split()[0]
    if said != digest:
        raise Wrong('the content is %s, not %s' % (said, digest))
    imgtool('check', '-q', path)
    extents = json.loads(imgtool('map', '--json', path).stdout)['extents']
    if sum(e['length'] for e in extents) != size:
        raise Wrong('map describes another size')
    if file_digest(path) != before:
        raise Wrong('the file was changed by reading it')


def must_survive_writing(path, digest):
    """A write in place, and back again, judged by qemu-img; snapshots and bitmaps of others stay."""
    listed = run('qemu-img', 'info', '--output=json', path).stdout
    keep = lambda text: (json.loads(text).get('snapshots'),    # noqa: E731
                         json.loads(text)['format-specific']['data'].get('bitmaps'))
    old = imgtool('read', '-q', path, '--offset', 512, '--length', 4096).stdout
    imgtool('write', '-q', path, '--offset', 512, stdin=bytes(b ^ 255 for b in old))
    imgtool('write', '-q', path, '--offset', 512, stdin=old)
    run('qemu-img', 'check', '-q', path)
    if keep(run('qemu-img', 'info', '--output=json', path).stdout) != keep(listed):
        raise Wrong('a write changed the snapshots or bitmaps that qemu-img lists')
    if imgtool('checksum', '--algo', 'sha256', path).stdout.decode().split()[0] != digest:
        raise Wrong('a write and its undoing changed the content')


def is_qcow2(path):
    with open(path, 'rb') as file:
        return file.read(8) in (b'QFI\xfb\0\0\0\2', b'QFI\xfb\0\0\0\3')


def judge_row(row, source, folder, sanitized):
    """One line of the manifest. False: it is nothing for us."""
    path = unpack(os.path.join(source, row['stored_path']), folder)
    if row['sha256_image'] not in ('-', file_digest(path)):
        raise Wrong('the sample is not the one that the manifest describes')
    if row['notes'].startswith('MUST be rejected') or row['variant'].startswith('hostile'):
        must_refuse(path, sanitized)
        return True
    if not is_qcow2(path) or row['content_sha256'] == '-':
        return False
    size = int(row['virtual_size'])
    digest = zeros_digest(size) if row['content_sha256'] == 'ALLZERO' else row['content_sha256']
    must_read(path, size, digest)
    must_survive_writing(path, digest)
    return True


def judge_collection(source, folder, sanitized):
    with open(os.path.join(source, 'MANIFEST.tsv'), newline='', encoding='utf-8') as file:
        rows = [r for r in csv.DictReader(file, delimiter='\t') if r['stored_path'].startswith(FOLDERS)]
    # Everything first: images name others beside them.
    for row in rows:
        unpack(os.path.join(source, row['stored_path']), folder)
    bad = nr = 0
    for row in sorted(rows, key=lambda r: 'chain-3' in r['stored_path']):    # the base is changed last
        try:
            nr += judge_row(row, source, folder, sanitized)
        except (Wrong, subprocess.TimeoutExpired) as wrong:
            print('FAILED %s (%s): %s' % (row['stored_path'], row['variant'], wrong))
            bad += 1
    print('samples: %d qcow2 images of others: %d wrong' % (nr, bad))
    return bad or not nr


OWN = (
    ('v2', 'compat=0.10', ()),
    ('v3 zlib', 'compat=1.1', ('-c',)),
    ('v3 zstd', 'compression_type=zstd', ('-c',)),
    ('2M clusters', 'cluster_size=2M', ()),
    ('512-byte clusters', 'cluster_size=512', ()),
    ('extended L2', 'extended_l2=on,cluster_size=128k', ()),
    ('64-bit refcounts', 'refcount_bits=64', ()),
    ('1-bit refcounts', 'refcount_bits=1', ()),
    ('lazy refcounts', 'lazy_refcounts=on', ()),
    ('preallocated', 'preallocation=metadata', ()),
)


def judge_own(folder):
    truth = Lab(folder, 3 << 20)
    for i in range(0, len(truth.head), 9973):
        truth.head[i:i + 700] = bytes([i % 251]) * 700
    raw, bad = truth.truth_file(), 0
    digest = hashlib.sha256(truth.head).hexdigest()
    for i, (name, options, flags) in enumerate(OWN):
        path = os.path.join(folder, '%d.qcow2' % i)
        try:
            run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', *flags, '-o', options, raw, path)
            if '1-bit' not in name:
                run('qemu-img', 'snapshot', '-c', 'one', path)
            if 'v2' not in name:
                run('qemu-img', 'bitmap', '--add', path, 'b')
            must_read(path, len(truth.head), digest)
            must_survive_writing(path, digest)
        except Wrong as wrong:
            print('FAILED %s: %s' % (name, wrong))
            bad += 1
    print('samples: %d images made by qemu-img: %d wrong' % (len(OWN), bad))
    return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--own', action='store_true')
    parser.add_argument('--sanitized', action='store_true', help='memory is not limited')
    args = parser.parse_args()
    need_tools('qemu-img')
    source = os.path.abspath(os.environ.get('IMG_SAMPLES') or os.path.join(HERE, '..', '..', '..', 'shared', 'samples'))
    if not args.own and not os.path.exists(os.path.join(source, 'MANIFEST.tsv')):
        print('SKIPPED: no collection of samples in %s (IMG_SAMPLES names its folder)' % os.path.normpath(source))
        return 77
    folder = tempfile.mkdtemp(prefix='samples.')
    os.chdir(folder)    # qemu-img looks for data files from where it stands
    try:
        return 1 if (judge_own(folder) if args.own else judge_collection(source, folder, args.sanitized)) else 0
    finally:
        os.chdir('/')
        shutil.rmtree(folder)


if __name__ == '__main__':
    sys.exit(main())
