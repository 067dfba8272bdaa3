#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Workloads B1 to B13 against qemu-img, in pairs in turn (ours, theirs, theirs, ours, ...) in one run on one machine.

Absolute times on a busy machine prove nothing, so each row is the ratio of two neighbours in time: the median of the pairs
after a warm-up, with the smallest and the largest. A ratio above 1 is in our favour. The processor time of both (median,
user and system, the whole program) stands beside it: it hardly depends on what else the machine does. The harness never judges: it prints
what it saw, with the commit, the machine and the versions.

  bench.py [--quick] [--realtime] [--pairs N] [--dir DIR]... [--image RAW] [--imgtool PROGRAM] [--output FILE] [B1 ...]

B1 to B10 are limg against qcow2 by qemu-img. B11 is B2, B3, B6, B7 and B8 again with our own qcow2 in the place of limg, and B12
is snapshots of qcow2: there both sides have the same format, and the difference is the program. B13 reads and writes the formats of other hosts.

--realtime gives both sides of the conversions a real-time priority (chrt, as root), so that other work of the machine takes no processor
from them. Without it a busy machine favours the side that sleeps more often.

Folders: /dev/shm (no disk in the way) and one on disk. Each run starts with sync on disk, and ends with its output removed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
GIB = 1 << 30
# Visits every 4 KiB block of an image of a power-of-two size once, far from the one before: the multiplier is odd and near the
# golden ratio. Both sides get the same order; qemu-img bench has no random one.
STRIDE = 0.6180339887
STEP_MAX = 523777 * 4096  # qemu-img takes no step of 2 GiB; odd, and no multiple of 5, so that it fits 100 GiB too


