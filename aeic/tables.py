"""Integer frequency tables: how likely each symbol is, in units of 2**-24. Nothing here is computed on a device.

A *row* is one distribution: ``freqs[k]`` is the weight of the value ``offset + k``, for k in 0..length-1; each weight
is at least 1 and a row sums to exactly ``TOTAL``. There is no escape: the encoder clips to the row's range.

The bundle ships the rows as integers; the two builders below run once, at export.
Source: ARCHITECTURE sections 2.1 and 2.2, with 24 instead of 16 bits and without escapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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

Rows = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def rows_from_pmf(pmfs: Sequence[ArrayLike], offsets: Sequence[int] | None = None) -> Rows:
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
    return (freqs + 1).astype(np.int32)


def gaussian_scales() -> NDArray[np.float64]:
    """The 64 standard deviations of the coding tables: log-spaced from 0.11 to 256. Returns (64,) float64."""
    return np.exp(np.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_COUNT))


def gaussian_rows(min_reach: int = 4) -> Rows:
    """The 64 rows for y: zero-mean Gaussians integrated over unit cells, symmetric about 0.

    A row reaches ``ceil(scale * TAIL_WIDTH)`` to each side, at least ``min_reach``: the narrowest rows would otherwise
    clip a rare surprise to +-1, and a further entry costs nothing but 2**-24 of the weight.
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
