#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Images that other software wrote, in the formats beside qcow2, by the digests of their content.

    foreign_samples.py      the collection beside the project, or where IMG_SAMPLES says (MANIFEST.tsv describes it)

Each is converted to raw (digest), compared with its conversion, checked, mapped; and the original is left as it is. Memory is bounded.
Folders are added here when their format gets a driver.
"""
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from qcow2_lab import IMGTOOL, WRAPPER, Wrong, imgtool    # noqa: E402
from qcow2_samples import file_digest, unpack, zeros_digest    # noqa: E402

FOLDERS = ('asif/', 'bochs/', 'cloop/', 'dmg/', 'parallels/', 'vhd/', 'vhdx/', 'vmdk/')
FILES = ('qemu-img-7.2/x.qcow.xz', 'qemu-img-7.2/c.qcow.xz', 'qemu-img-7.2/x.qed.xz', 'qemu-img-7.2/dyn.vdi.xz',
         'qemu-img-7.2/forced.vhd.xz', 'qemu-img-7.2/fixed1M.vhdx.xz', 'qemu-img-7.2/p.hdd.xz',
         'qemu-img-7.2/so-qemu.vmdk.xz')

# A difference whose parent is not at hand, and nonsense: an error of these kinds, never zeros.
# Extents of VMware's are no disks by themselves.
REFUSED = {'vhd/fat-differential.vhd.xz': (3, 6), 'vhd/afl5.img.bz2': (4, 6), 'vmdk/afl9.vmdk.bz2': (4, 6),
           'vmdk/twoGbMaxExtentSparse-s001.vmdk.xz': (6,)}

# Descriptors name other files: samples beside them, or made of the content of one.
BESIDE = {'vmdk/twoGbMaxExtentSparse.vmdk': 'vmdk/twoGbMaxExtentSparse-s001.vmdk.xz'}
MADE = {'vmdk/monolithicFlat.vmdk': 'monolithicFlat-flat.vmdk', 'vmdk/twoGbMaxExtentFlat.vmdk': 'twoGbMaxExtentFlat-f001.vmdk'}
MADE_OF = 'vmdk/monolithicSparse.vmdk.xz'
NEEDS_DESCRIPTOR = {'vmdk/sesparse.vmdk.gz': 'RW 1048576 SESPARSE "%s"'}

# Size and content, as the manifest says beside the last of its files.
BUNDLES = {'parallels/expanding.hdd': (104857600, '7906281f7a25f13df78c907d7bc4e9313d9a26fa86386c6e2a737a784fe80b8f'),
           'parallels/split.hdd': (10737418240, '035f643ace2bbca90762a1318e865ec456c44cfd578e65ed32a9363d6348efa1')}

CONVERT_BYTES, SECONDS, LARGE_BYTES = 256 << 20, 120, 4 << 30


def convert(path, out, sanitized):
    def limit():
        if not sanitized:
            resource.setrlimit(resource.RLIMIT_AS, (CONVERT_BYTES, CONVERT_BYTES))
    done = subprocess.run([*WRAPPER, IMGTOOL, 'convert', '-q', '-O', 'raw', path, out], capture_output=True, check=False,
                          timeout=SECONDS, preexec_fn=limit)
    if done.returncode:
        raise Wrong('convert ended with %d: %s' % (done.returncode, done.stderr.decode(errors='replace')[:300]))


def with_files(row, path, source, folder, sanitized):
    """The file to open, once the others are there."""
    name = row['stored_path']
    if name in BESIDE:
        unpack(os.path.join(source, BESIDE[name]), folder)
    if name in MADE:
        convert(unpack(os.path.join(source, MADE_OF), folder), os.path.join(folder, MADE[name]), sanitized)
    if name not in NEEDS_DESCRIPTOR:
        return path
    with open(path + '.txt', 'w', encoding='ascii') as file:
        file.write('# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="seSparse"\n%s\n'
                   % (NEEDS_DESCRIPTOR[name] % os.path.basename(path)))
    return path + '.txt'


def judge(row, source, folder, sanitized):
    path = unpack(os.path.join(source, row['stored_path']), folder)
    if row['sha256_image'] not in ('-', file_digest(path)):
        raise Wrong('the sample is not the one that the manifest describes')
    if row['stored_path'] in REFUSED:
        done = subprocess.run([*WRAPPER, IMGTOOL, 'checksum', path], capture_output=True, check=False, timeout=SECONDS)
        if done.returncode not in REFUSED[row['stored_path']] or done.stderr.count(b'\n') != 1:
            raise Wrong('not refused: %d: %s' % (done.returncode, done.stderr.decode(errors='replace')[:300]))
        return True
    if row['content_sha256'] == '-':
        return False
    path = with_files(row, path, source, folder, sanitized)
    size, before, out = int(row['virtual_size']), file_digest(path), os.path.join(folder, 'out.raw')
    empty = row['content_sha256'] == 'ALLZERO' and size > LARGE_BYTES   # not to be read byte by byte
    digest = zeros_digest(size) if row['content_sha256'] == 'ALLZERO' and not empty else row['content_sha256']
    convert(path, out, sanitized)
    if os.path.getsize(out) != size or empty and os.stat(out).st_blocks > 8 or not empty and file_digest(out) != digest:
        raise Wrong('the content is not %s' % digest)
    imgtool('compare', '-q', path, out)
    imgtool('check', '-q', path)
    if sum(e['length'] for e in json.loads(imgtool('map', '--json', path).stdout)['extents']) != size:
        raise Wrong('map describes another size')
    os.unlink(out)
    if file_digest(path) != before:
        raise Wrong('the file was changed by reading it')
    os.unlink(path)
    return True


def judge_bundle(name, source, folder, sanitized):
    """A folder of images that are one disk: each of its rows in its place; the digest of the whole."""
    size, digest, rows = *BUNDLES[name], os.path.join(source, name)
    path, out = os.path.join(folder, os.path.basename(name)), os.path.join(folder, 'out.raw')
    os.mkdir(path)
    before = {file: file_digest(unpack(os.path.join(rows, file), path)) for file in os.listdir(rows)}
    convert(path, out, sanitized)
    if os.path.getsize(out) != size or file_digest(out) != digest:
        raise Wrong('the content is not %s' % digest)
    imgtool('check', '-q', path)
    if sum(e['length'] for e in json.loads(imgtool('map', '--json', path).stdout)['extents']) != size:
        raise Wrong('map describes another size')
    os.unlink(out)
    if sorted(before.values()) != sorted(file_digest(os.path.join(path, file)) for file in os.listdir(path)):
        raise Wrong('files were changed by reading them')


def main():
    sanitized = '--sanitized' in sys.argv
    source = os.path.abspath(os.environ.get('IMG_SAMPLES') or os.path.join(HERE, '..', '..', '..', 'shared', 'samples'))
    if not os.path.exists(os.path.join(source, 'MANIFEST.tsv')):
        print('SKIPPED: no collection of samples in %s (IMG_SAMPLES names its folder)' % os.path.normpath(source))
        return 77
    with open(os.path.join(source, 'MANIFEST.tsv'), newline='', encoding='utf-8') as file:
        rows = [r for r in csv.DictReader(file, delimiter='\t')
                if r['stored_path'].startswith(FOLDERS) or r['stored_path'] in FILES]
    folder, bad, nr = tempfile.mkdtemp(prefix='samples.'), 0, 0
    try:
        for row in rows:
            try:
                nr += judge(row, source, folder, sanitized)
            except (Wrong, subprocess.TimeoutExpired) as wrong:
                print('FAILED %s (%s): %s' % (row['stored_path'], row['variant'], wrong))
                bad += 1
        for name in BUNDLES:
            try:
                judge_bundle(name, source, folder, sanitized)
                nr += 1
            except (Wrong, OSError, subprocess.TimeoutExpired) as wrong:
                print('FAILED %s: %s' % (name, wrong))
                bad += 1
    finally:
        shutil.rmtree(folder)
    print('samples: %d images of others: %d wrong' % (nr, bad))
    return 1 if bad or not nr else 0


if __name__ == '__main__':
    sys.exit(main())
