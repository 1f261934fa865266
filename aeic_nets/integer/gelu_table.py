"""GELU on 8-bit codes: a table of 256 entries that a float GELU reproduces on any machine.

A lowering may compute GELU in float32, whose last bits differ between machines, because no entry lies near a rounding
boundary: before rounding, a constant (``shift``, a fraction of a step) is added that keeps all 256 values at least
``MARGIN`` steps away from any boundary. Float implementations differ by less than 1e-4 steps.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MARGIN = 2.0**-10
_CODES = np.arange(-128, 128)
_erf = np.vectorize(math.erf)


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exact (erf) form, float64."""
    result: NDArray[np.float64] = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return result


@lru_cache(maxsize=4096)
def _steps(in_exponent: int, out_exponent: int) -> NDArray[np.float64]:
    return gelu(_CODES * 2.0**in_exponent) / 2.0**out_exponent


def gelu_shift(in_exponent: int, out_exponent: int) -> float:
    """The smallest constant, in 1/256 steps, often 0, that keeps every value ``MARGIN`` away from a boundary."""
    steps = _steps(in_exponent, out_exponent)
    for k in sorted(range(-128, 129), key=abs):
        if margin(steps + k / 256) >= MARGIN:
            return k / 256
    raise ValueError(f"no rounding margin for GELU from steps of 2**{in_exponent} to 2**{out_exponent}: change a scale")


def margin(steps: NDArray[np.float64]) -> float:
    """Distance of the nearest value to a rounding boundary, in steps; values that are clipped anyway do not count."""
    inside = steps[(steps > -129) & (steps < 128)]
    fractions = np.mod(inside + 0.5, 1.0)
    return float(np.minimum(fractions, 1 - fractions).min(initial=0.5))


def gelu_table(in_exponent: int, out_exponent: int, shift: float) -> NDArray[np.int64]:
    """(256,) codes -128..127, entry ``code + 128``."""
    table: NDArray[np.int64] = np.clip(np.rint(_steps(in_exponent, out_exponent) + shift), -128, 127).astype(np.int64)
    return table
