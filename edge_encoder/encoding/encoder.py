"""Picture to frame: the Python API of the edge, used by the service and the command line.

>>> encoder = Encoder.from_bundle()                          # doctest: +SKIP
>>> encoder.encode(open("boat.jpg", "rb").read()).data       # doctest: +SKIP
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MAX_SIDE, MIN_SIDE
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.errors import InputError, RateError, TooLarge
from aeic.latent_codec import LatentCodec
from aeic.pixels import save_picture
from aeic.runtime.device_check import CHECK_EVERY
from edge_encoder.encoding import ColourFixChoice, EntropyChoice, ProviderChoice
from edge_encoder.encoding.analysis import GPU_PROVIDERS, Analysis
from edge_encoder.encoding.gpu_entropy import GpuEntropy, open_gpu_entropy
from edge_encoder.encoding.picture_reader import PictureReader
from edge_encoder.encoding.scaling import resized, scaled_size

COLOUR_FIX_PIXELS = 768 * 768
"""The authors' program corrects the colours of larger pictures."""
_SIZES_TRIED = 6
_CLOSE = 0.9
"""A file of this share of the limit is close enough."""
_HOPELESS = 4
"""A picture whose file is expected to have this many times the bytes that it may have is scaled down untried."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One frame. `data` is the whole .aeic file, `bpp` its bits per pixel of the coded picture, `rate` the number of
    the rate point, `timings` seconds of the stages read, analyse, entropy. The picture that came in had
    `original_width` x `original_height` pixels; the coded one, `width` x `height`, may have been scaled down."""

    data: bytes
    width: int
    height: int
    bpp: float
    rate: int
    original_width: int
    original_height: int
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Coded:
    data: bytes
    width: int
    height: int
    rate: int
    analyse_seconds: float


