"""Chooses between runtimes by running each of them on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

GAIN = 0.9
"""A runtime is taken instead of the reference if it needs at most this share of its time."""
_RUNS = 3


@dataclass(frozen=True)
class Choice:
    """The runtime to use. `milliseconds` of each one that works; `refused`: the others, with the reason."""

    name: str
    milliseconds: dict[str, float]
    refused: dict[str, str]


def choose(
    candidates: Mapping[str, Callable[[], Run]], sample: NDArray[np.float32], same: Callable[..., str | None]
) -> Choice:
    """The fastest of `candidates` on `sample`. The first one is the reference: it must work, and its errors are raised.

    Each value of `candidates` loads a runtime. `same(got, want)` compares an output with the reference's: None, or what
    is wrong with it. A runtime that does not load, fails, or gives another output is refused.
    """
    milliseconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    want: NDArray[np.float32] | None = None
    for name, load in candidates.items():
        try:
            run = load()
            got = run(sample)
            if want is None:
                want = got
            elif problem := same(got, want):
                raise ValueError(problem)
            milliseconds[name] = _least_milliseconds(run, sample)
        except Exception as error:  # each runtime has its own errors
            if want is None:
                raise
            refused[name] = str(error) or type(error).__name__
    reference = next(iter(candidates))
    fastest = min(milliseconds, key=lambda name: milliseconds[name])
    name = fastest if milliseconds[fastest] <= GAIN * milliseconds[reference] else reference
    log.info(
        "%s is used: %s%s",
        name,
        ", ".join(f"{each} {taken:.1f} ms" for each, taken in milliseconds.items()),
        "".join(f"; {each} is refused: {why}" for each, why in refused.items()),
    )
    return Choice(name, milliseconds, refused)


def decibels(got: NDArray[np.float32], want: NDArray[np.float32], span: float = 2.0) -> float:
    """PSNR of `got` beside `want`, for values whose range is `span` wide; -inf if one of them is not finite."""
    error = float(np.mean(np.square(got - want, dtype=np.float64)))
    if not np.isfinite(error):
        return float("-inf")
    return 10 * float(np.log10(span**2 / max(error, 1e-20)))


def _least_milliseconds(run: Run, sample: NDArray[np.float32]) -> float:
    """Of several runs, since other work on the machine can only add."""
    taken = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run(sample)
        taken.append(time.perf_counter() - started)
    return 1000 * min(taken)
