"""Latents to a frame and a frame to latents, with the quantiser, the entropy model, the tables and the coder.

    encode:  y -> gain, quantise -> z, then the four passes -> rANS (check value first) -> header + payload
    decode:  header (bitstream.py) -> fingerprint, rate point -> z, then the four passes -> check value -> y_hat

A frame is hostile. ``Frame.parse`` has checked its sides, which determine every size in memory, before anything is
allocated. Services also refuse a payload that is too short for its size (:func:`least_payload_bytes`). Called by the
edge's Encoder (edge_encoder/encoding/encoder.py) and the cloud's Decoder (cloud_decoder/inference/decoder.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aeic import rans
from aeic.bitstream import MAX_PAYLOAD_BYTES, MAX_SIDE, Frame
from aeic.bundle import Bundle
from aeic.colour_statistics import ColourStatistics
from aeic.entropy_model import EntropyDecoderModel, EntropyEncoderModel, EntropyModel, Symbols, fill
from aeic.errors import BitstreamError, BundleError, Damaged, TooLarge, WrongModel
from aeic.passes import PASS_COUNT, gather, scatter
from aeic.quantise import Floats, check_value, dequantise, digest, hyper_size, quantise_hyper

_SLACK_BITS = 256


def least_payload_bytes(bundle: Bundle, frame: Frame) -> int:
    """What z alone costs in a frame of this size and rate, where each of its symbols is the most probable one.

    No picture has a shorter payload; y may cost nothing, since its elements can be skipped. Once the coder's state has
    reached 2**32, each symbol adds at least 255/256 of its ideal length; ``_SLACK_BITS`` accounts for those before. A
    shorter payload is possible in theory only: all of z would have to be at the outermost value of its tables, and the
    check value would have to be less than the weight of that value. The decoder itself therefore accepts it; services
    refuse it before they reserve memory for the size in its header.
    """
    height, width = hyper_size(*frame.latent_size)
    bits = height * width * bundle.tables.z[frame.rate].least_bits
    return max(1, int((0.995 * bits - _SLACK_BITS) / 8))


@dataclass(frozen=True)
class Latents:
    """A decoded frame, before the synthesis.

    ``y_hat`` (M, h, w) float32 with the gain undone: what the synthesis takes. ``symbols`` (M, h, w) int16: what was
    coded. ``digest``: SHA-256 in hex of y_hat before the gain was undone.
    """

    y_hat: Floats
    symbols: Symbols
    frame: Frame
    digest: str


@dataclass(frozen=True)
class DecodedSymbols:
    """A decoded frame as the specification defines it: everything is in the units that were coded.

    ``z_symbols`` (Cz, hz, wz) int32, ``symbols`` (M, h, w) int16, ``y_hat`` (M, h, w) float32 before the gain is
    undone.
    """

    z_symbols: NDArray[np.int32]
    symbols: Symbols
    y_hat: Floats
    frame: Frame

    @property
    def digest(self) -> str:
        """SHA-256 of ``y_hat`` in hex: what two machines compare."""
        return digest(self.y_hat)


class LatentCodec:
    """The codec of one bundle. ``threads`` for its graphs, 0 for all cores; safe to share between threads.

    ``max_pixels`` bounds what a frame may ask of :meth:`decode`. ``decoding`` and ``encoding`` take the place of the
    bundle's graphs, for example on a GPU; they must give the same numbers bit for bit.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        max_pixels: int = MAX_SIDE * MAX_SIDE,
        decoding: EntropyDecoderModel | None = None,
        encoding: EntropyEncoderModel | None = None,
    ) -> None:
        self.bundle = bundle
        self.max_pixels = max_pixels
        self._model = EntropyModel(bundle, threads)
        self._decoding = decoding
        self._encoding = encoding

    def encode(self, y: Floats, rate: int, width: int, height: int, colour: ColourStatistics | None = None) -> bytes:
        """Code y (M, h, w) float32, as the analysis graph gave it, into a whole frame.

        ``width`` and ``height`` are the picture's before padding, ``colour`` the statistics that the decoded picture is
        to have; without them the frame has version 1. ``ValueError`` if y has another shape or dtype,
        ``RateError`` for an unknown rate, ``BundleError`` if the model gave numbers that are not finite, ``TooLarge``
        for a frame over ``MAX_PAYLOAD_BYTES`` (a huge picture full of detail).
        """
        tables = self.bundle.tables
        number = self.bundle.rate(rate).number
        frame = Frame(width, height, number, self.bundle.fingerprint, b"", colour)
        if y.shape != (self.bundle.channels, *frame.latent_size) or y.dtype != np.float32:
            wanted = (self.bundle.channels, *frame.latent_size)
            raise ValueError(f"y is {y.dtype} {y.shape}: a {width}x{height} picture needs float32 {wanted}")
        if not np.isfinite(y).all():
            raise BundleError(f"the analysis of bundle {self.bundle.name} gave numbers that are not finite")
        y = np.ascontiguousarray(y * tables.gains[number][:, None, None])
        model = self._encoding or self._model
        z_symbols = quantise_hyper(model.hyper_analysis(y), tables.medians, tables.z[number])
        symbols, indexes, y_hat = model.quantise(y, z_symbols)
        if not np.isfinite(y_hat).all():
            raise BundleError(f"the entropy model of bundle {self.bundle.name} gave numbers that are not finite")
        runs: list[rans.Run] = [(z_symbols.ravel(), _channel_ids(z_symbols.shape), tables.z[number])]
        for index in range(PASS_COUNT):
            values, ids = gather(symbols, index).ravel(), gather(indexes, index).ravel()
            coded = np.flatnonzero(ids >= 0)
            runs.append((values[coded], ids[coded], tables.y))
        check = check_value(z_symbols, symbols, y_hat, number, width, height, frame.packed_colour)
        try:
            payload = rans.encode(runs, check)
        except ValueError as error:
            raise BundleError(
                f"the entropy model of bundle {self.bundle.name} does not fit its tables: {error}"
            ) from error
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise TooLarge(
                f"the frame would have {len(payload)} bytes of payload, over the limit of {MAX_PAYLOAD_BYTES}:"
                " choose a lower rate point or scale the picture down"
            )
        return replace(frame, payload=payload).to_bytes()

    def decode(self, data: bytes) -> Latents:
        """Decode a whole frame of any origin to what the synthesis takes. Errors, costs: :meth:`decode_symbols`."""
        return self._latents(self.decode_symbols(data))

    def decode_symbols(self, data: bytes) -> DecodedSymbols:
        """Decode a whole frame of any origin. ``BitstreamError`` in one of its kinds if it is not one of this bundle's.

        The refusals and their order are those of docs/bitstream.md section 5.2. Costs what a frame of the size in its
        header costs, whatever its payload: ``max_pixels`` is the bound.
        """
        (outcome,) = self._decode_batch([self._parse(data)])
        if isinstance(outcome, BitstreamError):
            raise outcome
        return outcome

    def decode_many(self, frames: Sequence[bytes]) -> list[Latents | BitstreamError]:
        """:meth:`decode` of several frames, in order. The result of a frame that fails is its error.

        Frames whose latents have one size share every call of the entropy model, which is what a GPU needs.
        """
        outcomes: dict[int, Latents | BitstreamError] = {}
        sizes: defaultdict[tuple[int, int], list[tuple[int, Frame]]] = defaultdict(list)
        for number, data in enumerate(frames):
            try:
                frame = self._parse(data)
            except BitstreamError as error:
                outcomes[number] = error
            else:
                sizes[frame.latent_size].append((number, frame))
        for same in sizes.values():
            for (number, _), outcome in zip(same, self._decode_batch([frame for _, frame in same]), strict=True):
                outcomes[number] = outcome if isinstance(outcome, BitstreamError) else self._latents(outcome)
        return [outcomes[number] for number in range(len(frames))]

    def _parse(self, data: bytes) -> Frame:
        """The frame, after all checks of its header."""
        frame = Frame.parse(data, max_pixels=self.max_pixels)
        if frame.fingerprint != self.bundle.fingerprint:
            raise WrongModel(
                f"the frame was made with bundle {frame.fingerprint}, this is {self.bundle.fingerprint}"
                f" ({self.bundle.name}): decode it with the bundle that made it"
            )
        if frame.rate >= len(self.bundle.rates):
            raise Damaged(f"the frame names rate point {frame.rate}, which its bundle does not have: fetch it again")
        height, width = frame.latent_size
        hyper_elements = int(np.prod(self._hyper_shape(frame)))
        if len(frame.payload) > 4 * (self.bundle.channels * height * width + hyper_elements):
            raise Damaged("the frame has more bytes than its picture can need: fetch it again")
        return frame

    def _hyper_shape(self, frame: Frame) -> tuple[int, int, int]:
        return (self.bundle.hyper_channels, *hyper_size(*frame.latent_size))

    def _decode_batch(self, frames: Sequence[Frame]) -> list[DecodedSymbols | BitstreamError]:
        """Frames of one latent size. Damage shows when a frame's reader is made or at its end: any words in between
        decode to some symbols. A reader that refuses earlier takes its frame out of the batch."""
        outcomes: list[DecodedSymbols | BitstreamError | None] = [None] * len(frames)
        readers: dict[int, rans.Decoder] = {}
        hyper: dict[int, NDArray[np.int32]] = {}
        for number, frame in enumerate(frames):
            shape = self._hyper_shape(frame)
            try:
                readers[number] = reader = rans.Decoder(frame.payload)
                values = reader.read(_channel_ids(shape), self.bundle.tables.z[frame.rate])
                hyper[number] = values.reshape(shape)
            except BitstreamError as error:
                outcomes[number] = error
        live = [number for number, outcome in enumerate(outcomes) if outcome is None]
        if not live:
            return [outcome for outcome in outcomes if outcome is not None]
        model = self._decoding or self._model
        base = model.hyper_synthesis(np.stack([hyper[number] for number in live]), *frames[0].latent_size)
        symbols = np.zeros(base.shape, np.int16)
        for index in range(PASS_COUNT):
            means, ids = model.context(index, base)
            found = np.zeros(ids.shape, np.int16)
            whole: list[int] = []
            for row, number in enumerate(live):
                coded = ids[row] >= 0
                try:
                    found[row][coded] = readers[number].read(ids[row][coded], self.bundle.tables.y)
                    whole.append(row)
                except BitstreamError as error:
                    outcomes[number] = error
            base = fill(base, index, dequantise(found, means))
            symbols += scatter(found, index)
            if len(whole) < len(live):
                live, base, symbols = [live[row] for row in whole], base[whole], symbols[whole]
                if not live:
                    break
        for row, number in enumerate(live):
            outcomes[number] = self._checked(frames[number], readers[number], hyper[number], symbols[row], base[row])
        return [outcome for outcome in outcomes if outcome is not None]

    def _checked(
        self, frame: Frame, reader: rans.Decoder, hyper: NDArray[np.int32], symbols: Symbols, base: Floats
    ) -> DecodedSymbols | BitstreamError:
        """What was coded, if the stream ends where it should and its check value holds."""
        try:
            check = reader.finish()
        except BitstreamError as error:
            return error
        sizes = frame.rate, frame.width, frame.height
        if check != check_value(hyper, symbols, base, *sizes, frame.packed_colour):
            return Damaged(
                "the frame's check value does not hold: it was changed on the way, or this machine computes the entropy"
                " model differently from the one that made it"
            )
        return DecodedSymbols(hyper, symbols, base, frame)

    def _latents(self, decoded: DecodedSymbols) -> Latents:
        """With the gain undone: what the synthesis takes."""
        y_hat = decoded.y_hat * self.bundle.tables.inverse_gains[decoded.frame.rate][:, None, None]
        return Latents(y_hat, decoded.symbols, decoded.frame, decoded.digest)


def _channel_ids(shape: tuple[int, ...]) -> rans.Ints:
    """The table of each element of z, in C order: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.int16), shape[1] * shape[2])
