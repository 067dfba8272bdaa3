#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Runs crash_repair on every generated image that a repair mends: crash_repair.py PROGRAM"""

import os
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "..", "images", "gen"))

import qcow2_hostile  # noqa: E402

with tempfile.TemporaryDirectory(prefix="repair-") as folder:
    names = []
    for case in qcow2_hostile.CASES.values():
        if case.mended and case.opens:
            names.append(os.path.join(folder, case.name + ".qcow2"))
            with open(names[-1], "wb") as f:
                f.write(case.bytes())
    sys.exit(subprocess.run([os.path.abspath(sys.argv[1]), *names]).returncode)
