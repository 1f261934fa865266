"""The choice between runtimes: the fastest that gives the same output, and the reference when in doubt."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aeic.runtime import processor
from aeic.runtime.fastest import Run, choose, decibels

SAMPLE = np.ones((1, 4), np.float32)
Load = Callable[[], Run]


def same(got: np.ndarray, want: np.ndarray) -> str | None:
    return None if decibels(got, want) > 40 else "another picture"


class Clock:
    """A clock that runtimes advance by the time they would take."""

    now = 0.0

    def runtime(self, seconds: float, factor: float = 1.0) -> Load:
        def run(x: np.ndarray) -> np.ndarray:
            self.now += seconds
            return x * np.float32(factor)

        return lambda: run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


def missing() -> Run:
    raise ImportError("not installed here")


def test_the_fastest_runtime_with_the_same_output_is_chosen(clock: Clock) -> None:
    candidates = {
        "reference": clock.runtime(0.010),
        "wrong": clock.runtime(0.001, 1.5),
        "quick": clock.runtime(0.004, 1.001),
        "missing": missing,
    }
    choice = choose(candidates, SAMPLE, same)
    assert choice.name == "quick"
    assert choice.milliseconds == pytest.approx({"reference": 10, "quick": 4})
    assert choice.refused == {"wrong": "another picture", "missing": "not installed here"}


def test_a_gain_within_the_noise_keeps_the_reference(clock: Clock) -> None:
    assert choose({"a": clock.runtime(0.010), "b": clock.runtime(0.0095)}, SAMPLE, same).name == "a"


def test_values_that_are_no_numbers_are_another_output(clock: Clock) -> None:
    choice = choose({"a": clock.runtime(0.010), "b": clock.runtime(0.001, float("nan"))}, SAMPLE, same)
    assert choice.name == "a" and "b" in choice.refused


def test_an_error_of_the_reference_is_raised() -> None:
    with pytest.raises(ImportError):
        choose({"reference": missing}, SAMPLE, same)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags : fpu avx512f avx512_bf16", True), ("Features : fp asimd bf16 i8mm", True), ("flags : fpu avx2", False)],
)
def test_bfloat16_is_read_from_the_processors_flags(tmp_path: Path, text: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert processor.multiplies_bfloat16(path) is expected
    assert processor.multiplies_bfloat16(tmp_path / "missing") is False
