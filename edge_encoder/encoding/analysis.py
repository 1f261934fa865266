"""The analysis transform g_a: picture (H, W, 3) uint8 -> latent y (M, h, w) float32, h = padded H / 32.

Large pictures are analysed in tiles, each with a margin that is computed and discarded, so that memory depends on the
tile and not on the picture. The margin is smaller than g_a's receptive field: near tile borders y differs slightly from
the y of the whole picture. That does not affect decoding, since y is the encoder's own choice. Knows nothing of rates
or entropy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.pixels import pad_picture, to_tensor
from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.execution_provider import open_session, run_bound

WHOLE_PIXELS = 1 << 19
"""A picture up to this size (padded) is analysed in one piece."""
TILE_PIXELS = 1 << 18
"""The approximate size limit of a tile with its margins: about 80 MB of memory; larger tiles are not faster."""
MARGIN = 64
"""Pixels of context around a tile; a multiple of 64."""

Latent = NDArray[np.float32]


class Analysis:
    """g_a of one bundle on one provider. `provider` is the one in use, as the session reports it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: ProviderChoice = "auto",
        threads: int = 0,
        whole_pixels: int = WHOLE_PIXELS,
        tile_pixels: int = TILE_PIXELS,
        margin: int = MARGIN,
    ) -> None:
        half = bundle.path / "analysis_half.onnx" if bundle.has("analysis_half.onnx") else None
        self._session, self.provider = open_session(bundle.path / "analysis.onnx", provider, threads, half)
        self._whole_pixels = whole_pixels
        self._tile_pixels = tile_pixels
        self._margin = margin
        # A picture in tiles needs more memory than most, and rarely: the arena shrinks after its last tile.
        self._last = onnxruntime.RunOptions()
        self._last.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, rgb: NDArray[np.uint8]) -> Latent:
        """y of the picture (H, W, 3), padded as the format says: (M, ceil(H/64)*2, ceil(W/64)*2) float32."""
        padded = pad_picture(rgb)
        height, width, _ = padded.shape
        if height * width <= self._whole_pixels:
            return self._run(padded)
        side = max(PICTURE_MULTIPLE, math.isqrt(self._tile_pixels) - 2 * self._margin)
        rows = []
        for top, bottom, first, last in spans(height, side, self._margin):
            row = []
            for left, right, start, end in spans(width, side, self._margin):
                end_of_it = (bottom, right) == (height, width)
                y = self._run(padded[first:last, start:end], self._last if end_of_it else None)
                inner = (slice(None), _latent(top - first, bottom - first), _latent(left - start, right - start))
                row.append(y[inner])
            rows.append(np.concatenate(row, axis=2))
        return np.concatenate(rows, axis=1)

    def _run(self, rgb: NDArray[np.uint8], options: onnxruntime.RunOptions | None = None) -> Latent:
        y: Latent = run_bound(self._session, to_tensor(rgb), options)[0]
        return y

    def warm_up(self) -> float:
        """Runs once on a small picture, so that the first request is not slow; the seconds it took."""
        begin = time.perf_counter()
        self(np.zeros((PICTURE_MULTIPLE, PICTURE_MULTIPLE, 3), np.uint8))
        return time.perf_counter() - begin


def spans(length: int, side: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end, first, last): [begin, end) divide [0, length) evenly, each at most `side` long, and are read
    with their margins as [first, last). All are multiples of 64, and all reads have the same length, since ONNX Runtime
    keeps memory for every input size."""
    blocks = length // PICTURE_MULTIPLE
    parts = -(-blocks // max(1, side // PICTURE_MULTIPLE))
    read = min(length, -(-blocks // parts) * PICTURE_MULTIPLE + 2 * margin)
    for part in range(parts):
        begin, end = (blocks * edge // parts * PICTURE_MULTIPLE for edge in (part, part + 1))
        first = min(max(0, begin - margin), length - read)
        yield begin, end, first, first + read


def _latent(begin: int, end: int) -> slice:
    return slice(begin // LATENT_STRIDE, end // LATENT_STRIDE)
