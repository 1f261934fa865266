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


def jpeg_within(rgb: NDArray[np.uint8], max_bytes: int) -> bytes:
    """A JPEG file of rgb (H, W, 3) with at most `max_bytes`: of the highest of a few qualities that fits, else scaled
    down. RateError if not even a picture of 16 pixels a side fits."""
    data = b""
    for quality in _QUALITIES:
        data = save_picture(rgb, "jpeg", quality)
        if len(data) <= max_bytes:
            return data
    while True:
        height, width, _ = rgb.shape
        scale = min(_MOST_SCALE, max(_LEAST_SCALE, math.sqrt(max_bytes / len(data))))
        size = round(width * scale), round(height * scale)
        if min(size) < MIN_SIDE:
            raise RateError(f"no JPEG of this picture has {max_bytes} bytes or less: ask for more bytes")
        rgb = resized(rgb, size)
        data = save_picture(rgb, "jpeg", _QUALITIES[-1])
        if len(data) <= max_bytes:
            return data
