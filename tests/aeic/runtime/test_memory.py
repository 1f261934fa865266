"""The shared arena holds what its largest run needs, not the sum over all runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from aeic.runtime import memory
from tests.support.roots import ROOT

GROWING = """
import re, sys
from pathlib import Path
import numpy as np, onnxruntime
from aeic.runtime import memory
if sys.argv[1] == "separate":
    memory._SETTINGS = {"arena_extend_strategy": 1}
def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
path = Path("models/aeic-se-nano/analysis.onnx")
session = onnxruntime.InferenceSession(str(path), memory.session_options(1), providers=["CPUExecutionProvider"])
first = peak()
for side in (256, 320, 384, 448, 512):
    session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, side, side), np.float32)})
print((peak() - first) / 512**2)
"""


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of the runs that emptied the arena, in a process that has run nothing yet."""
    monkeypatch.setattr(memory, "_kept", memory._Kept())
    return []


def test_only_a_larger_run_empties_the_arena_first(emptied: list[Any]) -> None:
    for needed in (100, 100, 40):
        memory.prepare(needed, emptied.append)
    assert not emptied
    memory.prepare(101, emptied.append)
    assert len(emptied) == 1
    assert emptied[0].get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    memory.prepare(101, emptied.append)
    assert len(emptied) == 1


def test_an_empty_arena_is_not_emptied_again(emptied: list[Any]) -> None:
    memory.prepare(100, emptied.append)
    memory.shrinking()
    memory.prepare(200, emptied.append)
    assert not emptied


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_runs_that_grow_reuse_the_same_pages() -> None:
    """Where every block has a region of its own, each size adds to the ones before it."""
    bytes_per_pixel = {}
    for arena in ("shared", "separate"):
        command = [sys.executable, "-c", GROWING, arena]
        answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        bytes_per_pixel[arena] = float(answer.stdout)
    print(bytes_per_pixel)
    assert bytes_per_pixel["shared"] < 300 < bytes_per_pixel["separate"]
