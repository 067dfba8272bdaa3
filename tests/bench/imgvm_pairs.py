#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A machine's snapshot, rollback and resumption, imgvm beside QEMU: the same guest (the boot sector of tests/e2e), the same KVM, 256 MiB,
pairs in turn in one run. Prints what it saw, never judges.

  imgvm_pairs.py [--pairs N] [--touch] [--dir DIR] [--imgvm PROGRAM] [--imgtool PROGRAM]

snapshot    the guest stands still: imgvm's own figure; for QEMU the whole of savevm, during which it does
revert      imgvm revert, and loadvm, as a client waits for them
resume      from the start of the process to the guest's first byte of output: imgvm run --revert IMAGE@NAME, qemu -loadvm NAME
--touch: the guest writes 128 MiB before each snapshot
"""
import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "e2e"))
QEMU = "qemu-system-x86_64"
SERIAL_PORT = 0x3f8


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--touch", action="store_true")
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--imgvm", default=os.path.join(TOP, "build", "release", "imgvm"))
    parser.add_argument("--imgtool", default=os.path.join(TOP, "build", "release", "imgtool"))
    return parser.parse_args()


args = arguments()
os.environ["IMGVM"], os.environ["IMGTOOL"] = os.path.abspath(args.imgvm), os.path.abspath(args.imgtool)
from machine import IMGVM, Lab, Machine, Skipped, need_kvm    # noqa: E402  they look at the environment


class Qemu:
    """QEMU on a qcow2 image, its serial port on our pipe."""

    def __init__(self, folder, image, load=None):
        port = os.path.join(folder, "sercon-port")
        with open(port, "wb") as file:
            file.write(struct.pack("<Q", SERIAL_PORT))
        self.monitor = os.path.join(folder, "qmp.sock")
        if os.path.exists(self.monitor):
            os.unlink(self.monitor)
        command = [QEMU, "-accel", "kvm", "-m", "256", "-nodefaults", "-display", "none", "-serial", "stdio",
                   "-drive", "file=%s,if=virtio,format=qcow2" % image, "-device", "virtio-rng-pci",
                   "-fw_cfg", "name=etc/sercon-port,file=" + port, "-qmp", "unix:%s,server=on,wait=off" % self.monitor]
        started = time.monotonic()
        self.proc = subprocess.Popen(command + (["-loadvm", load] if load else []), stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.seen = b""
        if load:
            self.proc.stdout.read(1)
            self.first_ms = (time.monotonic() - started) * 1000

    def expect(self, text):
        while text not in self.seen:
            piece = self.proc.stdout.read(4096)
            if not piece:
                raise RuntimeError("QEMU ended; the guest printed %r" % self.seen[-200:])
            self.seen += piece

    def do(self, key, text):
        self.seen = b""
        self.proc.stdin.write(key)
        self.expect(text)

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.monitor)
        self.qmp = sock.makefile("rw")
        self.qmp.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments_):
        """-> ms that it took"""
        started = time.monotonic()
        self.qmp.write(json.dumps({"execute": command, "arguments": arguments_}) + "\n")
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline())
            if answer.get("error") or answer.get("return") not in (None, {}, ""):
                raise RuntimeError("%s: %r" % (command, answer))
            if "return" in answer:
                return (time.monotonic() - started) * 1000

    def monitor_command(self, line):
        return self.ask("human-monitor-command", **{"command-line": line})

    def end(self):
        self.proc.kill()
        self.proc.wait()


def row(name, ours, theirs):
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    print("%-34s %8.1f ms %8.1f ms   %.1f (%.1f to %.1f)" % (name, statistics.median(ours), statistics.median(theirs),
                                                          statistics.median(ratios), ratios[0], ratios[-1]), flush=True)


def resumed_ms(image, name):
    started = time.monotonic()
    with subprocess.Popen([IMGVM, "run", "--revert", image + "@" + name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, bufsize=0) as proc:
        proc.stdout.read(1)
        took = (time.monotonic() - started) * 1000
        proc.kill()
    return took


def measure(folder):
    lab = Lab(folder)
    limg, qcow2 = lab.boot_image(), lab.boot_image("qcow2")
    ours, theirs = ([], [], []), ([], [], [])
    with Machine(limg) as machine:
        qemu = Qemu(folder, qcow2)
        try:
            machine.expect("^T00000002")
            qemu.expect(b"T00000002")
            qemu.connect()
            for number in range(args.pairs + 1):    # the first one warms up
                name = "s%d" % number
                if args.touch:
                    machine.do("m", "TOUCHED ")
                    qemu.do(b"m", b"TOUCHED ")
                pause = json.loads(machine.control("snapshot", "--json", snapshot=name).stdout)["pause_ms"]
                saved = qemu.monitor_command("savevm " + name)
                back = json.loads(machine.control("revert", "--json", snapshot=name).stdout)["total_ms"]
                loaded = qemu.monitor_command("loadvm " + name)
                if number:
                    ours[0].append(pause)
                    theirs[0].append(saved)
                    ours[1].append(back)
                    theirs[1].append(loaded)
            # a guest that prints without pause
            machine.do("f", "^F00000010")
            machine.control("snapshot", snapshot="flood")
            qemu.do(b"f", b"F00000010")
            qemu.monitor_command("savevm flood")
            machine.quit()
        finally:
            qemu.end()
    for number in range(args.pairs + 1):
        took = resumed_ms(limg, "flood")
        other = Qemu(folder, qcow2, "flood")
        other.end()
        if number:
            ours[2].append(took)
            theirs[2].append(other.first_ms)
    for name, i in (("snapshot: the guest stands still", 0), ("revert of a running machine", 1),
                    ("resumption, process to output", 2)):
        row(name, ours[i], theirs[i])


def main():
    try:
        need_kvm()
    except Skipped as reason:
        print("imgvm: not measured:", reason)
        return
    with tempfile.TemporaryDirectory(prefix="imgvm-pairs.", dir=args.dir) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        print("%-34s %11s %11s   %s" % ("image in " + args.dir, "imgvm", "QEMU", "ratio"))
        measure(folder)


main()
