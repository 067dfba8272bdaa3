#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
qemu-io, qemu-img and our programs in turns on one image, at random, each step by one of them; after each step both read
what the model says, and qemu-img check and imgtool check find nothing.

    qcow2_turns.py [--seed N] [--rounds N] [--steps N] [--keep]

A round has an image of a kind of its own. What fails prints the seed of its round: --seed of that, --rounds 1, runs it
again.
"""
import argparse
import os
import random
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import qcow2_matrix as matrix    # noqa: E402
from qcow2_lab import Lab, Wrong, imgtool, need_tools    # noqa: E402


def pick_snapshot(lab, rng):
    return rng.choice(sorted(lab.snaps)) if lab.snaps else None


def step(lab, kind, rng, number):
    who = rng.choice(('ours', 'qemu'))
    what = rng.choices(('change', 'snapshot', 'delete', 'revert', 'resize', 'repair'), (12, 3, 2, 2, 1, 1))[0]
    if what in ('snapshot', 'delete', 'revert') and not kind.snapshots:
        what = 'change'
    if what == 'snapshot' and len(lab.snaps) < 5:
        lab.snapshot(who, 's%d' % number)
    elif what == 'delete' and lab.snaps:
        lab.delete(who, pick_snapshot(lab, rng))
    elif what == 'revert' and lab.snaps:
        name = pick_snapshot(lab, rng)
        # qemu-img does not go back to another size by -a where the version has none in its snapshots.
        lab.revert(who if len(lab.snaps[name]) == len(lab.head) else 'ours', name)
    elif what == 'resize' and not lab.snaps:
        lab.resize(who, rng.randrange(1, 2 * len(lab.head)) // 512 * 512 + 512 if len(lab.head) < 4 << 20 else 1 << 20)
    elif what == 'repair':
        lab.note('ours', 'check --repair')
        imgtool('check', '-q', '--repair', lab.path)
    else:
        matrix.change(lab, kind, who, rng)


def one_round(seed, steps, folder):
    rng = random.Random(seed)
    kind = matrix.Kind(rng.choice(matrix.all_kinds()))
    size = rng.randrange(1, 6000) * 512 + (rng.randrange(8 << 20) // 512 * 512 if kind.bytes > 65536 else 0)
    lab = Lab(folder, size)
    lab.note('seed', '%d %s' % (seed, kind))
    number = 0
    try:
        matrix.create(lab, kind, rng.choice(('ours', 'qemu')), size)
        lab.judge()
        for number in range(steps):
            step(lab, kind, rng, number)
            lab.judge()
    except Wrong as wrong:
        raise Wrong('%s\n  step %d of %s, after:\n    %s' % (
            wrong, number, kind, '\n    '.join(lab.log[-10:]))) from None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--keep', action='store_true')
    args = parser.parse_args()
    need_tools('qemu-img', 'qemu-io')
    bad, started = 0, time.monotonic()
    print('turns: seeds from %d' % args.seed)
    for seed in range(args.seed, args.seed + args.rounds):
        folder = tempfile.mkdtemp(prefix='turns.', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)
        failed = False
        try:
            one_round(seed, args.steps, folder)
        except Wrong as wrong:
            bad, failed = bad + 1, True
            print('FAILED --seed %d --rounds 1 --steps %d\n  %s' % (seed, args.steps, wrong))
            sys.stdout.flush()
        if failed and args.keep:
            print('  files kept in', folder)
        else:
            shutil.rmtree(folder)
    print('interop: %d rounds of %d steps by qemu and by us in turns, %.0f s: %d failures' % (
        args.rounds, args.steps, time.monotonic() - started, bad))
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
