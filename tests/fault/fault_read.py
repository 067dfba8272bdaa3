#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Makes one small image of each format that is only read, and runs fault_read on them. fault_read.py PROGRAM"""
import os
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'images', 'gen'))
import pieces_image as gen    # noqa: E402


def files(folder):
    text = gen.sample_content(1 << 17)
    tables = gen.dmg_tables(text)
    made = {'list.dmg': gen.Dmg(tables).build(), 'fork.dmg': gen.Dmg(tables, resource_fork=True).build(),
            'p.cloop': gen.cloop(text, 16384), 'one.bochs': gen.bochs(text, version=1), 'a.asif': gen.asif(text)}
    for name, data in made.items():
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(data)
    if shutil.which('qemu-img'):
        raw = os.path.join(folder, 'raw')
        with open(raw, 'wb') as file:
            file.write(text)
        for name, flags in (('one.qcow', ('qcow',)), ('packed.qcow', ('qcow', '-c')), ('one.qed', ('qed', '-o', 'cluster_size=4096'))):
            subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', *flags, raw, os.path.join(folder, name)], check=False)
        os.unlink(raw)
    return sorted(os.listdir(folder))


def main():
    folder = tempfile.mkdtemp(prefix='fault_read.')
    try:
        return subprocess.run([os.path.abspath(sys.argv[1]), *files(folder)], cwd=folder, check=False).returncode
    finally:
        shutil.rmtree(folder)


if __name__ == '__main__':
    sys.exit(main())
