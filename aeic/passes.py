"""Which latent elements belong to which of the four coding passes.

The channels form four equal consecutive groups G0..G3. The class of a position is its row and column parity::

    class   a b      pass   G0 G1 G2 G3
            c d        0     a  b  c  d
                       1     d  c  b  a
                       2     c  d  a  b
                       3     b  a  d  c

Every (channel, position) is in exactly one pass, and in one pass every position belongs to exactly one group. So a pass
is a dense array of a quarter of the channels: element (c, row, col) of pass ``i`` is channel ``group * M/4 + c`` there.
Source: docs/bitstream.md section 6.2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)
PASS_COUNT = 4
_CLASS_OF_GROUP = ("abcd", "dcba", "cdab", "badc")  # [pass][group]


def position_class(row: int, column: int) -> str:
    """``a``, ``b``, ``c`` or ``d`` for (even, even), (even, odd), (odd, even), (odd, odd)."""
    return "abcd"[2 * (row % 2) + column % 2]


def group_tile(index: int) -> list[list[int]]:
    """The channel group that pass ``index`` codes at the four parities: [row % 2][column % 2]."""
    return [[_CLASS_OF_GROUP[index].index(position_class(row, column)) for column in (0, 1)] for row in (0, 1)]


@lru_cache(maxsize=64)
def group_map(index: int, height: int, width: int) -> NDArray[np.int64]:
    """The channel group that pass ``index`` codes at each position. Returns (height, width) int64, read-only."""
    tile = np.array(group_tile(index), np.int64)
    groups = np.tile(tile, ((height + 1) // 2, (width + 1) // 2))[:height, :width].copy()
    groups.setflags(write=False)
    return groups


def pass_mask(index: int, channels: int, height: int, width: int) -> NDArray[np.bool_]:
    """True where pass ``index`` codes. Returns (channels, height, width) bool; ``channels`` is a multiple of 4."""
    groups = np.arange(channels) // (channels // PASS_COUNT)
    mask: NDArray[np.bool_] = groups[:, None, None] == group_map(index, height, width)[None]
    return mask


def gather(array: NDArray[T], index: int) -> NDArray[T]:
    """The elements of ``array`` (..., M, h, w) that pass ``index`` codes, as (..., M/4, h, w)."""
    *batch, channels, height, width = array.shape
    quarter = channels // PASS_COUNT
    grouped = array.reshape(*batch, PASS_COUNT, quarter, height, width)
    picked = np.empty((*batch, quarter, height, width), array.dtype)
    for row, column, group in _parities(index):  # four strided copies: quicker than fancy indexing
        picked[..., row::2, column::2] = grouped[..., group, :, row::2, column::2]
    return picked


def scatter(values: NDArray[T], index: int) -> NDArray[T]:
    """The inverse of :func:`gather`: (..., M/4, h, w) to (..., M, h, w), zero elsewhere."""
    *batch, quarter, height, width = values.shape
    grouped = np.zeros((*batch, PASS_COUNT, quarter, height, width), values.dtype)
    for row, column, group in _parities(index):
        grouped[..., group, :, row::2, column::2] = values[..., row::2, column::2]
    return grouped.reshape(*batch, PASS_COUNT * quarter, height, width)


def _parities(index: int) -> list[tuple[int, int, int]]:
    """(row % 2, column % 2, group) of the four parities in pass ``index``."""
    tile = group_tile(index)
    return [(row, column, tile[row][column]) for row in (0, 1) for column in (0, 1)]
