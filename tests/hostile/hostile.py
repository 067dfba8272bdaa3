#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Every hostile image of tests/images/gen: imgtool must end with a documented exit status, in time, in little memory, without a
sanitizer's complaint; a check must give the verdict that the case states. With qemu-img as the judge (--judge), the counts
of a check must equal its counts, and it must find nothing after a repair that we call complete.

hostile.py IMGTOOL [--judge] [--sanitized] [--only NAME...]"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "images", "gen"))

import qcow2_hostile  # noqa: E402

DOCUMENTED = {0, 2, 3, 4, 6}
SECONDS = 30
MEMORY = 256 << 20


class Failed(Exception):
    pass


def run(argv, cwd, limit=SECONDS):
    """Exit status, stdout, stderr, largest resident set."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    p = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    timer = threading.Timer(limit, p.kill)
    timer.start()
    _, status, usage = os.wait4(p.pid, 0)
    late = not timer.is_alive()
    timer.cancel()
    p.returncode = os.waitstatus_to_exitcode(status)
    out.seek(0)
    err.seek(0)
    text = out.read(), err.read().decode(errors="replace")
    if late:
        raise Failed("%s: not done after %d s" % (" ".join(argv), limit))
    if p.returncode < 0 or "Sanitizer" in text[1] or "runtime error" in text[1]:
        raise Failed("%s: %d: %s" % (" ".join(argv), p.returncode, text[1][:3000]))
    return p.returncode, text[0], text[1], usage.ru_maxrss << 10


class Tester:
    def __init__(self, tool, folder, judge):
        self.tool, self.folder, self.judge = tool, folder, judge
        self.memory = MEMORY

    def imgtool(self, *args):
        rc, out, err, memory = run([self.tool, *args], self.folder)
        if rc not in DOCUMENTED:
            raise Failed("imgtool %s: exit %d: %s" % (" ".join(args), rc, err))
        if rc != 0 and not err and "check" not in args:
            raise Failed("imgtool %s: exit %d without a word" % (" ".join(args), rc))
        if memory > self.memory:
            raise Failed("imgtool %s: %d MiB of memory" % (" ".join(args), memory >> 20))
        return rc, out, err

    def check(self, case, name):
        """Returns the JSON of a check, None where the image was refused."""
        rc, out, err = self.imgtool("check", "-f", "qcow2", "--json", name)
        if case.check is not None and rc != case.check:
            raise Failed("check: exit %d, not %d: %s %s" % (rc, case.check, out[:2000].decode(errors="replace"), err))
        return json.loads(out) if out else None

    def reads(self, case, name):
        self.imgtool("info", "--allow-refs=dir", name)
        if case.maps:
            self.imgtool("map", "-f", "qcow2", name)
        self.imgtool("snapshot", "list", name)
        rc, out, err = self.imgtool("read", "-f", "qcow2", name, "--length", "256k")
        if case.opens is not None and (rc == 0) != case.opens:
            raise Failed("read: exit %d: %s" % (rc, err))

    def qemu_check(self, name):
        rc, out, err, _ = run(["qemu-img", "check", "-f", "qcow2", "--output=json", name], self.folder)
        return rc, (json.loads(out) if out else None), err

    def compare(self, case, name, ours):
        rc, theirs, err = self.qemu_check(name)
        if theirs is None:
            raise Failed("qemu-img check: %d %s" % (rc, err))
        mine = ours["damage"], ours["leaks"]
        other = theirs.get("corruptions", 0), theirs.get("leaks", 0)
        if mine != other:
            raise Failed("damage and leaks: we find %s, qemu-img %s: %s %s" % (mine, other, ours["findings"], err))

    def repair(self, case, name):
        fixed = "fixed-" + name
        shutil.copy(os.path.join(self.folder, name), os.path.join(self.folder, fixed))
        before = self.imgtool("checksum", "-f", "qcow2", name)[1].split()[0] if case.opens else None
        rc, out, err = self.imgtool("check", "-f", "qcow2", "--repair", fixed)
        if (rc == 0) != case.mended:
            raise Failed("repair: exit %d: %s %s" % (rc, out[:2000].decode(errors="replace"), err))
        again, out, err = self.imgtool("check", "-f", "qcow2", fixed)
        if (again == 0) != case.mended:
            raise Failed("check after the repair: exit %d: %s %s" % (again, out[:2000].decode(errors="replace"), err))
        if case.opens and self.imgtool("checksum", "-f", "qcow2", fixed)[1].split()[0] != before:
            raise Failed("the repair changed the content")
        if self.judge and case.mended:
            rc, theirs, err = self.qemu_check(fixed)
            if rc != 0:
                raise Failed("qemu-img check after the repair: exit %d: %s %s" % (rc, theirs, err))
        os.unlink(os.path.join(self.folder, fixed))

    def case(self, case):
        name = case.name + ".qcow2"
        path = os.path.join(self.folder, name)
        with open(path, "wb") as f:
            f.write(case.bytes())
        ours = self.check(case, name)
        if not self.judge:
            self.reads(case, name)
        elif case.same:
            self.compare(case, name, ours)
        if case.mended is not None:
            self.repair(case, name)
        os.unlink(path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("tool")
    p.add_argument("--only", metavar="NAME", nargs="+", default=[])
    p.add_argument("--judge", action="store_true")
    p.add_argument("--sanitized", action="store_true", help="memory is not measured")
    args = p.parse_args()
    if args.judge and not shutil.which("qemu-img"):
        print("qemu-img is not installed: there is no judge")
        return 77
    failed = done = 0
    cases = [qcow2_hostile.CASES[n] for n in args.only] or list(qcow2_hostile.CASES.values())
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        tester = Tester(os.path.abspath(args.tool), folder, args.judge)
        if args.sanitized:
            tester.memory = 4 << 30
        for case in cases:
            if args.judge and not case.same and not case.mended:
                continue
            done += 1
            try:
                tester.case(case)
            except Failed as e:
                failed += 1
                print("%s: %s" % (case.name, e))
    print("%d images, %d failed" % (done, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
