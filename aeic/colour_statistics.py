"""Means and standard deviations of a picture's colours, which a frame of version 2 carries, and the correction by them.

The authors' program shifts and scales the colours of a decoded picture so that they have the means and the standard
deviations of the original. docs/bitstream.md section 5.3 defines both sides. Everything follows from the histogram of
each channel, so that the sums are exact and no copy of a large picture in floats is made.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATISTICS_BYTES = 12
MIN_STD, MAX_STD = 207, 32832
"""Of any picture of 16x16 pixels or more: one colour; half black, half white. In multiples of 1/65535."""
_UNIT = 65535
_EPSILON = 1e-5
_NUMBERS = struct.Struct("<6H")
_LEVELS = np.arange(256)
_STRIP_ROWS = 256


@dataclass(frozen=True)
class ColourStatistics:
    """Of R, G, B of an 8-bit picture scaled to [0, 1], in multiples of 1/65535.

    ``means`` in 0..65535, ``stds`` in ``MIN_STD``..``MAX_STD``; ``ValueError`` for others.
    """

    means: tuple[int, int, int]
    stds: tuple[int, int, int]

    def __post_init__(self) -> None:
        """``ValueError`` for numbers that no picture has."""
        if not all(0 <= mean <= _UNIT for mean in self.means) or not all(
            MIN_STD <= std <= MAX_STD for std in self.stds
        ):
            raise ValueError(f"no picture has the means {self.means} and the standard deviations {self.stds}")

    @classmethod
    def of(cls, picture: NDArray[np.uint8]) -> ColourStatistics:
        """Those of a picture (H, W, 3) uint8, of more than one pixel."""
        means, stds = [], []
        for channel in range(3):
            counts = np.zeros(256, np.int64)
            for top in range(0, len(picture), _STRIP_ROWS):  # bincount copies to int64: a strip at a time
                counts += np.bincount(picture[top : top + _STRIP_ROWS, :, channel].ravel(), minlength=256)
            n, total, squares = (int((counts * _LEVELS**power).sum()) for power in range(3))
            variance = (n * squares - total**2) / (n * (n - 1) * 255**2)
            means.append(round(_UNIT * total / (255 * n)))
            stds.append(round(_UNIT * math.sqrt(variance + _EPSILON)))
        return cls((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]))

    @classmethod
    def unpack(cls, data: bytes) -> ColourStatistics:
        """From ``STATISTICS_BYTES`` bytes of a frame. ``ValueError`` for numbers that no picture has."""
        r, g, b, *stds = _NUMBERS.unpack(data)
        return cls((r, g, b), (stds[0], stds[1], stds[2]))

    def pack(self) -> bytes:
        """The bytes of a frame: the means of R, G and B, then the standard deviations, each as u16, little-endian."""
        return _NUMBERS.pack(*self.means, *self.stds)

    def correct(self, picture: NDArray[np.uint8]) -> None:
        """Give a decoded picture (H, W, 3) uint8, cropped to its size, these means and standard deviations, in place.

        Values beyond black and white are clipped, so that the result meets them approximately.
        """
        found = ColourStatistics.of(picture)
        for channel in range(3):
            centred = (_LEVELS / 255 - found.means[channel] / _UNIT) / (found.stds[channel] / _UNIT)
            values = centred * (self.stds[channel] / _UNIT) + self.means[channel] / _UNIT
            levels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
            for top in range(0, len(picture), _STRIP_ROWS):
                strip = picture[top : top + _STRIP_ROWS, :, channel]
                strip[...] = levels[strip]
