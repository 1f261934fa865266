"""From a scale to the number of its coding table, through one integer table.

A wide scale s (float32, the same on every machine) is clipped to [0, 256] and turned into a cell number,
``floor(512 min(s, 16)) + floor(8 s)``: steps of 1/512 below 16, of 1/8 above. Every cell has one index. So the
thresholds of docs/model.md section 4.5 are moved up to the next multiple of 1/512 (or 1/8), less than 2 % of a scale.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from aeic.profiles import SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE
from aeic.tables import Rows, gaussian_rows

SWITCH, FINE, COARSE = 16.0, 512.0, 8.0
CELLS = int(SWITCH * FINE + SCALE_MAX * COARSE) + 1


def cells(scales: NDArray[np.float32]) -> NDArray[np.int64]:
    """The cell of each scale, 0 .. CELLS - 1."""
    clipped = np.clip(scales.astype(np.float32), np.float32(0), np.float32(SCALE_MAX))
    fine = np.floor(np.minimum(clipped, np.float32(SWITCH)) * np.float32(FINE))
    return (fine + np.floor(clipped * np.float32(COARSE))).astype(np.int64)


def index_table() -> NDArray[np.int8]:
    """(CELLS,) int8: -1 (skipped) or the number of the table, by cell. A cell takes the index of its lower edge."""
    step = (math.log(SCALE_MAX) - math.log(SCALE_MIN)) / (SCALE_COUNT - 1)
    thresholds = [SKIP_SCALE] + [math.exp(math.log(SCALE_MIN) + k * step) for k in range(1, SCALE_COUNT)]
    table = np.full(CELLS, -1, np.int8)
    for number, threshold in enumerate(thresholds):
        grid = FINE if threshold < SWITCH else COARSE
        edge = np.float32(min(math.ceil(threshold * grid - 1e-6) / grid, SCALE_MAX))
        table[cells(np.array([edge]))[0] :] = number
    return table


def symbol_limits() -> NDArray[np.float32]:
    """(64,) the largest symbol of each coding table; the tables are symmetric."""
    limits = Rows(*gaussian_rows()).highest
    return limits
