"""The analysis transform g_a: picture (H, W, 3) uint8 -> latent y (M, h, w) float32, h = padded H / 32.

A large picture would take much memory at its full resolution, where g_a's first stages work. So it goes through g_a
in three parts, each of them in tiles::

    picture --stages 0, 1--> 1/4 --stage 2--> 1/8 --stages 3, 4--> y at 1/32

Each tile is read with a margin that covers the receptive field of its part. So y equals that of the whole picture and
little work is repeated. Between the parts only the rows that the next tiles need are kept, so memory depends on the
tile and on the width of the picture. A bundle without the graphs of the parts, and a GPU, take tiles through all of g_a
with a margin smaller than its receptive field: y then differs slightly near the borders of tiles, which does not affect
decoding, since y is the encoder's own choice.

Independent of rates and entropy coding.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.pixels import pad_picture, to_tensor
from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE
from aeic.runtime import cuda, memory
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.execution_provider import PART_PROVIDERS, Session, open_part, open_session, run_bound

WHOLE_PIXELS = 1 << 19
"""A picture up to this size (padded) is analysed in one piece."""
TILE_PIXELS = 1 << 18
"""The approximate size limit of a tile of all of g_a with its margins: about 80 MB of memory."""
GPU_PROVIDERS = (cuda.CUDA, cuda.TENSORRT)
GPU_WHOLE_PIXELS = 1 << 21
"""On a GPU 1920x1088 is analysed in one piece, whatever the model."""
MARGIN = 64
"""Pixels of context around such a tile; a multiple of 64."""

Latent = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """One graph of g_a. ``stride`` from its input to its output; ``halo`` and ``samples`` count input samples."""

    stride: int
    halo: int
    """Receptive field on each side, rounded up to a multiple of ``stride``."""
    samples: int
    """The most that a tile takes with its halo: about 200 MB of memory."""


# A stage is a 3x3 convolution, an unshuffle by two and a StarBlock, whose widest kernel has 11 taps: it sees 11 samples
# on each side, and two stages see 33.
PARTS = (Part(4, 36, 700_000), Part(2, 12, 131_072), Part(4, 36, 100_000))


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
        self._bundle, self._choice, self._threads = bundle, provider, threads
        self._parts: list[Session] | None = None  # opened for the first large picture
        self._session, self.provider = open_session(bundle.path / "analysis.onnx", provider, threads, half)
        self._whole_pixels = max(whole_pixels, GPU_WHOLE_PIXELS) if self.provider in GPU_PROVIDERS else whole_pixels
        self._tile_pixels = tile_pixels
        self._margin = margin
        # A picture in tiles needs more memory than most, and rarely: the arena shrinks after its last tile.
        self._last = memory.shrinking()

    def __call__(self, rgb: NDArray[np.uint8]) -> Latent:
        """y of the picture (H, W, 3), padded as the format says: (M, ceil(H/64)*2, ceil(W/64)*2) float32."""
        padded = pad_picture(rgb)
        height, width, _ = padded.shape
        if height * width <= self._whole_pixels:
            return self._run(padded)
        if sessions := self._part_sessions():
            return self._by_parts(padded, sessions)
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

    def _part_sessions(self) -> list[Session]:
        """The sessions of the parts; none where the bundle has no such graphs, or a GPU takes large tiles."""
        if self._parts is None:
            paths = [self._bundle.auxiliary(f"analysis_{number}.onnx") for number in range(len(PARTS))]
            self._parts = []
            found = [path for path in paths if path is not None]
            if self.provider in PART_PROVIDERS and len(found) == len(PARTS):
                self._parts = [open_part(path, self.provider, self._threads) for path in found]
        return self._parts

    def _by_parts(self, padded: NDArray[np.uint8], sessions: list[Session]) -> Latent:
        def tensor(rows: slice, columns: slice) -> NDArray[np.float32]:
            return to_tensor(padded[rows, columns])

        read: Read = tensor
        height, width, _ = padded.shape
        for part, session in zip(PARTS, sessions, strict=True):
            read = _Bands(part, session, read, (height, width), self._last)
            height, width = height // part.stride, width // part.stride
        y: Latent = read(slice(0, height), slice(0, width))[0]
        return y

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
    parts = -(-(length // PICTURE_MULTIPLE) // max(1, side // PICTURE_MULTIPLE))
    return _divide(length, parts, margin, PICTURE_MULTIPLE)


Read = Callable[[slice, slice], NDArray[np.float32]]
"""Rows and columns of features, as (1, C, rows, columns)."""


class _Bands:
    """The output of one part: call it with rows and columns to get (1, C, rows, columns).

    The features are computed in bands of tiles when their rows are first read. Reads go from top to bottom: the rows
    above the first one of a read are forgotten.
    """

    def __init__(
        self, part: Part, session: Session, read: Read, size: tuple[int, int], last: onnxruntime.RunOptions
    ) -> None:
        """``size``: (height, width) of what ``read`` gives; ``last``: options of the run of the last tile."""
        self._part, self._session, self._read, self._size, self._last = part, session, read, size, last
        self._rows, self._columns = _cuts(*size, part)
        self._next = 0  # the first of self._rows that is not computed
        self._bands: deque[tuple[int, NDArray[np.float32]]] = deque()  # first row and features

    def __call__(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        while self._bands and self._end(self._bands[0]) <= rows.start:
            self._bands.popleft()
        while not self._bands or self._end(self._bands[-1]) < rows.stop:
            self._compute()
        parts = [
            band[:, :, max(0, rows.start - first) : rows.stop - first, columns]
            for first, band in self._bands
            if first < rows.stop
        ]
        return np.concatenate(parts, axis=2)

    def _end(self, band: tuple[int, NDArray[np.float32]]) -> int:
        return band[0] + band[1].shape[2]

    def _compute(self) -> None:
        top, bottom, first, end = self._rows[self._next]
        self._next += 1
        stride = self._part.stride
        inner_rows = slice((top - first) // stride, (bottom - first) // stride)
        tiles = []
        for left, right, start, stop in self._columns:
            options = self._last if (bottom, right) == self._size else None
            tile = run_bound(self._session, self._read(slice(first, end), slice(start, stop)), options)
            tiles.append(tile[:, :, inner_rows, (left - start) // stride : (right - start) // stride])
        self._bands.append((top // stride, np.concatenate(tiles, axis=3)))


Spans = tuple[tuple[int, int, int, int], ...]


@lru_cache(maxsize=256)
def _cuts(height: int, width: int, part: Part) -> tuple[Spans, Spans]:
    """Rows and columns of tiles, as :func:`spans`, that stay within ``part.samples`` and read the fewest samples."""
    best: tuple[int, Spans, Spans] | None = None
    for across in range(1, width // part.stride + 1):
        columns = tuple(_divide(width, across, part.halo, part.stride))
        wide = columns[0][3] - columns[0][2]
        for down in range(1, height // part.stride + 1):
            rows = tuple(_divide(height, down, part.halo, part.stride))
            tall = rows[0][3] - rows[0][2]
            if tall * wide <= part.samples:
                cost = across * down * tall * wide
                if best is None or cost < best[0]:
                    best = cost, rows, columns
                break
        if best is not None and wide <= 8 * part.halo:
            break
    assert best is not None, "a tile of one output sample always fits"
    return best[1], best[2]


def _divide(length: int, parts: int, halo: int, multiple: int) -> Iterator[tuple[int, int, int, int]]:
    """``parts`` even spans of [0, length), each (begin, end, first, last) and read as [first, last), of one length."""
    blocks = length // multiple
    read = min(length, -(-blocks // parts) * multiple + min(parts - 1, 2) * halo)
    for part in range(parts):
        begin, end = (blocks * edge // parts * multiple for edge in (part, part + 1))
        first = min(max(0, begin - halo), length - read)
        yield begin, end, first, first + read


def _latent(begin: int, end: int) -> slice:
    return slice(begin // LATENT_STRIDE, end // LATENT_STRIDE)
