#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Verdicts of `imgtool inspect`.

  files     every case of tests/images/gen/hostile_files.py: its exit status, and its rules among the findings
  qcow2     every case of tests/images/gen/qcow2_hostile.py: exit status and rules as in inspect-qcow2.tsv
  samples   images of other software: as in inspect-samples.tsv (skipped where they are not at hand)
  mutate    random damage to all of the above: a documented verdict, in time, in little memory, without a sanitizer's complaint
  table     the comparison in format-spec/inspect.md is the one that the cases make

inspect.py IMGTOOL PART... [--sanitized] [--seed N] [--count N] [--update]
--update writes the .tsv files anew; what changed in them is to be read before it is believed."""

import argparse
import bz2
import gzip
import json
import lzma
import os
import random
import resource
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
top = os.path.join(here, "..", "..")
sys.path.insert(0, os.path.join(here, "..", "images", "gen"))
sys.path.insert(0, here)

import hostile_files  # noqa: E402
import qcow2_hostile  # noqa: E402
from hostile import Failed, run  # noqa: E402

SAMPLES = os.path.join(top, "..", "shared", "samples")
VERDICTS = {0: "safe", 4: "unparseable", 6: "unsafe"}
SECONDS = 20
MEMORY = 192 << 20


class Inspector:
    def __init__(self, args, folder):
        self.tool, self.folder = os.path.abspath(args.tool), folder
        self.memory = (4 << 30) if args.sanitized else MEMORY
        self.args, self.failed, self.done = args, 0, 0

    def inspect(self, data, *options):
        """Exit status and findings. Whatever the file is: one of the verdicts, whose counts are those of the findings."""
        path = os.path.join(self.folder, "file")
        with open(path, "wb") as f:
            if callable(data):
                data(f)
            else:
                f.write(data)
        rc, out, err, memory = run([self.tool, "inspect", "--json", *options, path], self.folder, SECONDS)
        if rc not in VERDICTS:
            raise Failed("exit %d: %s" % (rc, err))
        if memory > self.memory:
            raise Failed("%d MiB of memory" % (memory >> 20))
        report = json.loads(out)
        if report["verdict"] != VERDICTS[rc]:
            raise Failed("exit %d, and the verdict is %s" % (rc, report["verdict"]))
        for severity, count in (("unsafe", "unsafe"), ("note", "notes"), ("unparseable", "unparseable")):
            if sum(f["severity"] == severity for f in report["findings"]) != report[count]:
                raise Failed("%s: the count is not that of the findings" % severity)
        return rc, report["findings"]

    def attempt(self, name, fn, *args):
        self.done += 1
        try:
            fn(*args)
        except Failed as e:
            self.failed += 1
            print("%s: %s" % (name, e))

    # ---- parts

    def one_file(self, case):
        rc, findings = self.inspect(case.bytes(), *case.args)
        rules = {f["id"] for f in findings}
        if rc != case.status or not set(case.rules) <= rules:
            raise Failed("exit %d with %s, wanted %d with %s" % (rc, sorted(rules), case.status, sorted(case.rules)))
        if case.status == 0 and not rules - {"content"} <= set(case.rules):
            raise Failed("an honest file has %s" % sorted(rules))
        # whatever the format inspector refuses is not safe here either
        if case.theirs != "pass" and rc == 0:
            raise Failed("safe, and the format inspector says: %s" % case.theirs)

    def files(self):
        for case in hostile_files.CASES.values():
            self.attempt(case.name, self.one_file, case)

    def compare(self, name, found, expected):
        if self.args.update:
            expected[name] = found
        elif expected.get(name) != found:
            raise Failed("%s, expected %s" % (found, expected.get(name)))

    def summary(self, data, *options):
        rc, findings = self.inspect(data, *options)
        return "%s\t%s" % (VERDICTS[rc], " ".join(sorted({f["id"] for f in findings})))

    def expectations(self, part, items, options=()):
        """items: pairs of a name and a function that writes the file."""
        path = os.path.join(here, "inspect-%s.tsv" % part)
        expected = {}
        if os.path.exists(path) and not self.args.update:
            with open(path) as f:
                for line in f:
                    if not line.startswith("#"):
                        name, rest = line.rstrip("\n").split("\t", 1)
                        expected[name] = rest
        seen = set()
        for name, make in items:
            seen.add(name)
            self.attempt(name, lambda n, m: self.compare(n, self.summary(m, *options), expected), name, make)
        if self.args.update:
            with open(path, "w") as f:
                f.write("# SPDX-License-Identifier: MIT\n# name, verdict, rules; written by inspect.py --update, and read by a human\n")
                for name, rest in expected.items():
                    f.write("%s\t%s\n" % (name, rest))
        elif set(expected) - seen:
            self.attempt("inspect-%s.tsv" % part, self.fail, "nobody makes %s" % sorted(set(expected) - seen))

    @staticmethod
    def fail(why):
        raise Failed(why)

    def qcow2(self):
        self.expectations("qcow2", [(c.name, lambda f, c=c: f.write(c.bytes())) for c in qcow2_hostile.CASES.values()],
                          ["-f", "qcow2"])

    def samples(self):
        if not os.path.isdir(SAMPLES):
            print("the samples of other software are not at hand: %s" % os.path.normpath(SAMPLES))
            sys.exit(77)
        self.expectations("samples", list(sample_files()))

    def limg_files(self):
        """With data, a snapshot and a parent; what only the tool itself can make."""
        def tool(*args, data=b""):
            done = subprocess.run([self.tool, *args], cwd=self.folder, input=data, capture_output=True)
            if done.returncode:
                raise Failed("%s: %s" % (args, done.stderr.decode()))
        tool("create", "-q", "base.limg", "1M")
        tool("write", "-q", "base.limg", "--offset", "0", data=b"data" * 5000)
        tool("snapshot", "create", "-q", "base.limg@one")
        tool("write", "-q", "base.limg", "--offset", "512K", data=b"more" * 5000)
        tool("create", "-q", "-b", "base.limg", "over.limg")
        files = []
        for name in ("base.limg", "over.limg"):
            with open(os.path.join(self.folder, name), "rb") as f:
                files.append((name, f.read()))
        return files

    def mutate(self):
        rng = random.Random(self.args.seed)
        pool = [(c.name, c.bytes()) for c in hostile_files.CASES.values()]
        pool += [(c.name, c.bytes()) for c in qcow2_hostile.CASES.values() if c.name.startswith(("whole", "snap", "bitmap", "ext"))]
        pool = [p for p in pool if 0 < len(p[1]) <= 8 << 20] + self.limg_files() * 10
        for i in range(self.args.count):
            name, data = rng.choice(pool)
            self.attempt("%s, mutation %d of seed %d" % (name, i, self.args.seed), self.inspect, damage(rng, data))

    def table(self):
        with open(os.path.join(top, "format-spec", "inspect.md")) as f:
            text = f.read()
        if hostile_files.table() not in text:
            self.attempt("format-spec/inspect.md", self.fail,
                         "its table is not that of tests/images/gen/hostile_files.py --table")
        rules = {}
        for line in text.split("\n"):
            if line.startswith("| `"):
                cells = [c.strip() for c in line.strip("|").split("|")]
                rules[cells[0].strip("`")] = cells[1]
        rc, out, err, _ = run([self.tool, "inspect", "--rules", "--json"], self.folder)
        known = {r["id"]: r["severity"] for r in json.loads(out)["rules"]}
        if rules != known:
            self.attempt("format-spec/inspect.md", self.fail, "rules that differ: %s" % sorted(
                set(rules.items()) ^ set(known.items())))
        self.done += 1


def damage(rng, data):
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # headers and tails are where meaning is
        at = rng.choice((rng.randrange(min(len(b), 1024)), rng.randrange(len(b)), len(b) - 1 - rng.randrange(min(len(b), 1536))))
        n = rng.choice((1, 1, 2, 4, 8))
        value = rng.choice((b"\0" * n, b"\xff" * n, rng.randbytes(n), (1 << rng.randrange(8 * n)).to_bytes(n, "big")))
        b[at:at + n] = value[:max(0, min(n, len(b) - at))]
    if rng.random() < 0.1:
        del b[rng.randrange(len(b)):]
    return bytes(b)


def sample_files():
    unpack = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    for folder, folders, names in os.walk(SAMPLES):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith((".md", ".tsv", ".py")):
                continue

            def load(out, path=path, opener=unpack.get(os.path.splitext(name)[1], open)):
                # in pieces, and holes stay holes: what this process holds would be counted as the tool's
                with opener(path, "rb") as f:
                    for piece in iter(lambda: f.read(1 << 16), b""):
                        if piece.count(0) == len(piece):
                            out.seek(len(piece), os.SEEK_CUR)
                        else:
                            out.write(piece)
                out.truncate()
            yield os.path.relpath(path, SAMPLES), load


def main():
    p = argparse.ArgumentParser()
    p.add_argument("tool")
    p.add_argument("part", nargs="+", choices=["files", "qcow2", "samples", "mutate", "table"])
    p.add_argument("--sanitized", action="store_true", help="memory is not measured")
    p.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--update", action="store_true")
    args = p.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="inspect-") as folder:
        inspector = Inspector(args, folder)
        for part in args.part:
            getattr(inspector, part)()
    print("%d verdicts, %d failed%s" % (inspector.done, inspector.failed,
                                        ", seed %d" % args.seed if "mutate" in args.part else ""))
    return 1 if inspector.failed else 0


if __name__ == "__main__":
    sys.exit(main())