def scattered_step(size):
    return min((int(size // 4096 * STRIDE) | 1) * 4096, STEP_MAX)


class Failed(Exception):
    pass


def peak_kib(command):
    """By a small program in between: what is started from here begins with the peak of this interpreter."""
    with tempfile.NamedTemporaryFile("r") as log:
        run(["/usr/bin/time", "-q", "-f", "%M", "-o", log.name] + command)
        return int(log.read().split()[-1])


def run(command, quiet=True, env=None):
    """Runs a command. -> (seconds, peak KiB but at least that of this interpreter, output). run.cpu is the processor time of the last one."""
    if run.realtime:
        command = ["chrt", "-r", "1"] + command
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    run.cpu = usage.ru_utime + usage.ru_stime
    if process.returncode != 0:
        raise Failed("%s: exit %d: %s" % (" ".join(command), process.returncode, output.strip()[-400:]))
    if not quiet:
        print(output)
    return seconds, usage.ru_maxrss, output


def traced(command, calls):
    """Runs a command under strace. -> {call: [number, sum of positive results]}"""
    with tempfile.NamedTemporaryFile("r") as log:
        run(["strace", "-f", "-qq", "-o", log.name, "-e", "trace=" + ",".join(calls), "-e", "signal=none"] + command)
        seen = {call: [0, 0] for call in calls}
        for line in log:
            match = re.search(r"\b(\w+)\(.*= (-?\d+)|<\.\.\. (\w+) resumed.*= (-?\d+)", line)
            if match:
                call, result = match.group(1) or match.group(3), int(match.group(2) or match.group(4))
                if call in seen:
                    seen[call][0] += 1
                    seen[call][1] += max(result, 0)
        return seen


WRITES = ["write", "pwrite64", "pwritev", "pwritev2"]
SYNCS = ["fsync", "fdatasync", "sync_file_range", "syncfs"]


run.cpu = 0.0
run.realtime = False


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.dir = tempfile.mkdtemp(prefix="libimg-bench.", dir=folder)
        self.on_disk = not folder.startswith("/dev/shm")
        self.where = "disk" if self.on_disk else "RAM"
        self.rows = []
        self.pairs = args.pairs
        self.count = 50000 if args.quick else 100000
        self.mapped = GIB // 2 if args.quick else GIB
        self.raw = os.path.join(self.dir, "src.raw")
        self.format = "limg"  # of our side
        self.part_of = None  # the workload that the present one is run for, its target

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def mine(self, name):
        """Our image; theirs is always NAME.qcow2."""
        return "%s-ours.%s" % (name, self.format)

    def remove(self, *names):
        for name in names:
            try:
                os.unlink(self.path(name))
            except FileNotFoundError:
                pass

    def imgtool(self, *words):
        return run([self.args.imgtool] + list(words))

    def qemu(self, *words):
        return run(["qemu-img"] + list(words))

    def need_raw(self):
        if not os.path.exists(self.raw):
            run(["cp", "--sparse=always", self.args.image, self.raw])

    def settle(self):
        if self.on_disk:
            os.sync()

    # -- pairs ----------------------------------------------------------------------------------------------------------

    def pair(self, work, label, ours, theirs, peer, unit="s", target="", before=None, note="", digits=2):
        """ours() and theirs() return seconds (unit "s") or a rate per second (unit "/s")."""
        got = []
        for i in range(self.pairs + 1):
            values = {}
            for side in (ours, theirs) if i % 2 == 0 else (theirs, ours):
                if before:
                    before()
                self.settle()
                values[side] = side(), run.cpu
            if i > 0:  # the first is the warm-up
                got.append(values[ours] + values[theirs])
        ratios = [(b / a if unit == "s" else a / b) for a, _, b, _ in got]
        row = {
            "work": work, "label": label, "where": self.where, "peer": peer, "unit": unit, "pairs": len(got),
            "ours": statistics.median(x[0] for x in got), "theirs": statistics.median(x[2] for x in got),
            "cpu": "%.2f s, %.2f s" % (statistics.median(x[1] for x in got), statistics.median(x[3] for x in got)),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "target": target,
            "note": note() if callable(note) else note, "digits": digits,
        }
        self.add(row)

    def fact(self, work, label, ours, theirs, target="", note=""):
        self.add({"work": work, "label": label, "where": self.where, "fact": True, "ours": ours, "theirs": theirs,
                  "target": target, "note": note})

    def add(self, row):
        if self.part_of:
            row["label"] = row["work"] + ": " + row["label"]
            row["work"], row["target"] = self.part_of[0], row["target"] and self.part_of[1]
        self.rows.append(row)
        print(show(row), flush=True)

    # -- conversions ----------------------------------------------------------------------------------------------------

    def convert_ours(self, src, dst, *options):
        self.remove(dst)
        return self.imgtool("convert", "-q", *options, self.path(src), self.path(dst))[0]

    def convert_theirs(self, src, dst, *options):
        self.remove(dst)
        return self.qemu("convert", *options, self.path(src), self.path(dst))[0]

    def floor(self, mode):
        self.remove("floor.out")
        seconds = run([self.args.floor, mode, self.raw, self.path("floor.out"), "2"])[0]
        self.remove("floor.out")
        return seconds

    def sizes(self, ours, theirs):
        return "%.0f MB against %.0f MB" % (allocated(self.path(ours)) / 1e6, allocated(self.path(theirs)) / 1e6)

    def b1(self):
        self.need_raw()
        to_ours = lambda: self.convert_ours("src.raw", "a.limg", "-f", "raw", "-O", "limg")
        self.pair("B1", "raw to limg", to_ours,
                  lambda: self.convert_theirs("src.raw", "a.qcow2", "-f", "raw", "-O", "qcow2"),
                  "qemu-img, qcow2", target="1.3", note=lambda: self.sizes("a.limg", "a.qcow2"))
        if self.on_disk:  # ours is on stable storage when it returns; qemu-img's default is not
            self.pair("B1", "raw to limg, both synced", to_ours,
                      lambda: self.convert_theirs("src.raw", "a.qcow2", "-t", "writeback", "-f", "raw", "-O", "qcow2"),
                      "qemu-img -t writeback")
        self.pair("B1", "raw to limg", to_ours, lambda: self.floor("copy"), "floor: 2 threads pread/pwrite")
        self.pair("B1", "raw to limg", to_ours, self.cp, "cp --sparse=always --reflink=never")
        self.remove("a.limg", "a.qcow2")

    def cp(self):
        self.remove("cp.raw")
        seconds = run(["cp", "--sparse=always", "--reflink=never", self.raw, self.path("cp.raw")])[0]
        self.remove("cp.raw")
        return seconds

    def b2(self):
        self.need_raw()
        to_ours = lambda: self.convert_ours("src.raw", self.mine("z"), "-f", "raw", "-O", self.format, "-c", "zstd")
        self.pair("B2", "raw to %s, zstd" % self.format, to_ours,
                  lambda: self.convert_theirs("src.raw", "z.qcow2", "-c", "-m", "16", "-W", "-o",
                                              "compression_type=zstd", "-f", "raw", "-O", "qcow2"),
                  "qemu-img -c -m 16 -W, zstd", target="2.5, no larger", note=lambda: self.sizes(self.mine("z"), "z.qcow2"))
        self.pair("B2", "raw to %s, zstd" % self.format, to_ours, lambda: self.floor("zstd"), "floor: 2 threads zstd -1, 128 KiB")
        if shutil.which("zstd"):
            self.pair("B2", "raw to %s, zstd" % self.format, to_ours, self.zstd, "zstd -T2 -1")
        self.remove(self.mine("z"), "z.qcow2")

    def zstd(self):
        self.remove("src.zst")
        seconds = run(["zstd", "-q", "-T2", "-1", self.raw, "-o", self.path("src.zst")])[0]
        self.remove("src.zst")
        return seconds

    def b3(self):
        self.need_raw()
        for label, ours, theirs, target in ((self.format + " to raw", [], [], "1.3"),
                                            ("zstd %s to raw" % self.format, ["-c", "zstd"],
                                             ["-c", "-m", "16", "-W", "-o", "compression_type=zstd"], "2")):
            self.convert_ours("src.raw", self.mine("b"), "-f", "raw", "-O", self.format, *ours)
            self.convert_theirs("src.raw", "b.qcow2", "-f", "raw", "-O", "qcow2", *theirs)
            back_ours = lambda: self.convert_ours(self.mine("b"), "b1.raw", "-O", "raw")
            self.pair("B3", label, back_ours,
                      lambda: self.convert_theirs("b.qcow2", "b2.raw", "-m", "16", "-W", "-f", "qcow2", "-O", "raw"),
                      "qemu-img -m 16 -W", target=target)
            if self.on_disk:
                self.pair("B3", label + ", both synced", back_ours,
                          lambda: self.convert_theirs("b.qcow2", "b2.raw", "-t", "writeback", "-m", "16", "-W", "-f",
                                                      "qcow2", "-O", "raw"), "qemu-img -t writeback")
            run(["cmp", self.raw, self.path("b1.raw")])  # a fast wrong answer is no answer
            self.remove(self.mine("b"), "b.qcow2", "b1.raw", "b2.raw")

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def b4(self):
        sizes = [1, 8] if self.args.quick else [1, 64]
        for gib in sizes:
            self.remove("s.limg", "s.qcow2")
            self.imgtool("create", "-q", "-f", "limg", self.path("s.limg"), "%dG" % gib)
            run([self.args.fill, self.path("s.limg"), str(gib * GIB)])
            self.qemu("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", self.path("s.qcow2"), "%dG" % gib)
            for verb, ours, theirs in (("create", ["snapshot", "create"], "-c"), ("revert", ["revert"], "-a"),
                                       ("delete", ["snapshot", "delete"], "-d")):
                self.b4_verb(gib, verb, ours, theirs)
        self.remove("s.limg", "s.qcow2")

    def b4_verb(self, gib, verb, ours, theirs):
        self.snapshot_verb("B4", gib, verb, ours, theirs, self.path("s.limg"), self.path("s.qcow2"),
                           written_target="under 131072")

    def snapshot_verb(self, work, gib, verb, ours, theirs, image, qcow2, target="", written_target="", with_peak=False):
        undo_create = verb == "create"
        need_create = verb in ("revert", "delete")

        def timed(command, prepare, undo):
            def once():
                if prepare:
                    prepare()
                self.settle()
                seconds, cpu = run(command)[0], run.cpu
                if undo:
                    undo()
                run.cpu = cpu
                return seconds
            return once

        def make(side):
            return lambda: (self.imgtool("snapshot", "create", "-q", image + "@s") if side == "ours" else
                            self.qemu("snapshot", "-c", "s", qcow2))

        def drop(side):
            return lambda: (self.imgtool("snapshot", "delete", "-q", image + "@s") if side == "ours" else
                            self.qemu("snapshot", "-d", "s", qcow2))

        our_command = [self.args.imgtool] + ours + ["-q", image + "@s"]
        their_command = ["qemu-img", "snapshot", theirs, "s", qcow2]
        prepare = make if need_create else lambda side: None
        undo = drop if undo_create or verb == "revert" else lambda side: None
        self.pair(work, "snapshot %s, %d GiB mapped" % (verb, gib), timed(our_command, prepare("ours"), undo("ours")),
                  timed(their_command, prepare("theirs"), undo("theirs")), "qemu-img snapshot", target=target, digits=4)
        written, peaks = [], []
        for side, command in (("ours", our_command), ("theirs", their_command)):
            if prepare(side):
                prepare(side)()
            seen = traced(command, WRITES)
            written.append(sum(seen[call][1] for call in WRITES))
            if undo(side):
                undo(side)()
        self.fact(work, "bytes written by snapshot %s, %d GiB mapped" % (verb, gib), "%d" % written[0], "%d" % written[1],
                  target=written_target)
        if not with_peak:
            return
        for side, command in (("ours", our_command), ("theirs", their_command)):
            if prepare(side):
                prepare(side)()
            peaks.append("%.0f MiB" % (run(command)[1] / 1024))
            if undo(side):
                undo(side)()
        self.fact(work, "peak memory, snapshot %s, %d GiB mapped" % (verb, gib), *peaks)

    def b12(self):
        """Mapped clusters whose data are holes: neither side looks at data."""
        for gib in [8, 64] if self.args.quick else [64, 256]:
            self.remove("so.qcow2", "st.qcow2")
            for name in ("so.qcow2", "st.qcow2"):
                self.qemu("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", self.path(name), "%dG" % gib)
            for verb, ours, theirs in (("create", ["snapshot", "create"], "-c"), ("revert", ["revert"], "-a"),
                                       ("delete", ["snapshot", "delete"], "-d")):
                self.snapshot_verb("B12", gib, verb, ours, theirs, self.path("so.qcow2"), self.path("st.qcow2"),
                                   target="2", with_peak=True)
            for name in ("so.qcow2", "st.qcow2"):
                self.qemu("check", "-q", self.path(name))
        self.remove("so.qcow2", "st.qcow2")

    # -- small I/O ------------------------------------------------------------------------------------------------------

    def full_images(self):
        """Both formats with the same incompressible data in every block."""
        self.remove("io.raw", self.mine("io"), "io.qcow2")
        run(["dd", "if=/dev/urandom", "of=" + self.path("io.raw"), "bs=1M", "count=%d" % (self.mapped >> 20), "status=none"])
        self.convert_ours("io.raw", self.mine("io"), "-f", "raw", "-O", self.format)
        self.convert_theirs("io.raw", "io.qcow2", "-f", "raw", "-O", "qcow2")
        self.remove("io.raw")

    def empty_images(self):
        self.remove(self.mine("io"), "io.qcow2")
        self.imgtool("create", "-q", "-f", self.format, self.path(self.mine("io")), str(self.mapped))
        self.qemu("create", "-q", "-f", "qcow2", self.path("io.qcow2"), str(self.mapped))

    def bench_ours(self, *options, count=None, depth=None):
        words = ["bench", "--json", "-s", "4096", "-c", str(count or self.count), "--step", str(scattered_step(self.mapped)),
                 "-d", str(depth or self.args.depth), *options, self.path(self.mine("io"))]
        result = json.loads(self.imgtool(*words)[2])
        return float(result["iops"])

    def bench_theirs(self, *options, count=None, depth=64):
        words = ["bench", "-f", "qcow2", "-s", "4096", "-c", str(count or self.count), "-S",
                 str(scattered_step(self.mapped)), "-d", str(depth), *options, self.path("io.qcow2")]
        output = self.qemu(*words)[2]
        return (count or self.count) / float(re.search(r"completed in ([\d.]+) seconds", output).group(1))

    def io_pair(self, work, label, ours, theirs, target="", before=None, count=None):
        """Against qemu-img as it comes (64 requests in flight), with io_uring, and both with one request at a time."""
        def against(peer, our_options, our_depth, their_options, their_depth, goal):
            try:
                self.pair(work, label, lambda: self.bench_ours(*ours, *our_options, count=count, depth=our_depth),
                          lambda: self.bench_theirs(*theirs, *their_options, count=count, depth=their_depth), peer,
                          unit="/s", target=goal, before=before)
            except Failed as error:
                print("left out: %s: %s" % (peer, error), file=sys.stderr)
        against("qemu-img bench -d 64", [], None, [], 64, target)
        if not self.args.quick:
            against("qemu-img bench -d 64 -i io_uring", [], None, ["-i", "io_uring"], 64, "")
            against("qemu-img bench -d 1; ours -d 1", [], 1, [], 1, "")

    def b5(self):
        self.full_images()
        turn = [0]

        def fresh():
            turn[0] += 1
            if turn[0] > 1:
                self.imgtool("snapshot", "delete", "-q", self.path(self.mine("io")) + "@s")
                self.qemu("snapshot", "-d", "s", self.path("io.qcow2"))
            self.imgtool("snapshot", "create", "-q", self.path(self.mine("io")) + "@s")
            self.qemu("snapshot", "-c", "s", self.path("io.qcow2"))
        # Each write meets a 64 KiB cluster that no write met since the snapshot.
        self.io_pair("B5", "first 4 KiB write after a snapshot", ["-w"], ["-w"], target="20", before=fresh,
                     count=self.mapped // 65536 // 4)

    def b6(self):
        self.io_pair("B6", "4 KiB scattered writes to new space", ["-w"], ["-w"], target="3", before=self.empty_images,
                     count=self.mapped // 65536)

    def b7(self):
        self.full_images()
        self.io_pair("B7", "4 KiB scattered overwrites", ["-w"], ["-w"], target="1.5")

    def b8(self):
        self.full_images()
        self.io_pair("B8", "4 KiB scattered reads, cached", ["-r"], [], target="3")

    def b9(self):
        self.full_images()
        count = 500 if self.args.quick else 2000
        one = ["-w", "--flush-interval", "1"]
        self.pair("B9", "4 KiB write and flush", lambda: self.bench_ours(*one, count=count, depth=1),
                  lambda: self.bench_theirs("-w", "--flush-interval=1", count=count, depth=1), "qemu-img bench -d 1",
                  unit="/s", target="1.2")
        commands = ([self.args.imgtool, "bench", "-w", "-s", "4096", "-c", "200", "--step", "1048576", "-d", "1",
                     "--flush-interval", "1", self.path(self.mine("io"))],
                    ["qemu-img", "bench", "-w", "-f", "qcow2", "-s", "4096", "-c", "200", "-S", "1048576", "-d", "1",
                     "--flush-interval=1", self.path("io.qcow2")])
        counts = [sum(seen[call][0] for call in SYNCS) for seen in (traced(c, SYNCS) for c in commands)]
        self.fact("B9", "syncs of 200 times write and flush", str(counts[0]), str(counts[1]), target="1 for each flush")

    def b10(self):
        self.need_raw()
        imgtool, qemu = [self.args.imgtool, "convert", "-q"], ["qemu-img", "convert"]
        peak = lambda command: "%.0f MiB" % (peak_kib(command) / 1024)
        for label, ours, theirs in (
                ("raw to zstd", ["-c", "zstd", "-O", "limg"], ["-c", "-m", "16", "-W", "-o", "compression_type=zstd", "-O", "qcow2"]),
                ("raw to plain", ["-O", "limg"], ["-O", "qcow2"])):
            self.remove("m.limg", "m.qcow2")
            self.fact("B10", "peak memory, convert " + label, peak(imgtool + ["-f", "raw", *ours, self.raw, self.path("m.limg")]),
                      peak(qemu + ["-f", "raw", *theirs, self.raw, self.path("m.qcow2")]), target="64 MiB")
        self.remove("m.raw")
        a = peak(imgtool + ["-O", "raw", self.path("m.limg"), self.path("m.raw")])
        self.remove("m.raw")
        b = peak(qemu + ["-f", "qcow2", "-O", "raw", self.path("m.qcow2"), self.path("m.raw")])
        self.fact("B10", "peak memory, convert to raw", a, b, target="64 MiB")
        self.remove("m.raw", "m.limg", "m.qcow2")
        size = 100 * GIB
        count = str(100000 if self.args.quick else 400000)
        self.imgtool("create", "-q", "-f", "limg", self.path("m.limg"), str(size))
        self.qemu("create", "-q", "-f", "qcow2", self.path("m.qcow2"), str(size))
        step = str(scattered_step(size))
        a = peak([self.args.imgtool, "bench", "-w", "-s", "4096", "-c", count, "--step", step, "-d", str(self.args.depth), self.path("m.limg")])
        b = peak(["qemu-img", "bench", "-w", "-f", "qcow2", "-s", "4096", "-c", str(int(count) // 20), "-S", step, self.path("m.qcow2")])
        self.fact("B10", "peak memory, %s scattered 4 KiB writes over 100 GiB" % count, a, b, target="128 MiB",
                  note="theirs: a twentieth of the writes")
        self.remove("m.limg", "m.qcow2")

    def b11(self):
        self.format = "qcow2"
        try:
            for work, goal in ((self.b2, "no slower"), (self.b3, "1.5"), (self.b6, "no slower"), (self.b7, "no slower"),
                               (self.b8, "1.5")):
                self.part_of = "B11", goal
                work()
        finally:
            self.format, self.part_of = "limg", None

    def b13(self):
        """The formats of other hosts: from raw, and to raw from one image for both, which qemu-img made (else we)."""
        self.need_raw()
        for name, peers, ours, theirs in FOREIGN:
            label = name + (", " + ours if ours else "")
            mine, peer = self.path("f-ours." + name), self.path("f-theirs." + name)
            our_options, their_options = (["-o", o] if o else [] for o in (ours, theirs))

            def write_ours(name=name, options=our_options, path=mine):
                self.remove_all("f-ours")
                return self.imgtool("convert", "-q", "-f", "raw", "-O", name, *options, self.raw, path)

            def write_theirs(peers=peers, options=their_options, path=peer):
                self.remove_all("f-theirs")
                return self.qemu("convert", "-f", "raw", "-O", peers, *options, self.raw, path)

            def read_ours(path=peer):
                self.remove("back.raw")
                return self.imgtool("convert", "-q", "-O", "raw", path, self.path("back.raw"))

            def read_theirs(peers=peers, path=peer):
                self.remove("back2.raw")
                return self.qemu("convert", "-f", peers, "-O", "raw", path, self.path("back2.raw"))
            try:
                self.pair("B13", "raw to " + label, lambda: write_ours()[0], lambda: write_theirs()[0], "qemu-img",
                          target="2.5" if "stream" in ours else "1",
                          note=lambda: "%.0f MB against %.0f MB" % (self.all_bytes("f-ours"), self.all_bytes("f-theirs")))
                self.pair("B13", label + " to raw", lambda: read_ours()[0], lambda: read_theirs()[0], "qemu-img", target="1")
                run(["cmp", "-n", str(os.path.getsize(self.raw)), self.raw, self.path("back.raw")])
                self.remove("back.raw", "back2.raw")
                self.remove_all("f-ours")
                back, imgtool = self.path("back.raw"), [self.args.imgtool, "convert", "-q"]
                ours_most = max(peak_kib(imgtool + ["-f", "raw", "-O", name, *our_options, self.raw, mine]),
                                peak_kib(imgtool + ["-O", "raw", peer, back]))
                qemu = ["qemu-img", "convert"]
                theirs_most = max(peak_kib(qemu + ["-f", peers, "-O", "raw", peer, self.path("back2.raw")]),
                                  peak_kib(qemu + ["-f", "raw", "-O", peers, *their_options, self.raw, peer + ".again"]))
                peaks = [x / 1024 for x in (ours_most, theirs_most)]
                self.fact("B13", "peak memory, %s, both ways" % label, *("%.0f MiB" % x for x in peaks), target="64 MiB")
            except Failed as error:
                print("left out: %s: %s" % (label, error), file=sys.stderr)
            self.remove("back.raw", "back2.raw")
            self.remove_all("f-")

    def remove_all(self, start):
        self.remove(*[name for name in os.listdir(self.dir) if name.startswith(start)])

    def all_bytes(self, start):
        return sum(allocated(self.path(name)) for name in os.listdir(self.dir) if name.startswith(start)) / 1e6


# Our name, qemu-img's, and the options of each.
FOREIGN = (
    ("vdi", "vdi", "", ""),
    ("vhd", "vpc", "", "force_size=on"),
    ("vhdx", "vhdx", "", ""),
    ("vmdk", "vmdk", "", ""),
    ("vmdk", "vmdk", "subformat=streamOptimized", "subformat=streamOptimized"),
    ("parallels", "parallels", "", ""),
)


def allocated(path):
    return os.stat(path).st_blocks * 512


def amount(value, unit, digits):
    return "%.*f s" % (digits, value) if unit == "s" else "{:,.0f}/s".format(value)


def show(row):
    if row.get("fact"):
        cells = [row["work"], row["label"], row["where"], row["ours"], row["theirs"], "", "", row["target"], row["note"]]
    else:
        cells = [row["work"], row["label"] + ", against " + row["peer"], row["where"],
                 amount(row["ours"], row["unit"], row["digits"]), amount(row["theirs"], row["unit"], row["digits"]),
                 "%.2f (%.2f to %.2f)" % (row["ratio"], row["low"], row["high"]), row["cpu"], row["target"], row["note"]]
    return "| " + " | ".join(cells) + " |"


HEAD = "| | workload | in | ours | theirs | ratio (min to max) | processor time | target | |\n"
HEAD += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"


def first_line(*command):
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout.split("\n")[0]
    except OSError:
        return command[0] + ": missing"


def machine():
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return "%s, %d processors, %.0f GiB, Linux %s, load %.1f at the start" % (
        model, os.cpu_count(), memory, platform.release(), os.getloadavg()[0])


def heading(args):
    commit = first_line("git", "-C", TOP, "describe", "--always", "--dirty", "--abbrev=12")
    return "\n".join([
        "- commit %s, %s" % (commit, time.strftime("%Y-%m-%d", time.gmtime())),
        "- machine: " + machine(),
        "- %s; %s; %s" % (first_line(args.imgtool, "--version"), first_line("qemu-img", "--version"),
                          first_line("zstd", "--version").strip("* ")),
        "- image: %s, %d MB of data in %.0f GiB; %d pairs after a warm-up, medians; ratio above 1: ours is faster%s" % (
            os.path.basename(args.image), allocated(args.image) / 1e6, os.path.getsize(args.image) / GIB, args.pairs,
            "; both sides with a real-time priority" if args.realtime else ""),
    ])


def main():
    works = ["B%d" % i for i in range(1, 14)]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, smaller counts, memory only")
    parser.add_argument("--realtime", action="store_true", help="both sides with a real-time priority: as root, on a busy machine")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--dir", action="append", help="where the images are (default: /dev/shm and the temporary folder)")
    parser.add_argument("--image", required=True)
    parser.add_argument("--imgtool", default=os.path.join(TOP, "build/release/imgtool"))
    parser.add_argument("--depth", type=int, default=2, help="our threads in B5 to B8")
    parser.add_argument("--output", help="the table, in Markdown")
    parser.add_argument("--json", help="all rows")
    parser.add_argument("works", nargs="*", metavar="B1..B13")
    args = parser.parse_args()
    for work in args.works:
        if work not in works:
            parser.error("no workload named " + work)
    run.realtime = args.realtime
    args.pairs = args.pairs or (3 if args.quick else 5)
    args.floor = os.path.join(os.path.dirname(args.imgtool), "bench-floor")
    args.fill = os.path.join(os.path.dirname(args.imgtool), "bench-fill")
    folders = args.dir or (["/dev/shm"] if args.quick else ["/dev/shm", os.environ.get("TMPDIR", "/var/tmp")])

    text, rows, status = [heading(args), "", HEAD], [], 0
    print("\n".join(text), flush=True)
    for folder in folders:
        bench = Bench(args, folder)
        try:
            for work in args.works or works:
                try:
                    getattr(bench, work.lower())()
                except Failed as error:
                    status = 1
                    print("%s in %s could not be run: %s" % (work, bench.where, error), file=sys.stderr, flush=True)
        finally:
            bench.close()
        rows += bench.rows
    rows.sort(key=lambda row: works.index(row["work"]))
    text += [show(row) for row in rows]
    if args.output:
        with open(args.output, "w", encoding="utf-8") as f:
            f.write("\n".join(text) + "\n")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(rows, f, indent=1)
    return status


if __name__ == "__main__":
    sys.exit(main())
