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

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock, Semaphore
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.pixels import pad_picture, to_tensor
from aeic.profiles import LATENT_STRIDE, PICTURE_MULTIPLE
from aeic.runtime import cuda, memory
from aeic.runtime.device_check import lacks_memory
from aeic.runtime.processor import usable_cores
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.execution_provider import (
    CPU,
    PART_PROVIDERS,
    Session,
    open_part,
    open_session,
    run_bound,
    takes_bytes,
)

log = logging.getLogger("aeic.edge.analysis")

WHOLE_PIXELS = 1 << 20
"""A picture up to this size (padded) is analysed in one piece: about 210 MB of memory."""
TILE_BYTES = 230_000_000
"""The most memory that a tile of a part takes. Pictures over KEPT_PIXELS have less, down to half."""
_PIXEL_BYTES = 6
"""What a picture takes while it is analysed, per pixel: itself and its padded copy."""
TILE_PIXELS = 1 << 18
"""The approximate size limit of a tile of all of g_a with its margins: about 80 MB of memory."""
KEPT_PIXELS = 1 << 22
"""The memory of larger pictures is returned to the system after each of them, since they come rarely."""
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
    sample_bytes: int
    """Memory of one sample of a tile, halo included (measured with the model that ships)."""

    def samples(self, pixels: int) -> int:
        """The most that a tile of a picture of so many pixels takes with its halo."""
        return max(TILE_BYTES // 2, TILE_BYTES - _PIXEL_BYTES * max(0, pixels - KEPT_PIXELS)) // self.sample_bytes


# A stage is a 3x3 convolution, an unshuffle by two and a StarBlock, whose widest kernel has 11 taps: it sees 11 samples
# on each side, and two stages see 33.
PARTS = (Part(4, 36, 208), Part(2, 12, 1344), Part(4, 36, 1200))
WHOLE_SAMPLE_BYTES = 200
_LARGE_BYTES = 100_000_000
"""Runs that need more take turns."""


class Analysis:
    """g_a of one bundle on one provider. `provider` is the one in use, as the session reports it.

    The CPU takes a picture for which a GPU lacks memory or gives numbers that are not finite (float16 may). After any
    other error of a GPU, from which a process seldom recovers, the CPU takes all, and ``reason`` says why.
    """

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
        self.reason = ""
        """Why the CPU has taken over from the GPU; empty otherwise."""
        half = bundle.path / "analysis_half.onnx" if bundle.has("analysis_half.onnx") else None
        self._bundle, self._threads = bundle, threads
        self._parts: list[Graph] | None = None  # opened for the first large picture
        session, self.provider = open_session(bundle.path / "analysis.onnx", provider, threads, half)
        at_once = sys.maxsize if self.provider in GPU_PROVIDERS else max(1, usable_cores() // threads) if threads else 1
        self._turns = Semaphore(at_once)
        self._graph = Graph(session, WHOLE_SAMPLE_BYTES, self._turns, kept=self.provider == CPU)
        self._whole_pixels = max(whole_pixels, GPU_WHOLE_PIXELS) if self.provider in GPU_PROVIDERS else whole_pixels
        self._tile_pixels = tile_pixels
        self._margin = margin
        self._on_gpu = self.provider in GPU_PROVIDERS
        limits = {"whole_pixels": whole_pixels, "tile_pixels": tile_pixels, "margin": margin}
        self._open_on_cpu = partial(Analysis, bundle, provider="cpu", threads=threads, **limits)
        self._on_cpu: Analysis | None = None  # opened when a GPU first fails
        self._opening = Lock()

    def __call__(self, rgb: NDArray[np.uint8]) -> Latent:
        """y of the picture (H, W, 3), padded as the format says: (M, ceil(H/64)*2, ceil(W/64)*2) float32."""
        if not self._on_gpu:
            return self._analyse(rgb)
        if not self.reason:
            y = self._try(rgb)
            if y is not None:
                return y
        with self._opening:
            self._on_cpu = self._on_cpu or self._open_on_cpu()
        return self._on_cpu(rgb)

    def _try(self, rgb: NDArray[np.uint8]) -> Latent | None:
        """y by the GPU; None if it fails."""
        try:
            y = self._analyse(rgb)
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            if not lacks_memory(error):
                log.error("the analysis moves to the CPU: the GPU failed (%s)", error)
                self.reason, self.provider = f"the GPU failed ({error})", CPU
                return None
            log.warning("the GPU has not the memory for a picture, the CPU analyses it: %s", error)
        else:
            if np.isfinite(y).all():
                return y
            log.warning("the GPU's analysis is not finite, the CPU analyses the picture")
            return None
        try:  # outside the handler, whose exception may keep memory
            self._graph.empty_gpu()
        except Exception as error:  # the next picture shows whether the GPU still works
            log.warning("the GPU's memory could not be given back: %s", error)
        return None

    def _analyse(self, rgb: NDArray[np.uint8]) -> Latent:
        padded = pad_picture(rgb)
        height, width, _ = padded.shape
        rare = height * width > KEPT_PIXELS
        if rare:  # blocks that smaller pictures have left would be held beside those of the tiles
            self._graph.release()
        if height * width <= self._whole_pixels:
            return self._run(padded)
        if graphs := self._part_graphs():
            return self._by_parts(padded, graphs, rare)
        side = max(PICTURE_MULTIPLE, math.isqrt(self._tile_pixels) - 2 * self._margin)
        rows = []
        for top, bottom, first, last in spans(height, side, self._margin):
            row = []
            for left, right, start, end in spans(width, side, self._margin):
                y = self._run(padded[first:last, start:end], rare and (bottom, right) == (height, width))
                inner = (slice(None), _latent(top - first, bottom - first), _latent(left - start, right - start))
                row.append(y[inner])
            rows.append(np.concatenate(row, axis=2))
        return np.concatenate(rows, axis=1)

    def _part_graphs(self) -> list[Graph]:
        """The graphs of the parts; none where the bundle has no such graphs, or a GPU takes large tiles."""
        if self._parts is None:
            paths = [self._bundle.auxiliary(f"analysis_{number}.onnx") for number in range(len(PARTS))]
            found = [path for path in paths if path is not None]
            parts = []
            if self.provider in PART_PROVIDERS and len(found) == len(PARTS):
                for path, part in zip(found, PARTS, strict=True):
                    session = open_part(path, self.provider, self._threads)
                    parts.append(Graph(session, part.sample_bytes, self._turns, kept=self.provider == CPU))
            self._parts = parts
        return self._parts

    def _by_parts(self, padded: NDArray[np.uint8], graphs: list[Graph], rare: bool) -> Latent:
        def tensor(rows: slice, columns: slice) -> NDArray[np.float32]:
            return to_tensor(padded[rows, columns])

        read: Read = tensor
        height, width, _ = padded.shape
        pixels = height * width
        for part, graph in zip(PARTS, graphs, strict=True):
            read = _Bands(part, graph, read, (height, width), part.samples(pixels), rare)
            height, width = height // part.stride, width // part.stride
        y: Latent = read(slice(0, height), slice(0, width))[0]
        return y

    def _run(self, rgb: NDArray[np.uint8], last_of_rare: bool = False) -> Latent:
        y: Latent = self._graph.of_picture(rgb, last_of_rare)[0]
        return y

    def warm_up(self) -> float:
        """Runs once on a small picture, so that the first request is not slow; the seconds it took."""
        begin = time.perf_counter()
        self(np.zeros((PICTURE_MULTIPLE, PICTURE_MULTIPLE, 3), np.uint8))
        return time.perf_counter() - begin


class Graph:
    """A session and what its runs may hold: large ones take turns, and memory is kept for the next run."""

    def __init__(self, session: Session, sample_bytes: int, turns: Semaphore, *, kept: bool) -> None:
        """``sample_bytes``: memory for one sample of the input. ``kept``: in the arena of ONNX Runtime."""
        self._session, self._sample_bytes, self._turns, self._kept = session, sample_bytes, turns, kept

    def __call__(self, features: NDArray[np.float32], last_of_rare: bool = False) -> NDArray[np.float32]:
        """The output for (1, C, H, W). After the last run of a rare picture the memory is returned to the system."""
        needed = features.shape[2] * features.shape[3] * self._sample_bytes
        # Each run has all threads that it may have, so a second one at once would need its memory and gain little.
        turn: AbstractContextManager[object] = self._turns if needed > _LARGE_BYTES else nullcontext()
        with turn:
            if self._kept:
                memory.prepare(needed, self._smallest)
            return run_bound(self._session, features, memory.shrinking() if last_of_rare else None)

    def of_picture(self, rgb: NDArray[np.uint8], last_of_rare: bool = False) -> NDArray[np.float32]:
        """The output for a picture (H, W, 3). A GPU whose graph takes bytes converts it."""
        if takes_bytes(self._session):
            return run_bound(self._session, np.ascontiguousarray(rgb[None]))
        return self(to_tensor(rgb), last_of_rare)

    def empty_gpu(self) -> None:
        """Return what the session keeps on a GPU and does not use, which happens only after a run: a small one."""
        rgb = np.zeros((PICTURE_MULTIPLE, PICTURE_MULTIPLE, 3), np.uint8)
        run_bound(self._session, rgb[None] if takes_bytes(self._session) else to_tensor(rgb), cuda.shrinking())

    def release(self) -> None:
        """Return the memory that is kept and not in use to the system."""
        if self._kept:
            self._smallest(memory.shrinking())

    def _smallest(self, options: onnxruntime.RunOptions) -> None:
        given: Any = self._session.get_inputs()[0]  # of ONNX Runtime: OpenVINO does not use the arena
        channels = given.shape[1]
        run_bound(self._session, np.zeros((1, channels, PICTURE_MULTIPLE, PICTURE_MULTIPLE), np.float32), options)


def spans(length: int, side: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end, first, last): [begin, end) divide [0, length) evenly, each at most `side` long, and are read
    with their margins as [first, last). All are multiples of 64, and all reads have the same length, since ONNX Runtime
    keeps memory for every input size."""
    blocks = length // PICTURE_MULTIPLE
    parts = -(-blocks // max(1, side // PICTURE_MULTIPLE))
    read = min(length, -(-blocks // parts) * PICTURE_MULTIPLE + min(parts - 1, 2) * margin)
    for part in range(parts):
        begin, end = (blocks * edge // parts * PICTURE_MULTIPLE for edge in (part, part + 1))
        first = min(max(0, begin - margin), length - read)
        yield begin, end, first, first + read


Read = Callable[[slice, slice], NDArray[np.float32]]
"""Rows and columns of features, as (1, C, rows, columns)."""


class _Bands:
    """The output of one part: call it with rows and columns to get (1, C, rows, columns).

    The features are computed in bands of tiles when their rows are first read. Reads go from top to bottom: the rows
    above the first one of a read are forgotten.
    """

    def __init__(self, part: Part, graph: Graph, read: Read, size: tuple[int, int], samples: int, rare: bool) -> None:
        """``size``: (height, width) of what ``read`` gives; ``samples``: the most of a tile; ``rare``: the memory is
        returned after the last tile."""
        self._part, self._graph, self._read, self._size, self._rare = part, graph, read, size, rare
        self._rows, self._columns = _cuts(*size, part, samples)
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
            last_of_rare = self._rare and (bottom, right) == self._size
            tile = self._graph(self._read(slice(first, end), slice(start, stop)), last_of_rare)
            tiles.append(tile[:, :, inner_rows, (left - start) // stride : (right - start) // stride])
        self._bands.append((top // stride, np.concatenate(tiles, axis=3)))


Spans = tuple[tuple[int, int, int, int], ...]


@lru_cache(maxsize=256)
def _cuts(height: int, width: int, part: Part, samples: int) -> tuple[Spans, Spans]:
    """Rows and columns of tiles, as :func:`_divide`, of at most ``samples``, that read the fewest in all."""
    blocks_down, blocks_across, margin = height // part.stride, width // part.stride, part.halo // part.stride
    best: tuple[int, int, int] | None = None  # samples read, parts across, parts down
    for across in range(1, blocks_across + 1):
        wide = _read_blocks(blocks_across, across, margin)
        most = samples // (wide * part.stride**2)
        if most >= blocks_down:
            down = 1
        elif most > 2 * margin:
            down = -(-(blocks_down - 2 * margin) // (most - 2 * margin))
        else:
            continue
        cost = across * down * wide * _read_blocks(blocks_down, down, margin)
        best = min(best or (cost, across, down), (cost, across, down))  # low bands, of which few rows are kept
        if best is not None and wide <= 8 * margin:
            break
    assert best is not None, "a tile of one output sample always fits"
    _, across, down = best
    divided = _divide(height, down, part.halo, part.stride), _divide(width, across, part.halo, part.stride)
    return tuple(divided[0]), tuple(divided[1])


def _divide(length: int, parts: int, halo: int, multiple: int) -> Iterator[tuple[int, int, int, int]]:
    """``parts`` spans of [0, length), each (begin, end, first, last) and read as [first, last), of one length.

    The first and the last are longer than the others, since they have only one halo.
    """
    blocks = length // multiple
    read = _read_blocks(blocks, parts, halo // multiple)
    for part in range(parts):
        first = (blocks - read) * part // max(1, parts - 1)
        before, after = ((blocks - read) * (part + step) // max(1, parts - 1) for step in (-1, 1))
        begin = (first + before + read) // 2 if part else 0
        end = (first + after + read) // 2 if part < parts - 1 else blocks
        yield begin * multiple, end * multiple, first * multiple, (first + read) * multiple


def _read_blocks(blocks: int, parts: int, margin: int) -> int:
    """The length of ``parts`` equal spans that cover ``blocks`` and overlap by two margins at least."""
    return min(blocks, -(-(blocks + 2 * margin * (parts - 1)) // parts))


def _latent(begin: int, end: int) -> slice:
    return slice(begin // LATENT_STRIDE, end // LATENT_STRIDE)
