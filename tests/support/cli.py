"""The command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def aeic(*arguments: str, seconds: float = 60.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``aeic ARGUMENTS``."""
    done = subprocess.run(
        [sys.executable, "-m", "aeic_tools.cli", *arguments], capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout, done.stderr
