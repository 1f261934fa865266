"""What this processor can do, read without loading a runtime."""

from __future__ import annotations

import functools
import os
from pathlib import Path

_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""The last one is Arm's."""


@functools.cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor supports bfloat16 natively. False if the system does not say so."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return not words.isdisjoint(_FLAGS)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
