#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
The engine and the two Python programs that were written from the document judge each other.

    judge.py engine MODEL [--ops N] [--seed N]    what random programs of tests/model leave behind is read by
                                                  limg_reader.py: content of every state, every invariant
    judge.py writer [--count N] [--seed N]        what limg_writer.py writes is read, checked and recovered by imgtool
                                                  (IMGTOOL names it), and verified by limg_reader.py afterwards
"""
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import limg_reader as reader    # noqa: E402
import limg_writer as writer    # noqa: E402
from limg_verify import Verifier    # noqa: E402

IMGTOOL = os.environ.get('IMGTOOL', 'imgtool')
WRAPPER = os.environ.get('IMGTOOL_WRAPPER', '').split()    # what our programs run under


def problems_of(path):
    try:
        verifier = Verifier(reader.Image(path))
        verifier.run()
        return [str(p) for p in verifier.problems]
    except reader.Damage as damage:
        return [str(damage)]


def read_digest(name):
    """(sha256 of the content, problems)"""
    digest = hashlib.sha256()
    try:
        layer = reader.open_state(name)
        problems = list(layer.image.problems)
        for _, length, data in layer.pieces(0, layer.size, problems.append):
            digest.update(bytes(length) if data is None else data)
        return digest.hexdigest(), [str(p) for p in problems]
    except reader.Damage as damage:
        return None, [str(damage)]


def judge_engine(args, folder):
    subprocess.run([*WRAPPER, args.model, '--ops', str(args.ops), '--seed', str(args.seed), '--dump', folder], check=True)
    bad = states = files = 0
    for program in sorted(os.listdir(folder), key=int):
        base = os.path.join(folder, program)
        with open(os.path.join(base, 'truth'), encoding='utf-8') as truth:
            lines = [line.split() for line in truth]
        for name, want in lines:
            got, problems = read_digest(os.path.join(base, name))
            states += 1
            if '@' not in name:
                problems += problems_of(os.path.join(base, name))
                files += 1
            if problems or got != want:
                print('seed %s, %s: %s' % (program, name, '; '.join(problems[:3]) or 'other content'))
                bad += 1
    print('interop: limg_reader.py read %d states of %d files of the engine: %d wrong' % (states, files, bad))
    return bad


def imgtool(*args):
    done = subprocess.run([*WRAPPER, IMGTOOL, *args], capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode(errors='replace').strip()[:300]


def judge_written(path, w):
    """What the engine says of an image, as a list of complaints."""
    states = [('', w.head)] + [('@' + s.name, s.state) for s in w.snaps if s and not s.deleted]
    wrong = []

    def look(when):
        status, said = imgtool('check', path)
        if status:
            wrong.append('%s: check: %s' % (when, said))
        for name, state in states:
            status, said = imgtool('checksum', '--algo', 'sha256', path + name)
            want = hashlib.sha256(w.content(state)).hexdigest()
            if status or want not in said:
                wrong.append('%s: head%s: %s, not %s' % (when, name, said, want))

    look('as written')
    # Writing opens it for writing: recovery, a reclaim that was half done, a new checkpoint.
    status, said = imgtool('snapshot', 'create', path + '@mark')
    if status:
        wrong.append('snapshot create: ' + said)
    look('after a change')
    wrong += ['limg_reader.py after a change: ' + p for p in problems_of(path)]
    for name, state in states:
        got, problems = read_digest(path + name)
        if problems or got != hashlib.sha256(w.content(state)).hexdigest():
            wrong.append('limg_reader.py after a change: head%s %s' % (name, problems))
    return wrong


def judge_writer(args, folder):
    bad = 0
    path = os.path.join(folder, 'w.limg')
    for seed in range(args.seed, args.seed + args.count):
        w = writer.random_image(seed)
        w.save(path)
        wrong = judge_written(path, w)
        if wrong:
            print('seed %d: %s' % (seed, '\n  '.join(wrong[:4])))
            bad += 1
        os.unlink(path)
    print('interop: the engine read %d images of limg_writer.py: %d wrong' % (args.count, bad))
    return bad


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest='command', required=True)
    engine = commands.add_parser('engine')
    engine.add_argument('model')
    engine.add_argument('--ops', type=int, default=12000)
    written = commands.add_parser('writer')
    written.add_argument('--count', type=int, default=40)
    for sub, function in ((engine, judge_engine), (written, judge_writer)):
        sub.add_argument('--seed', type=int, default=1)
        sub.set_defaults(function=function)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as folder:
        return 1 if args.function(args, folder) else 0


if __name__ == '__main__':
    sys.exit(main())
