"""Scaling pictures down: to a longest side, or to a number of pixels; and the presets of sizes and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeic.bitstream import MIN_SIDE
from edge_encoder.encoding import Preset


@dataclass(frozen=True, slots=True)
class Size:
    """`target_bytes` and `max_side` (pixels) as in Encoder.encode."""

    target_bytes: int
    max_side: int


# The longest side at which a typical photograph fits at a middle rate point of the model that ships.
PRESETS: dict[Preset, Size] = {"300B": Size(300, 320), "1kB": Size(1000, 576), "2kB": Size(2000, 768)}
"""Approximate bytes per picture, regardless of its size in pixels."""


def scaled_size(
    width: int, height: int, *, max_side: int | None = None, pixels: float | None = None
) -> tuple[int, int]:
    """The size (width, height) with no side over `max_side` and about `pixels` pixels at most; never larger than the
    given one, of the same shape, and with 16 pixels a side or more, which goes before the limits."""
    scale = 1.0
    if max_side is not None:
        scale = min(scale, max_side / max(width, height))
    if pixels is not None:
        scale = min(scale, math.sqrt(pixels / (width * height)))
    scale = min(1.0, max(scale, MIN_SIDE / min(width, height)))
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) in `size` (width, height), by Lanczos; the same array when it has that size."""
    if rgb.shape[1::-1] == size:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
