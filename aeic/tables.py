"""Integer frequency tables: how likely each symbol is, in units of 2**-24. They are computed once, at export.

A *row* is one distribution: ``freqs[k]`` is the weight of the value ``offset + k``, for k in 0..length-1; each weight
is at least 1 and a row sums to exactly ``TOTAL``. There is no escape: the encoder clips to the row's range.

The bundle ships the rows as integers; the two builders below run once, at export.
Source: docs/model.md sections 4.3 and 4.5; the format is that of docs/bitstream.md section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aeic.errors import BundleError
from aeic.profiles import SCALE_COUNT, SCALE_MAX, SCALE_MIN

PRECISION = 24
TOTAL = 1 << PRECISION
MAX_LENGTH = 1 << 14
"""Longest row that is accepted: symbols stay well inside int16."""
TAIL_WIDTH = 6.1094
"""A Gaussian row reaches this many standard deviations to each side (the normal quantile at 1 - 5e-10)."""

PackedRows = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
Ints = NDArray[np.integer[Any]]


class Rows:
    """A numbered set of rows, checked once and laid out for coding.

    ``lengths``, ``offsets``, ``starts``: (n,) int64. ``freqs``, ``cums``: (sum of lengths,) int64, where entry
    ``starts[i] + k`` is the weight of symbol k of row i, and the weight of all symbols before it.
    """

    def __init__(self, lengths: Ints, offsets: Ints, freqs: Ints) -> None:
        """Take packed rows as the bundle stores them; ``BundleError`` if they are not rows."""
        for part in (lengths, offsets, freqs):
            if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
                raise BundleError("a frequency table is not a list of integers: export the bundle again")
        self.lengths, self.offsets = lengths.astype(np.int64), offsets.astype(np.int64)
        self.freqs = freqs.astype(np.int64)
        if (
            len(lengths) == 0
            or len(lengths) != len(offsets)
            or self.lengths.min() < 1
            or self.lengths.max() > MAX_LENGTH
        ):
            raise BundleError(f"a frequency table needs 1..{MAX_LENGTH} entries and an offset: export the bundle again")
        if np.abs(self.offsets).max() > MAX_LENGTH or self.lengths.sum() != len(freqs):
            raise BundleError("the frequency tables do not fit their lengths or offsets: export the bundle again")
        self.starts = np.cumsum(self.lengths) - self.lengths
        if self.freqs.min() < 1 or (np.add.reduceat(self.freqs, self.starts) != TOTAL).any():
            raise BundleError(
                f"a frequency table does not sum to {TOTAL} with every entry 1 or more: export the bundle again"
            )
        self.cums = (np.cumsum(self.freqs) - self.freqs) % TOTAL  # every row ends at a multiple of TOTAL
        self._lists: dict[int, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> slice:
        """Where row ``index`` lies in ``freqs`` and ``cums``."""
        return slice(int(self.starts[index]), int(self.starts[index] + self.lengths[index]))

    def lists(self, index: int) -> tuple[list[int], list[int]]:
        """``(freqs, cums)`` of one row as Python lists, kept: Python indexes a list several times faster."""
        if index not in self._lists:
            row = self.row(index)
            self._lists[index] = (self.freqs[row].tolist(), self.cums[row].tolist())
        return self._lists[index]

    @cached_property
    def lowest(self) -> NDArray[np.float32]:
        """The least value of each row, (n,) float32 (exact)."""
        return self.offsets.astype(np.float32)

    @cached_property
    def highest(self) -> NDArray[np.float32]:
        """The greatest value of each row, (n,) float32 (exact)."""
        return (self.offsets + self.lengths - 1).astype(np.float32)

    @cached_property
    def least_bits(self) -> float:
        """The sum, over all rows, of the ideal code length of the row's most probable symbol, in bits."""
        return float(PRECISION * len(self) - np.log2(np.maximum.reduceat(self.freqs, self.starts)).sum())

    def places(self, values: Ints, ids: Ints) -> NDArray[np.int64]:
        """Where ``values[i]`` of row ``ids[i]`` stands in ``freqs``. ``ValueError`` if a value is outside its row."""
        symbols = values - self.offsets[ids]
        if len(symbols) and (symbols.min() < 0 or (symbols >= self.lengths[ids]).any()):
            raise ValueError("a value lies outside its table: clip to the table's range first")
        places: NDArray[np.int64] = self.starts[ids] + symbols
        return places

    def bits(self, values: Ints, ids: Ints) -> float:
        """The ideal code length in bits of ``values`` (any shape) under rows ``ids``."""
        weights = self.freqs[self.places(values.ravel(), ids.ravel())]
        return float(PRECISION * len(weights) - np.log2(weights).sum())


