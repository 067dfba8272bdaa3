#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Reads a snapshot from other processes while a writer has the image open and changes everything else: the content is the
same, bit for bit, each time. And what is being read cannot be deleted, by the writer or by another process.

    beside.py WRITER [--seconds N] [--seed N]    IMGTOOL names the tool
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
DISK = 24 << 20


class Failed(Exception):
    pass


def run(*args, want=0, stdin=None):
    done = subprocess.run([IMGTOOL, *args], input=stdin, capture_output=True, check=False)
    if done.returncode != want:
        raise Failed('imgtool %s ended with %d, not %d: %s' % (' '.join(args), done.returncode, want,
                                                             done.stderr.decode(errors='replace').strip()))
    return done.stdout


def sha256(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_often(folder, name, truth, stop, counts, errors):
    """Reads the snapshot in three ways, again and again."""
    out = os.path.join(folder, '%s.raw' % threading.get_ident())
    snap = os.path.join(folder, 'd.limg@keep')
    try:
        while not stop.is_set():
            if name == 'convert':
                run('convert', '-q', '-O', 'raw', '--force', snap, out)
                got = sha256(out)
            elif name == 'checksum':
                got = run('checksum', '--algo', 'sha256', snap).decode().split()[0]
            else:
                got = hashlib.sha256(run('read', snap, '--offset', '0', '--length', str(DISK))).hexdigest()
            if got != truth:
                raise Failed('%s read other data of the snapshot: %s, not %s' % (name, got, truth))
            counts[name] = counts.get(name, 0) + 1
    except (Failed, OSError) as error:
        errors.append(str(error))
        stop.set()


def delete_while_read(path):
    """A slow reader holds the snapshot: its pipe is full."""
    reader = subprocess.Popen([IMGTOOL, 'read', path + '@keep', '--offset', '0', '--length', str(DISK)],
                              stdout=subprocess.PIPE)
    first = reader.stdout.read(100000)
    run('snapshot', 'delete', path + '@keep', want=5)
    rest = reader.stdout.read()
    if reader.wait() != 0 or len(first) + len(rest) != DISK:
        raise Failed('the reader of a snapshot that somebody wanted to delete failed')
    run('snapshot', 'delete', path + '@keep')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('writer')
    parser.add_argument('--seconds', type=int, default=15)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = tempfile.mkdtemp(prefix='beside.', dir='.')
    path = os.path.join(folder, 'd.limg')
    counts, errors, stop = {}, [], threading.Event()
    try:
        run('create', '-q', '-f', 'limg', path, str(DISK))
        run('write', '-q', path, '--offset', '0', stdin=rng.randbytes(6 << 20))
        run('write', '-q', path, '--offset', str(12 << 20), stdin=b'again and ' * 300000)
        truth = run('checksum', '--algo', 'sha256', path).decode().split()[0]
        run('snapshot', 'create', path + '@keep')
        writer = subprocess.Popen([args.writer, path, str(args.seconds), str(args.seed)], stdout=subprocess.PIPE)
        if writer.stdout.readline() != b'open\n':
            raise Failed('the writer did not start')
        readers = [threading.Thread(target=read_often, args=(folder, name, truth, stop, counts, errors))
                   for name in ('convert', 'checksum', 'read')]
        for reader in readers:
            reader.start()
        while writer.poll() is None and not stop.is_set():
            time.sleep(.1)
        stop.set()
        for reader in readers:
            reader.join()
        said = writer.communicate()[0].decode().strip()
        if errors or writer.returncode:
            raise Failed(errors[0] if errors else 'the writer ended with %d' % writer.returncode)
        run('check', '-q', path)
        names = [s['name'] for s in json.loads(run('snapshot', 'list', '--json', path))['snapshots']]
        delete_while_read(path)
        run('check', '-q', path)
        shutil.rmtree(folder)
    except Failed as failed:
        stop.set()
        print('beside: seed %d: %s (files kept in %s)' % (args.seed, failed, folder))
        return 1
    print('beside: seed %d: writer: %s, %d snapshots left; read the same %s' % (
        args.seed, said, len(names), ', '.join('%d times by %s' % (n, k) for k, n in sorted(counts.items()))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
