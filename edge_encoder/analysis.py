"""The analysis transform g_a: picture (H, W, 3) uint8 -> latent y (M, h, w) float32, h = padded H / 32.

Large pictures go through in strips of full width, each with a margin above and below that is computed and thrown
away, so that memory follows the strip and not the picture. The margin is shorter than the reach of g_a's last
convolutions: y in strips differs from y in one piece by a little near the seams, which costs no exactness, since y is
the encoder's own choice. Knows nothing of rates or entropy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.pixels import pad_picture, to_tensor
from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE
from edge_encoder.provider import open_session
from edge_encoder.settings import ProviderChoice

STRIP_PIXELS = 3 << 20
"""A picture up to this size (padded) goes through in one piece; a strip with its margins is at most this large."""
MARGIN_ROWS = 128
"""Rows above and below a strip that only serve as surroundings; a multiple of 64."""

Latent = NDArray[np.float32]


class Analysis:
    """g_a of one bundle on one provider. `provider` is the one really used, read back from the session."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: ProviderChoice = "auto",
        threads: int = 0,
        strip_pixels: int = STRIP_PIXELS,
        margin_rows: int = MARGIN_ROWS,
    ) -> None:
        self._session, self.provider = open_session(bundle.path / "analysis.onnx", provider, threads)
        self._input = self._session.get_inputs()[0].name
        self._strip_pixels = strip_pixels
        self._margin = margin_rows

    def __call__(self, rgb: NDArray[np.uint8]) -> Latent:
        """y of the picture (H, W, 3), padded as the format says: (M, ceil(H/64)*2, ceil(W/64)*2) float32."""
        padded = pad_picture(rgb)
        height, width, _ = padded.shape
        if height * width <= self._strip_pixels:
            return self._run(padded)
        parts = []
        for top, bottom, first, last in strips(height, width, self._strip_pixels, self._margin):
            y = self._run(padded[first:last])
            parts.append(y[:, (top - first) // LATENT_STRIDE : (bottom - first) // LATENT_STRIDE])
        return np.concatenate(parts, axis=1)

    def _run(self, rgb: NDArray[np.uint8]) -> Latent:
        y: Latent = self._session.run(None, {self._input: to_tensor(rgb)})[0][0]
        return y

    def warm_up(self) -> float:
        """Runs once on a small picture, so that the first real one is not the slow one; seconds it took."""
        begin = time.perf_counter()
        self(np.zeros((PICTURE_MULTIPLE, PICTURE_MULTIPLE, 3), np.uint8))
        return time.perf_counter() - begin


def strips(height: int, width: int, pixels: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, bottom, first, last) rows: the strip is [top, bottom), read with its margins as [first, last).

    All are multiples of 64; the strips cover [0, height) without overlap.
    """
    rows = max(PICTURE_MULTIPLE, (pixels // width - 2 * margin) // PICTURE_MULTIPLE * PICTURE_MULTIPLE)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield top, bottom, max(0, top - margin), min(height, bottom + margin)
