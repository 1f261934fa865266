"""A picture with sharper regions of it painted in at their places."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cloud_decoder.tiling import Picture

MAX_SIDE = 3840
"""The longest side of a composed picture, in pixels."""
MOST_SHIFT = 12.0
"""A region's mean colour is moved to that of the picture below it, by at most so much of 255."""
FEATHER = 16
"""The transition at a region's edge takes this part of its shorter side."""

BAND_ROWS = 16
"""Rows that are worked on at once, in float32."""
MOST_PIXELS_OF_REGION = 4
"""A part with more than this many pixels for each pixel of its region is not painted."""

Region = tuple[int, int, int, int]


def composed_size(width: int, height: int) -> tuple[int, int]:
    """The size of the composed picture of an original of that size."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def enlarged(picture: Picture, original: tuple[int, int]) -> Picture:
    """``picture`` (H, W, 3) uint8 in the composed size of an ``original`` (width, height): what :func:`paste` takes."""
    return np.array(Image.fromarray(picture).resize(composed_size(*original), Image.Resampling.LANCZOS))


def paste(out: Picture, original: tuple[int, int], part: Picture, region: Region) -> None:
    """Paint ``part``, a picture of the region x, y, width, height of the original, into ``out`` at its place.

    It gets soft edges, except at the border of the whole, and the mean colour of what is below it. Beside its arguments
    this takes at most 12 bytes for each pixel of ``out``, and 4 for each pixel of ``part``: Pillow has 4 bytes a pixel
    and one picture between its two passes, and all other work is done in bands of rows.
    """
    height, width, _ = out.shape
    x, y, wide, tall = region
    left, right = (round(side * width / original[0]) for side in (x, x + wide))
    top, bottom = (round(side * height / original[1]) for side in (y, y + tall))
    if right - left < 1 or bottom - top < 1:
        return
    size = (right - left, bottom - top)
    scaled = Image.fromarray(part).resize(size, Image.Resampling.LANCZOS)
    bands = [(row, min(row + BAND_ROWS, size[1])) for row in range(0, size[1], BAND_ROWS)]

    def both(first: int, last: int) -> tuple[Picture, Picture]:
        return out[top + first : top + last, left:right], np.asarray(scaled.crop((0, first, size[0], last)))

    difference = np.zeros(3, np.int64)
    for band in bands:
        below, above = both(*band)
        difference += below.sum(axis=(0, 1), dtype=np.int64) - above.sum(axis=(0, 1), dtype=np.int64)
    shift = np.clip(difference / (size[0] * size[1]), -MOST_SHIFT, MOST_SHIFT).astype(np.float32)
    steps = max(1, min(size) // FEATHER)
    across = _ramp(size[0], steps, left > 0, right < width)
    down = _ramp(size[1], steps, top > 0, bottom < height)
    for first, last in bands:
        below, above = both(first, last)
        mixed = above + shift
        mixed -= below
        mixed *= (down[first:last, None] * across[None, :])[..., None]
        mixed += below
        mixed += 0.5
        below[...] = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def _ramp(length: int, steps: int, first: bool, last: bool) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Opacity along one side: from 0 to 1 within ``steps`` pixels of the ends that have a neighbour."""
    place = np.arange(length, dtype=np.float32)
    ramp = np.ones(length, np.float32)
    if first:
        ramp = np.minimum(ramp, (place + 1) / (steps + 1))
    if last:
        ramp = np.minimum(ramp, (length - place) / (steps + 1))
    return ramp.astype(np.float32)
