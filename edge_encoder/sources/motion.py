"""Motion filter: whether a camera's frame differs from the last one that was sent.

Frames are compared as small grey thumbnails, cell by cell; a cell has changed when its grey level differs by more than
LEVELS. Slow changes (dawn) add up, since the comparison is with the last frame sent. Pure logic: no camera or clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELLS = (36, 64)
"""Rows and columns of the thumbnail."""
LEVELS = 10
"""Noise and compression change a grey level (0..255) by less than this."""

Grey = NDArray[np.uint8]


class Motion:
    """`least` is the share of cells, 0..1, that must have changed; with 0 every frame is new. After `still_seconds`
    without one (0: never) a frame counts as new anyway, to show that the camera works."""

    def __init__(self, least: float, still_seconds: float) -> None:
        self._least = least
        self._still_seconds = still_seconds
        self._sent: NDArray[np.int16] | None = None
        self._at = 0.0

    def is_new(self, grey: Grey, seconds: float) -> bool:
        """Whether to send the frame whose thumbnail is `grey` (36, 64) uint8, seen at `seconds`; True remembers it."""
        levels = grey.astype(np.int16)
        if self._sent is not None and self._least > 0:
            share = float((np.abs(levels - self._sent) > LEVELS).mean())
            due = self._still_seconds > 0 and seconds - self._at >= self._still_seconds
            if share < self._least and not due:
                return False
        self._sent, self._at = levels, seconds
        return True
