"""A picture with sharper regions of it painted in at their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cloud_decoder.tiling import Picture

MAX_SIDE = 3840
"""The longest side of a composed picture, in pixels."""
MOST_SHIFT = 12.0
"""A region's mean colour is moved to that of the picture below it, by at most so much of 255."""
FEATHER = 16
"""The transition at a region's edge takes this part of its shorter side."""

Region = tuple[int, int, int, int]


def composed_size(width: int, height: int) -> tuple[int, int]:
    """The size of the composed picture of an original of that size."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def compose(picture: Picture, original: tuple[int, int], parts: Sequence[tuple[Picture, Region]]) -> Picture:
    """``picture`` (H, W, 3) uint8 enlarged towards its ``original`` size (width, height), with the ``parts`` in it.

    A part is a picture of the region x, y, width, height of the original; a later one covers an earlier one. Parts have
    soft edges, except at the border of the whole, and the mean colour of what is below them.
    """
    width, height = composed_size(*original)
    out = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    for part, (x, y, wide, tall) in parts:
        left, right = (round(side * width / original[0]) for side in (x, x + wide))
        top, bottom = (round(side * height / original[1]) for side in (y, y + tall))
        if right - left < 1 or bottom - top < 1:
            continue
        below = out[top:bottom, left:right].astype(np.float32)
        size = (right - left, bottom - top)
        above = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS), np.float32)
        above = above + np.clip((below - above).mean(axis=(0, 1)), -MOST_SHIFT, MOST_SHIFT)
        steps = max(1, min(size) // FEATHER)
        across = _ramp(size[0], steps, left > 0, right < width)
        down = _ramp(size[1], steps, top > 0, bottom < height)
        alpha = (down[:, None] * across[None, :])[..., None]
        out[top:bottom, left:right] = np.clip(alpha * above + (1 - alpha) * below + 0.5, 0, 255).astype(np.uint8)
    return out


def _ramp(length: int, steps: int, first: bool, last: bool) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Opacity along one side: from 0 to 1 within ``steps`` pixels of the ends that have a neighbour."""
    place = np.arange(length, dtype=np.float32)
    ramp = np.ones(length, np.float32)
    if first:
        ramp = np.minimum(ramp, (place + 1) / (steps + 1))
    if last:
        ramp = np.minimum(ramp, (length - place) / (steps + 1))
    return ramp.astype(np.float32)