def rows_from_pmf(pmfs: Sequence[ArrayLike], offsets: Sequence[int] | None = None) -> PackedRows:
    """Quantise probabilities to rows: ``(lengths (n,), offsets (n,), freqs (sum of lengths,))``, all int32.

    ``pmfs[i]`` is a list of non-negative numbers, in any unit; ``offsets[i]`` the value of its first entry, by default
    ``-(length // 2)``. Every entry gets 1, the rest of 2**24 is shared in proportion, by largest remainder.
    ``ValueError`` for an empty, too long or all-zero list, or one that is not finite.
    """
    if offsets is not None and len(offsets) != len(pmfs):
        raise ValueError(f"{len(pmfs)} distributions but {len(offsets)} offsets: give one offset each")
    freqs = [_quantise(np.asarray(pmf, np.float64)) for pmf in pmfs]
    lengths = np.array([len(row) for row in freqs], np.int32)
    firsts = -(lengths // 2) if offsets is None else np.array(offsets, np.int32)
    return lengths, firsts.astype(np.int32), np.concatenate(freqs)


def _quantise(pmf: NDArray[np.float64]) -> NDArray[np.int32]:
    if pmf.ndim != 1 or not 1 <= len(pmf) <= MAX_LENGTH:
        raise ValueError(f"a distribution needs 1..{MAX_LENGTH} entries in one list, not shape {pmf.shape}")
    if not np.isfinite(pmf).all() or pmf.min() < 0 or pmf.sum() <= 0:
        raise ValueError("a distribution needs finite, non-negative entries that are not all zero")
    shares = pmf / pmf.sum() * (TOTAL - len(pmf))
    freqs = np.floor(shares).astype(np.int64)
    missing = TOTAL - len(pmf) - int(freqs.sum())
    largest = np.argsort(-(shares - freqs), kind="stable")
    if missing >= 0:
        freqs[largest[:missing]] += 1
    else:  # the float sum overshot by a unit or two: take them from the largest entry
        freqs[np.argmax(freqs)] += missing
    row: NDArray[np.int32] = (freqs + 1).astype(np.int32)
    return row


def gaussian_scales() -> NDArray[np.float64]:
    """The 64 standard deviations of the coding tables: log-spaced from 0.11 to 256. Returns (64,) float64."""
    scales: NDArray[np.float64] = np.exp(np.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_COUNT))
    return scales


def gaussian_rows(min_reach: int = 4) -> PackedRows:
    """The 64 rows for y: zero-mean Gaussians integrated over unit cells, symmetric about 0.

    A row reaches ``ceil(scale * TAIL_WIDTH)`` to each side, at least ``min_reach``: the narrowest rows would otherwise
    clip a rare large value to +-1, and a further entry costs only 2**-24 of the weight.
    """
    pmfs = []
    for scale in gaussian_scales():
        reach = max(math.ceil(scale * TAIL_WIDTH), min_reach)
        half = [
            (math.erfc((k - 0.5) / (scale * math.sqrt(2))) - math.erfc((k + 0.5) / (scale * math.sqrt(2)))) / 2
            for k in range(reach + 1)
        ]
        pmfs.append(np.array(half[:0:-1] + half))
    return rows_from_pmf(pmfs)
