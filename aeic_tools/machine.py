"""What the machine says about itself, for the records of measurements."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor if the system gives it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
