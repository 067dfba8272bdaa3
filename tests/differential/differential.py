#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Damaged qcow2 images, each judged by qemu-img and by the library: does it open, what does a check say, what does the disk
hold. Where the two disagree a rule of rules.py must know why; what no rule explains is a failure.

differential.py VERDICT [--seed N] [--count N] [--seconds N] [--keep FOLDER] [--show RULE] [--stop]

VERDICT is the program of verdict.c. --seconds: as many images as that takes. --keep: images of failures go there. --show:
print what fell under this rule. --stop: end at the first failure."""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import mutations
import rules

SECONDS = 10


class Judged:
    """What both said of one image. check: "clean", "leaks", "damage" or "refused"; read: "all", "part" or "refused"."""

    def __init__(self, image):
        self.image = image
        self.slow = False
        self.where = ""


def run(argv, folder):
    """Exit status (None: not done in time), stdout, stderr."""
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, b"", ""
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def of_counts(damage, leaks):
    return "damage" if damage else "leaks" if leaks else "clean"


def their_check(j, name, folder):
    code, out, j.check_said = run(["qemu-img", "check", "-f", "qcow2", "--output=json", name], folder)
    j.counts = None
    if code is None:
        j.slow = True
    elif code < 0:
        j.their_check = "killed by signal %d" % -code
        return
    try:
        told = json.loads(out)
    except ValueError:
        j.their_check = "refused"
        return
    j.check_errors = told.get("check-errors", 0)
    j.counts = told.get("corruptions", 0), told.get("leaks", 0)
    j.their_check = of_counts(*j.counts)


def their_read(j, name, folder):
    raw = os.path.join(folder, "disk.raw")
    if os.path.exists(raw):
        os.unlink(raw)
    code, _, j.read_said = run(["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=64k", "count=256", "if=" + name, "of=disk.raw"],
                               folder)
    if code is None:
        j.slow = True
        j.their_read = "refused"
    elif code == 0:
        j.their_read = "all"
    else:
        j.their_read = "part" if "error while reading" in j.read_said else "refused"
    return raw if j.their_read == "all" else "-"


def our_verdict(j, name, folder, raw, helper):
    helper.stdin.write("%s\t%s\n" % (name, raw))
    helper.stdin.flush()
    line = helper.stdout.readline()
    if not line:
        raise SystemExit("the library's side died (seed above): %s" % helper.wait())
    code, damage, leaks, lowest, broken, read, where, said = line.rstrip("\n").split("\t", 7)
    j.code, j.read_code, j.ours, j.lowest_leak = int(code), int(read), (int(damage), int(leaks)), int(lowest)
    j.broken, (j.check_why, j.read_why) = broken.split(","), said.split(" | ", 1)
    j.our_check = "refused" if j.code else of_counts(*j.ours)
    j.our_read = {"open": "refused", "read": "part"}.get(where.split()[0], "all")
    j.where = where


def judge(name, folder, helper):
    with open(os.path.join(folder, name), "rb") as f:
        j = Judged(mutations.Found(f.read()))
    their_check(j, name, folder)
    our_verdict(j, name, folder, their_read(j, name, folder), helper)
    return j


def said_by(j):
    return " | ".join((j.check_why, j.read_why))


def disagreements(j):
    if j.our_check != j.their_check:
        yield "check: %s, qemu-img: %s" % (j.our_check, j.their_check)
    if j.our_read != j.their_read:
        yield "read: %s, qemu-img: %s" % (j.our_read, j.their_read)
    elif j.our_read == "all" and j.where != "same":
        yield "content: %s" % j.where


def one(seed, templates, folder, helper, tally, args):
    name = "%d.qcow2" % seed
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(mutations.make(seed, templates))
    j = judge(name, folder, helper)
    tally["check " + j.our_check] += 1
    tally["read " + j.our_read] += 1
    failed = False
    for what in disagreements(j):
        rule = rules.explain(what, j)
        tally["rule " + rule if rule else "unexplained"] += 1
        if not rule or rule == args.show:
            print("%s: --seed %d --count 1: %s\n  ours: %s %s [%s]; %s\n  theirs: %s %s %s" % (
                rule or "UNEXPLAINED", seed, what, j.code, j.ours, ",".join(j.broken), said_by(j), j.counts,
                j.check_said.strip()[:300], j.read_said.strip()[:200]))
        failed |= not rule
    if failed and args.keep:
        shutil.copy(path, args.keep)
    os.unlink(path)
    return failed


def report(tally, nr, took):
    print("%d images in %d s" % (nr, took))
    for what, count in sorted(tally.items()):
        print("  %6d %s" % (count, what))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("verdict")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 40))
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--seconds", type=int)
    p.add_argument("--keep", metavar="FOLDER")
    p.add_argument("--show", metavar="RULE")
    p.add_argument("--stop", action="store_true")
    args = p.parse_args()
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        print("SKIPPED: qemu-img is not installed (Debian package qemu-utils)")
        return 77
    rules.check_documented()
    print("seed %d" % args.seed)
    tally, failed, nr = collections.Counter(), 0, 0
    start = time.monotonic()
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="differential-", dir=shm) as folder:
        templates = mutations.make_templates(folder)
        with subprocess.Popen([os.path.abspath(args.verdict)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              errors="replace", cwd=folder) as helper:
            while nr < args.count if not args.seconds else time.monotonic() - start < args.seconds:
                failed += one(args.seed + nr, templates, folder, helper, tally, args)
                nr += 1
                if failed and args.stop:
                    break
            helper.stdin.close()
    report(tally, nr, time.monotonic() - start)
    print("%d images, %d failed" % (nr, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
