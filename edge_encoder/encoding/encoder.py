"""Picture to frame: the Python API of the edge, used by the service and the command line.

>>> encoder = Encoder.from_bundle()                          # doctest: +SKIP
>>> encoder.encode(open("boat.jpg", "rb").read()).data       # doctest: +SKIP
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MAX_SIDE, MIN_SIDE
from aeic.bundle import Bundle
from aeic.errors import InputError, RateError, TooLarge
from aeic.latent_codec import LatentCodec
from aeic.pixels import load_picture, save_picture
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.analysis import Analysis, Latent


@dataclass(frozen=True, slots=True)
class Encoded:
    """One frame. `data` is the whole .aeic file, `bpp` its bits per pixel of the picture, `rate` the number of the rate
    point, `timings` seconds of the stages read, analyse, entropy."""

    data: bytes
    width: int
    height: int
    bpp: float
    rate: int
    timings: dict[str, float] = field(default_factory=dict)


class Encoder:
    """The encoder of one bundle; safe to share between threads, each encode being independent."""

    def __init__(self, bundle: Bundle, analysis: Analysis, codec: LatentCodec, max_pixels: int) -> None:
        self.bundle = bundle
        self.analysis = analysis
        self.max_pixels = max_pixels
        self._codec = codec
        # Reading takes seven bytes a pixel, up to 470 MB for the largest picture, so one picture is read at a time.
        self._reading = threading.Lock()

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | None = None,
        threads: int = 0,
        *,
        provider: ProviderChoice = "auto",
        max_pixels: int = MAX_SIDE * MAX_SIDE,
    ) -> Encoder:
        """The encoder of the bundle in the folder `path` (default: AEIC_BUNDLE, else the one that ships).

        `threads` are used by the analysis, 0 takes every core; the entropy graphs of small models run in one thread.
        BundleError when the bundle is missing, altered, or the provider does not work.
        """
        bundle = Bundle.load(path)
        # With a large model the margins of tiles cost more than memory does, so 1920x1088 is analysed whole.
        sizes = {"whole_pixels": 1 << 21, "tile_pixels": 1 << 20} if bundle.shares_threads else {}
        analysis = Analysis(bundle, provider=provider, threads=threads, **sizes)
        return cls(bundle, analysis, LatentCodec(bundle, threads if bundle.shares_threads else 1), max_pixels)

    def encode(
        self,
        picture: bytes | NDArray[np.uint8],
        rate: int | str | None = None,
        max_bytes: int | None = None,
        target_bytes: int | None = None,
    ) -> Encoded:
        """Encodes a JPEG, PNG or WebP file's bytes, or an (H, W, 3) uint8 array.

        `rate`: number or name of a rate point, by default the bundle's. With `max_bytes` the best rate point (at most
        `rate`, if given) whose whole file fits is taken; `target_bytes` does the same, but takes the lowest rate point
        when none fits. TypeError for a path and the like, InputError for a picture that cannot be taken, RateError for
        an unknown rate or when nothing fits into `max_bytes`.
        """
        begin = time.perf_counter()
        if isinstance(picture, bytes | bytearray | memoryview):
            with self._reading:
                rgb = load_picture(bytes(picture), max_pixels=self.max_pixels)
        else:
            rgb = _checked(picture)
        height, width, _ = rgb.shape
        if height * width > self.max_pixels:
            raise TooLarge(
                f"the picture has {height * width} pixels: at most {self.max_pixels} are taken, scale it down"
            )
        wanted = self.bundle.rate(rate).number  # an unknown rate costs no analysis
        read = time.perf_counter()
        y = self.analysis(rgb)
        del rgb
        analysed = time.perf_counter()
        limits = [limit for limit in (max_bytes, target_bytes) if limit is not None]
        if not limits:
            data = self._codec.encode(y, wanted, width, height)
        else:
            ceiling = wanted if rate is not None else len(self.bundle.rates) - 1
            wanted, data = self._fit(y, ceiling, min(limits), width, height)
        if max_bytes is not None and len(data) > max_bytes:
            raise RateError(
                f"the lowest rate point needs {len(data)} bytes for this picture, more than max_bytes={max_bytes};"
                " allow more bytes or send a smaller picture"
            )
        done = time.perf_counter()
        timings = {"read": read - begin, "analyse": analysed - read, "entropy": done - analysed}
        return Encoded(data, width, height, 8 * len(data) / (width * height), wanted, timings)

    def _fit(self, y: Latent, ceiling: int, limit: int, width: int, height: int) -> tuple[int, bytes]:
        """The highest rate point up to `ceiling` whose file has at most `limit` bytes, else the lowest; files grow with
        the rate point, so halving finds it in two or three tries."""
        best = (0, b"")
        low, high = 0, ceiling
        while low <= high:
            middle = (low + high) // 2
            try:
                data = self._codec.encode(y, middle, width, height)
            except TooLarge:  # over what any frame may have: the next lower one may fit
                if middle == 0:
                    raise
                high = middle - 1
                continue
            if len(data) <= limit:
                best, low = (middle, data), middle + 1
            else:
                high = middle - 1
                if middle == 0:
                    best = (0, data)
        return best

    def warm_up(self) -> float:
        """Encodes a small file of each format, so that every graph and image reader is loaded before the first
        request; the seconds it took."""
        begin = time.perf_counter()
        for form in ("jpeg", "png", "webp"):
            self.encode(save_picture(np.full((128, 128, 3), 128, np.uint8), form))
        return time.perf_counter() - begin


def _checked(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(rgb, np.ndarray):
        raise TypeError(
            f"a {type(rgb).__name__} is not a picture: pass the bytes of a file (Path.read_bytes) or an array"
        )
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise InputError(f"the array is {rgb.dtype} {rgb.shape}: give (H, W, 3) uint8")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in rgb.shape[:2]):
        raise InputError(f"the array is {rgb.shape[1]}x{rgb.shape[0]}: sides from {MIN_SIDE} to {MAX_SIDE} are taken")
    return rgb