class Encoder:
    """The encoder of one bundle; safe to share between threads, each encode being independent. `reader` reads picture
    files, in this process by default. `colour_fix` says which frames carry colour statistics (version 2 of the
    bitstream) where the call does not."""

    def __init__(
        self,
        bundle: Bundle,
        analysis: Analysis,
        max_pixels: int,
        *,
        threads: int = 0,
        gpu_entropy: GpuEntropy | None = None,
    ) -> None:
        """``threads`` of the entropy model on the CPU; ``gpu_entropy`` takes its place."""
        self.bundle = bundle
        self.analysis = analysis
        self.max_pixels = max_pixels
        self.gpu_entropy = gpu_entropy
        self._codec = LatentCodec(bundle, threads, encoding=gpu_entropy)
        self.reader = PictureReader()
        self.colour_fix: ColourFixChoice = "never"

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | None = None,
        threads: int = 0,
        *,
        provider: ProviderChoice = "auto",
        entropy: EntropyChoice = "auto",
        entropy_check_frames: int = CHECK_EVERY,
        cuda_graphs: bool = False,
        max_pixels: int = MAX_SIDE * MAX_SIDE,
    ) -> Encoder:
        """The encoder of the bundle in the folder `path` (default: AEIC_BUNDLE, else the one that ships).

        `threads` are used by the analysis, 0 takes every core; the entropy graphs of small models run in one thread.
        `entropy`: where the entropy model runs; `auto` takes the GPU if the analysis runs there and the bundle has the
        graph. Every `entropy_check_frames`th frame of a GPU is checked on the CPU. `cuda_graphs`: it is replayed there
        as CUDA graphs. BundleError when the bundle is missing, altered, or the provider does not work.
        """
        bundle = Bundle.load(path)
        # With a large model the margins of tiles cost more than memory does, so 1920x1088 is analysed whole.
        sizes = {"whole_pixels": 1 << 21, "tile_pixels": 1 << 20} if bundle.shares_threads else {}
        analysis = Analysis(bundle, provider=provider, threads=threads, **sizes)
        of_entropy = threads if bundle.shares_threads else 1
        on_gpu = analysis.provider in GPU_PROVIDERS
        gpu_entropy = open_gpu_entropy(
            bundle,
            entropy,
            gpu=on_gpu,
            threads=of_entropy,
            check_every=entropy_check_frames,
            cuda_graphs=cuda_graphs,
        )
        return cls(bundle, analysis, max_pixels, threads=of_entropy, gpu_entropy=gpu_entropy)

    def encode(
        self,
        picture: bytes | NDArray[np.uint8],
        rate: int | str | None = None,
        max_bytes: int | None = None,
        target_bytes: int | None = None,
        max_side: int | None = None,
        *,
        stretch: bool = False,
        colour_fix: ColourFixChoice | None = None,
    ) -> Encoded:
        """Encodes the bytes of a picture file (aeic.pixels.load_picture), or an (H, W, 3) uint8 array.

        `rate`: number or name of a rate point, by default the bundle's. A picture with a side over `max_side` pixels is
        scaled down first. With `max_bytes` the best rate point (at most `rate`, if given) whose whole file fits is
        taken, and if none fits, the picture is scaled down until one does. `target_bytes` does the same, but takes the
        smallest file there is when nothing fits. `stretch` spreads the grey levels of a 16-bit file. `colour_fix` adds
        the 12 bytes with which the decoder corrects the colours: `always`, `never`, or `auto` as the authors do, for
        more than COLOUR_FIX_PIXELS; by default the encoder's. ValueError for another `colour_fix` or a limit below 1,
        TypeError for a path and the like, InputError for a picture that cannot be taken, RateError for an unknown rate
        or when nothing fits into `max_bytes`.
        """
        fix = self.colour_fix if colour_fix is None else colour_fix
        if fix not in get_args(ColourFixChoice):
            raise ValueError(f"colour_fix={fix!r}: choose one of {', '.join(get_args(ColourFixChoice))}")
        for name, limit in (("max_bytes", max_bytes), ("target_bytes", target_bytes), ("max_side", max_side)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name}={limit}: give a number of at least 1, or None")
        begin = time.perf_counter()
        if isinstance(picture, bytes | bytearray | memoryview):
            rgb = self.reader.load(bytes(picture), max_pixels=self.max_pixels, stretch=stretch)
        else:
            rgb = _checked(picture)
        original_height, original_width, _ = rgb.shape
        if original_height * original_width > self.max_pixels:
            raise TooLarge(
                f"the picture has {original_height * original_width} pixels: at most {self.max_pixels} are accepted,"
                " scale it down"
            )
        colour = fix == "always" or (fix == "auto" and original_width * original_height > COLOUR_FIX_PIXELS)
        wanted = self.bundle.rate(rate).number  # an unknown rate costs no analysis
        if max_side is not None:
            rgb = resized(rgb, scaled_size(original_width, original_height, max_side=max_side))
        read = time.perf_counter()
        limits = [limit for limit in (max_bytes, target_bytes) if limit is not None]
        if limits:
            ceiling = wanted if rate is not None else len(self.bundle.rates) - 1
            fitted = self._fitted(rgb, ceiling, min(limits), colour)
        else:
            height, width, _ = rgb.shape
            y = self.analysis(rgb)
            statistics = ColourStatistics.of(rgb) if colour else None
            del rgb
            analysed = time.perf_counter()
            data = self._codec.encode(y, wanted, width, height, statistics)
            fitted = _Coded(data, width, height, wanted, analysed - read)
        data = fitted.data
        if max_bytes is not None and len(data) > max_bytes:
            raise RateError(
                f"the smallest frame of this picture has {len(data)} bytes, more than max_bytes={max_bytes};"
                " allow more bytes"
            )
        entropy = time.perf_counter() - read - fitted.analyse_seconds
        timings = {"read": read - begin, "analyse": fitted.analyse_seconds, "entropy": entropy}
        bpp = 8 * len(data) / (fitted.width * fitted.height)
        return Encoded(data, fitted.width, fitted.height, bpp, fitted.rate, original_width, original_height, timings)

    def _fitted(self, rgb: NDArray[np.uint8], ceiling: int, limit: int, colour: bool) -> _Coded:
        """The frame of at most `limit` bytes, scaled down where no rate point fits; the smallest one where nothing
        fits."""
        height, width, _ = rgb.shape
        at_size = functools.partial(self._at_size, rgb, limit, colour)
        spent = 0.0
        smallest: _Coded | None = None
        # A large picture that will certainly not fit costs no analysis.
        if width * height * self.bundle.rates[0].bpp / 8 <= _HOPELESS * limit:
            whole = at_size((width, height), ceiling)
            if len(whole.data) <= limit:
                return whole
            smallest, spent = whole, whole.analyse_seconds
        best: _Coded | None = None
        # At the middle rate points a smaller picture, enlarged again, is closer to the original than a larger one at
        # the lowest: by 0.1 to 0.9 dB with the model that ships.
        rate = min(ceiling, len(self.bundle.rates) // 2)
        pixels, low, high = 8 * limit / self.bundle.rates[rate].bpp, 0.0, float(width * height)
        tried = {(width, height)}
        for _ in range(_SIZES_TRIED):
            size = scaled_size(width, height, pixels=min(pixels, 0.9 * high))
            if size in tried:
                break
            tried.add(size)
            made = at_size(size, rate, lowest=rate)
            spent += made.analyse_seconds
            if len(made.data) <= limit:
                best, low = made, float(size[0] * size[1])
                if len(made.data) > _CLOSE * limit:
                    break
            else:
                high = float(size[0] * size[1])
                if smallest is None or len(made.data) < len(smallest.data):
                    smallest = made
            growth = limit / len(made.data)  # files grow more slowly than the number of pixels
            pixels = min(max(size[0] * size[1] * growth, low + 0.1 * (high - low)), high - 0.1 * (high - low))
        if best is None:
            # Nothing fits at the middle rate point: the smallest size and any rate point.
            made = at_size(scaled_size(width, height, pixels=1), rate)
            spent += made.analyse_seconds
            best = made if smallest is None or len(made.data) <= len(smallest.data) else smallest
        elif rate < ceiling:
            better = at_size((best.width, best.height), ceiling, lowest=rate)
            spent += better.analyse_seconds
            best = better
        return replace(best, analyse_seconds=spent)

    def _at_size(
        self,
        rgb: NDArray[np.uint8],
        limit: int,
        colour: bool,
        size: tuple[int, int],
        ceiling: int,
        lowest: int = 0,
    ) -> _Coded:
        """The frame of the picture at `size` (width, height): :meth:`_fit`."""
        begin = time.perf_counter()
        width, height = size
        scaled = resized(rgb, size)
        y = self.analysis(scaled)
        statistics = ColourStatistics.of(scaled) if colour else None
        del scaled
        analysed = time.perf_counter() - begin
        encode = functools.partial(self._codec.encode, y, width=width, height=height, colour=statistics)
        rate, data = self._fit(encode, ceiling, limit, lowest)
        return _Coded(data, width, height, rate, analysed)

    def _fit(self, encode: Callable[[int], bytes], ceiling: int, limit: int, lowest: int) -> tuple[int, bytes]:
        """The highest rate point from `lowest` to `ceiling` whose file has at most `limit` bytes, else `lowest`; files
        grow with the rate point, so halving finds it in two or three tries. `encode` makes the file of a rate point."""
        best = (lowest, b"")
        low, high = lowest, ceiling
        while low <= high:
            middle = (low + high) // 2
            try:
                data = encode(middle)
            except TooLarge:  # over what any frame may have: the next lower one may fit
                if middle == lowest:
                    raise
                high = middle - 1
                continue
            if len(data) <= limit:
                best, low = (middle, data), middle + 1
            else:
                high = middle - 1
                if middle == lowest:
                    best = (lowest, data)
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
        raise InputError(
            f"the array is {rgb.shape[1]}x{rgb.shape[0]}: sides from {MIN_SIDE} to {MAX_SIDE} are accepted"
        )
    return rgb
