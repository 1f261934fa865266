"""A JPEG of a picture within a number of bytes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MIN_SIDE
from aeic.errors import RateError
from aeic.pixels import save_picture
from edge_encoder.encoding.scaling import resized

_QUALITIES = (92, 85, 75, 60, 45)
_LEAST_SCALE, _MOST_SCALE = 0.25, 0.9
_TABLES_BYTES = 625  # headers, quantisation and Huffman tables, as Pillow writes them
_BLOCK, _BLOCK_BYTES = 16, 4  # blocks of 16x16 pixels take 32 bits even where nothing is in them
LEAST_BYTES = _TABLES_BYTES + _BLOCK_BYTES
"""No JPEG that is made here has fewer."""


def jpeg_within(rgb: NDArray[np.uint8], max_bytes: int) -> bytes:
    """A JPEG file of rgb (H, W, 3) with at most `max_bytes`: of the highest of a few qualities that fits, else scaled
    down. A size that cannot fit whatever is in the picture is not tried. RateError if not even a picture of 16 pixels a
    side fits."""
    qualities: tuple[int, ...] = _QUALITIES
    while True:
        height, width, _ = rgb.shape
        length = _least_bytes(width, height)
        if length <= max_bytes:
            for quality in qualities:
                data = save_picture(rgb, "jpeg", quality)
                if len(data) <= max_bytes:
                    return data
            length = len(data)
            qualities = _QUALITIES[-1:]
        scale = min(_MOST_SCALE, max(_LEAST_SCALE, math.sqrt(max_bytes / length)))
        size = round(width * scale), round(height * scale)
        if max_bytes < LEAST_BYTES or min(size) < MIN_SIDE:
            raise RateError(f"no JPEG of this picture has {max_bytes} bytes or less: ask for more bytes")
        rgb = resized(rgb, size)


def _least_bytes(width: int, height: int) -> int:
    return _TABLES_BYTES + _BLOCK_BYTES * math.ceil(width / _BLOCK) * math.ceil(height / _BLOCK)
