"""A picture as tiles of latents, so that memory stays bounded whatever its size.

::

    latents (M, h, w)     tiles of one shape that overlap       picture, by bands of tile rows
    +-----------+         +------+--+------+
    |           |         |      |//|      |                    weights ramp linearly over the overlap
    |           |   -->   +------+--+------+                    and are normalised to sum to one
    |           |         |//////|//|//////|                    a band is finished, turned to uint8 and dropped
    +-----------+         +------+--+------+                    as soon as no later row touches it

A picture of at most ``WHOLE_PIXELS`` is one tile of its own shape, with no blending at all. A larger one is cut into
equal tiles of at most as many pixels; :func:`tile_shape` takes the cut that computes the fewest pixels twice. Only the
synthesis is tiled; the latents are always those of the whole picture.

worker/pipeline.py makes a :class:`TileAssembler` for each frame after its entropy decoding, and passes the tiles of one
row to the device, perhaps in several batches, before those of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import Frame
from aeic.pixels import from_tensor
from aeic.profiles import LATENT_STRIDE

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]
Synthesis = Callable[[Floats], Floats]

WHOLE_PIXELS = 1728 * 1728
"""Larger pictures (padded) are synthesised in tiles, at most this large: it bounds the memory of a call."""
OVERLAP = 3
"""In latents: 96 pixels, over which two tiles are blended. More brings no picture closer to the untiled one."""
STRIP_ROWS = 16


@dataclass(frozen=True)
class Tile:
    """The row and column of a tile, and its top and left in latents."""

    row: int
    column: int
    top: int
    left: int


def tile_shape(frame: Frame) -> tuple[int, int]:
    """(height, width) in latents of the tiles of a frame; the whole latent where the picture is small enough."""
    return _tile_shape(*frame.latent_size)


@lru_cache(maxsize=1024)
def _tile_shape(height: int, width: int) -> tuple[int, int]:
    budget = WHOLE_PIXELS // LATENT_STRIDE**2
    if height * width <= budget:
        return height, width
    best = None
    for columns in range(1, width // OVERLAP):
        wide = _side(width, columns)
        # The fewest rows whose tiles fit; more rows would only add overlaps.
        rows = next((n for n in range(1, height // OVERLAP) if _side(height, n) * wide <= budget), None)
        if rows is not None:
            tall = _side(height, rows)
            cost = rows * columns * tall * wide
            best = min(best or (cost, tall, wide), (cost, tall, wide))
        if wide <= 2 * OVERLAP:
            break
    assert best is not None, "a frame's sides are bounded, so some cut always fits"
    return best[1:]


def _side(size: int, count: int) -> int:
    """The length of ``count`` equal tiles that cover ``size`` latents and overlap by ``OVERLAP`` at least."""
    return -(-(size + (count - 1) * OVERLAP) // count)


def synthesis_cost(frame: Frame) -> int:
    """Pixels that the device synthesises for this frame, overlaps included."""
    (height, width), (tall, wide) = frame.latent_size, tile_shape(frame)
    return len(_starts(height, tall)) * len(_starts(width, wide)) * tall * wide * LATENT_STRIDE**2


class TileAssembler:
    """Assembles one picture from its tiles.

    Call :meth:`tiles` for a row, :meth:`cut` and :meth:`put` each of them, then the next row; after the last one call
    :meth:`finish`.
    """

    def __init__(self, y_hat: Floats, frame: Frame, *, whole: bool = False) -> None:
        """``whole``: a single tile, however large the picture."""
        self.frame = frame
        self.shape = frame.latent_size if whole else tile_shape(frame)
        self._y_hat = y_hat
        height, width = frame.latent_size
        self._tops, self._lefts = _starts(height, self.shape[0]), _starts(width, self.shape[1])
        self._row_weights = _weights(height, *_axis(self._tops, self.shape[0]))
        self._column_weights = _weights(width, *_axis(self._lefts, self.shape[1]))
        self._lock = Lock()
        self._row = 0
        self._missing = len(self._lefts)
        self._picture: Picture = np.empty((frame.height, frame.width, 3), np.uint8)
        band = (3, self.shape[0] * LATENT_STRIDE, width * LATENT_STRIDE)
        self._band: Floats | None = None if self.whole else np.zeros(band, np.float32)

    @property
    def whole(self) -> bool:
        """Whether the picture is a single tile, without blending."""
        return self.rows == len(self._lefts) == 1

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return len(self._tops)

    @property
    def done(self) -> bool:
        """Whether all tiles are there."""
        return self._row == self.rows

    def finish(self) -> Picture:
        """The picture (H, W, 3) uint8, its colours corrected if the frame has statistics. Call it once, when done.

        The correction of a large picture takes as long as a batch, so it is no part of :meth:`put`, which the device's
        thread calls.
        """
        assert self.done, "tiles are missing"
        if self.frame.colour is not None:
            self.frame.colour.correct(self._picture)
        return self._picture

    def tiles(self) -> list[Tile]:
        """The tiles of the next row; empty when done."""
        if self.done:
            return []
        return [Tile(self._row, column, self._tops[self._row], left) for column, left in enumerate(self._lefts)]

    def cut(self, tile: Tile) -> Floats:
        """The latents of a tile, (M, *shape) float32, a view."""
        return self._y_hat[:, tile.top : tile.top + self.shape[0], tile.left : tile.left + self.shape[1]]

    def put(self, tile: Tile, image: NDArray[Any]) -> None:
        """Add a tile's picture (3, 32 * height, 32 * width) float32 in [-1, 1]. Once for each tile, rows in order.

        A ``whole`` picture may also be (32 * height, 32 * width, 3) uint8. Several threads may put tiles of a row.
        """
        with self._lock:
            self._put(tile, image)

    def _put(self, tile: Tile, image: NDArray[Any]) -> None:
        if image.dtype == np.uint8:
            self._picture[...] = image[: self.frame.height, : self.frame.width]
            self._row = self.rows
            return
        if not np.isfinite(image).all():
            raise FloatingPointError("the synthesis gave values that are not finite")
        if tile.row != self._row:
            raise ValueError(f"tile of row {tile.row} while row {self._row} is being made")
        if self._band is None:
            self._emit(image, 0)
        else:
            left = tile.left * LATENT_STRIDE
            place = self._band[:, :, left : left + image.shape[2]]
            for rows in _strips(image.shape[1]):
                weights = self._row_weights[tile.row][rows, None] * self._column_weights[tile.column][None]
                place[:, rows] += image[:, rows] * weights
        self._missing -= 1
        if not self._missing:
            self._finish_row()

    def _finish_row(self) -> None:
        if self._band is not None:
            top = self._tops[self._row]
            below = self._tops[self._row + 1] if self._row + 1 < self.rows else top + self.shape[0]
            finished = (below - top) * LATENT_STRIDE
            self._emit(self._band[:, :finished], top * LATENT_STRIDE)
            kept = self._band.shape[1] - finished
            self._band[:, :kept] = self._band[:, finished:].copy()
            self._band[:, kept:] = 0
        self._row += 1
        self._missing = len(self._lefts)

    def _emit(self, image: Floats, top: int) -> None:
        """Rows from ``top`` on are final: crop the padding, round to uint8."""
        rows = self._picture[top : top + image.shape[1]]
        visible = image[:, : rows.shape[0], : rows.shape[1]]
        for strip in _strips(len(rows)):
            rows[strip] = from_tensor(visible[:, strip])


def _strips(rows: int) -> Iterator[slice]:
    """Rows that the processor's cache holds while they are worked on: fresh memory for a whole tile costs more."""
    for top in range(0, rows, STRIP_ROWS):
        yield slice(top, min(rows, top + STRIP_ROWS))


def _starts(size: int, tile: int) -> list[int]:
    """The first latent of each tile on an axis of ``size`` latents, evenly spread, overlapping by at least OVERLAP."""
    if tile >= size:
        return [0]
    count = -(-(size - OVERLAP) // (tile - OVERLAP))
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def _axis(starts: list[int], tile: int) -> tuple[list[int], int]:
    return [start * LATENT_STRIDE for start in starts], tile * LATENT_STRIDE


def _weights(size: int, starts: list[int], length: int) -> list[Floats]:
    """The weight of each pixel of each tile along one axis; over all tiles they sum to one at every pixel."""
    ramp = OVERLAP * LATENT_STRIDE
    place = np.arange(length, dtype=np.float32) + 0.5
    tiles = []
    for start in starts:
        weight = np.ones(length, np.float32)
        if start > 0:
            weight = np.minimum(weight, place / ramp)
        if start + length < size * LATENT_STRIDE:
            weight = np.minimum(weight, (length - place) / ramp)
        tiles.append(weight)
    total = np.zeros(size * LATENT_STRIDE, np.float32)
    for start, weight in zip(starts, tiles, strict=True):
        total[start : start + length] += weight
    return [weight / total[start : start + length] for start, weight in zip(starts, tiles, strict=True)]
