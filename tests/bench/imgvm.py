#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What imgvm costs, on this machine's KVM, with the boot sector of tests/e2e as guest. Prints what it saw, never judges.

  imgvm.py [--quick] [--dir DIR]... [--imgvm PROGRAM] [--imgtool PROGRAM]

restore     from main() to the guest's first byte of output: a guest that prints without pause, resumed from a snapshot
memory      resident memory of the process that is no guest RAM, in KiB: all of it, and what no other process shares
snapshot    how long the guest stands still, and the whole: with 128 MiB touched since the start, and again with little
revert      in place, of the running machine
disk        sequential reads and writes of 32 KiB by INT 13h; a real-mode guest without a cache, and SeaBIOS polling
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "e2e"))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dir", action="append")
    parser.add_argument("--imgvm", default=os.path.join(TOP, "build", "release", "imgvm"))
    parser.add_argument("--imgtool", default=os.path.join(TOP, "build", "release", "imgtool"))
    return parser.parse_args()


args = arguments()
os.environ["IMGVM"], os.environ["IMGTOOL"] = os.path.abspath(args.imgvm), os.path.abspath(args.imgtool)
from machine import IMGVM, Lab, Machine, Skipped, need_kvm    # noqa: E402  they look at the environment
from guests import HOLE_BYTES, PATTERN_SECTORS, SECTOR    # noqa: E402

TIMES = 5 if args.quick else 20


def row(name, values, unit, note=""):
    """median, least, most"""
    text = "%.2f" if max(values) < 100 else "%.0f"
    print("%-42s %9s %9s %9s %-6s %s" % (name, text % statistics.median(values), text % min(values),
                                         text % max(values), unit, note), flush=True)


def event(machine, name):
    """The next event of that name on the output of imgvm run --json."""
    for line in machine.stdout:
        found = json.loads(line)
        if found["event"] == name:
            return found
    raise RuntimeError("imgvm ended without %s: %s" % (name, machine.stderr.read().decode()))


def beside_guest_ram(pid, image):
    """-> KiB resident, and KiB of it that are this process's alone; guest RAM is what is mapped from the image or is
    left out of core dumps and written"""
    resident = own = 0
    fields, name = {}, ""
    with open("/proc/%d/smaps" % pid, encoding="ascii") as file:
        for line in file:
            word = line.split()[0]
            if not word.endswith(":"):
                fields, name = {}, line.split()[-1]
            elif word == "VmFlags:":
                if not name.startswith(image) and not ("dd" in line.split() and "ac" in line.split()):
                    resident += fields["Rss:"]
                    own += fields["Private_Clean:"] + fields["Private_Dirty:"]
            else:
                fields[word] = int(line.split()[1])
    return resident, own


def restore(image, options, name):
    first, memory, own = [], [], []
    for _ in range(TIMES):
        with subprocess.Popen([IMGVM, "run", "--json", *options, image + "@flood"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as machine:
            first.append(event(machine, "first_output")["ms"])
            time.sleep(.05)
            sizes = beside_guest_ram(machine.pid, image)
            memory.append(sizes[0])
            own.append(sizes[1])
            machine.kill()
    row("restore to first output, " + name, first, "ms", "since main(), %d times" % TIMES)
    row("memory beside guest RAM, " + name, memory, "KiB", "resident")
    row("", own, "KiB", "not shared with others")


def measure(folder):
    lab = Lab(folder)
    image = lab.boot_image()
    pause, total, size, again, again_total, back = [], [], [], [], [], []
    with Machine(image) as machine:
        machine.expect("^T00000002")
        cold = beside_guest_ram(machine.proc.pid, image)
        machine.do("f", "^F00000010")
        machine.control("snapshot", snapshot="flood")
        machine.do("s", "^T")
        for number in range(2 if args.quick else 5):
            machine.do("m", "TOUCHED ")
            seen = json.loads(machine.control("snapshot", "--json", snapshot="big%d" % number).stdout)
            pause.append(seen["pause_ms"])
            total.append(seen["total_ms"])
            size.append(seen["ram_bytes"] / (1 << 20))
            seen = json.loads(machine.control("snapshot", "--json", snapshot="small%d" % number).stdout)
            again.append(seen["pause_ms"])
            again_total.append(seen["total_ms"])
            back.append(json.loads(machine.control("revert", "--json", snapshot="big0").stdout)["total_ms"])
        read, written = [], []
        for _ in range(3):
            for command, wanted, bytes_, times in (("h", "READ ", HOLE_BYTES, read),
                                                   ("w", "WROTE ", PATTERN_SECTORS * SECTOR, written)):
                start = time.monotonic()
                machine.do(command, wanted)
                times.append(bytes_ / (time.monotonic() - start) / (1 << 20))
        machine.quit()
    restore(image, ["--revert"], "limg")
    restore(image, ["--transient"], "--transient")
    row("memory beside guest RAM, started cold", [cold[0]], "KiB", "resident")
    row("", [cold[1]], "KiB", "not shared with others")
    row("snapshot, 128 MiB touched: pause", pause, "ms")
    row("  whole", total, "ms")
    row("  RAM written", size, "MiB")
    row("snapshot right after it: pause", again, "ms")
    row("  whole", again_total, "ms")
    row("live revert", back, "ms")
    row("disk, real mode: read", read, "MiB/s")
    row("disk, real mode: write", written, "MiB/s", "each write is made durable: SeaBIOS knows no flush")


def main():
    try:
        need_kvm()
    except Skipped as reason:
        print("imgvm: not measured:", reason)
        return
    for base in args.dir or ["/dev/shm", "/var/tmp"]:
        with tempfile.TemporaryDirectory(prefix="imgvm-bench.", dir=base) as folder:
            os.environ["XDG_RUNTIME_DIR"] = folder
            print("%-42s %9s %9s %9s" % ("imgvm, image in " + base, "median", "least", "most"))
            measure(folder)


main()
