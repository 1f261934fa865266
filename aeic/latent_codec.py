"""Latents to a frame, and a frame to latents: the one way through quantiser, entropy model, tables and coder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aeic import rans
from aeic.bitstream import MAX_SIDE, Frame
from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel, Symbols
from aeic.errors import BundleError, Damaged, WrongModel
from aeic.passes import PASS_COUNT, gather, scatter
from aeic.quantise import Floats, check_value, dequantise, digest, hyper_size, quantise_hyper


@dataclass(frozen=True)
class Latents:
    """A decoded frame, short of being a picture.

    ``y_hat`` (M, h, w) float32 with the gain undone: what the synthesis takes. ``symbols`` (M, h, w) int16: what was
    coded. ``digest``: SHA-256 in hex of y_hat before the gain was undone.
    """

    y_hat: Floats
    symbols: Symbols
    frame: Frame
    digest: str


class LatentCodec:
    """The codec of one bundle. ``threads`` for its graphs, 0 for all cores; safe to share between threads.

    ``max_pixels`` bounds what a frame may ask of :meth:`decode`.
    """

    def __init__(self, bundle: Bundle, threads: int = 0, max_pixels: int = MAX_SIDE * MAX_SIDE) -> None:
        self.bundle = bundle
        self.max_pixels = max_pixels
        self._model = EntropyModel(bundle, threads)

    def encode(self, y: Floats, rate: int, width: int, height: int) -> bytes:
        """Code y (M, h, w) float32, as the analysis graph gave it, into a whole frame.

        ``width`` and ``height`` are the picture's before padding. ``ValueError`` if y has another shape or dtype,
        ``RateError`` for an unknown rate, ``BundleError`` if the model gave numbers that are not finite.
        """
        tables = self.bundle.tables
        number = self.bundle.rate(rate).number
        frame = Frame(width, height, number, self.bundle.fingerprint, b"")
        if y.shape != (self.bundle.channels, *frame.latent_size) or y.dtype != np.float32:
            wanted = (self.bundle.channels, *frame.latent_size)
            raise ValueError(f"y is {y.dtype} {y.shape}: a {width}x{height} picture needs float32 {wanted}")
        if not np.isfinite(y).all():
            raise BundleError(f"the analysis of bundle {self.bundle.name} gave numbers that are not finite")
        y = np.ascontiguousarray(y * tables.gains[number][:, None, None])
        z_symbols = quantise_hyper(self._model.hyper_analysis(y), tables.medians, tables.z[number])
        symbols, indexes, y_hat = self._model.quantise(y, z_symbols)
        if not np.isfinite(y_hat).all():
            raise BundleError(f"the entropy model of bundle {self.bundle.name} gave numbers that are not finite")
        runs: list[rans.Run] = [(z_symbols.ravel(), _channel_ids(z_symbols.shape), tables.z[number])]
        for index in range(PASS_COUNT):
            values, ids = gather(symbols, index).ravel(), gather(indexes, index).ravel()
            coded = np.flatnonzero(ids >= 0)
            runs.append((values[coded], ids[coded], tables.y))
        check = check_value(z_symbols, symbols, y_hat, number, width, height)
        try:
            payload = rans.encode(runs, check)
        except ValueError as error:
            raise BundleError(
                f"the entropy model of bundle {self.bundle.name} does not fit its tables: {error}"
            ) from error
        return replace(frame, payload=payload).to_bytes()

    def decode(self, data: bytes) -> Latents:
        """Decode a whole frame of any origin. ``BitstreamError`` in one of its kinds if it is not one of this bundle's.

        Costs what a frame of the size in its header costs, whatever its payload: ``max_pixels`` is the bound.
        """
        frame = Frame.parse(data, max_pixels=self.max_pixels)
        tables = self.bundle.tables
        if frame.fingerprint != self.bundle.fingerprint:
            raise WrongModel(
                f"the frame was made with bundle {frame.fingerprint}, this is {self.bundle.fingerprint}"
                f" ({self.bundle.name}): decode it with the bundle that made it"
            )
        if frame.rate >= len(self.bundle.rates):
            raise Damaged(f"the frame names rate point {frame.rate}, which its bundle has not: fetch it again")
        height, width = frame.latent_size
        hyper_shape = (self.bundle.hyper_channels, *hyper_size(height, width))
        if len(frame.payload) > 4 * (self.bundle.channels * height * width + int(np.prod(hyper_shape))):
            raise Damaged("the frame has more bytes than its picture can need: fetch it again")
        decoder = rans.Decoder(frame.payload)
        z_symbols = decoder.read(_channel_ids(hyper_shape), tables.z[frame.rate]).reshape(hyper_shape)
        base = self._model.hyper_synthesis(z_symbols, height, width)
        symbols = np.zeros(base.shape, np.int16)
        for index in range(PASS_COUNT):
            means, ids = self._model.context(index, base)
            found = np.zeros(ids.shape, np.int16)
            coded = ids >= 0
            found[coded] = decoder.read(ids[coded], tables.y)
            base = self._model.fill(base, index, dequantise(found, means))
            symbols += scatter(found, index)
        check = decoder.finish()
        if check != check_value(z_symbols, symbols, base, frame.rate, frame.width, frame.height):
            raise Damaged(
                "the frame's check value does not hold: it was changed on the way, or this machine computes the entropy"
                " model differently from the one that made it"
            )
        y_hat = base * tables.inverse_gains[frame.rate][:, None, None]
        return Latents(y_hat, symbols, frame, digest(base))


def _channel_ids(shape: tuple[int, ...]) -> rans.Ints:
    """The table of each element of z, in C order: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.int16), shape[1] * shape[2])
