"""The fuzz target in a process of its own: its peak of memory must not be that of the tests before it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.roots import ROOT


def test_two_seconds_of_fuzzing() -> None:
    command = [sys.executable, "-m", "tests.aeic.bitstream.fuzz_bitstream", "--seconds", "2", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
