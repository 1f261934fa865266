"""Looks inside a frame: its latents, the scales that the entropy model predicted, and the bits of every element.

docs/notebooks/look_inside.ipynb shows what can be seen with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel, fill
from aeic.latent_codec import LatentCodec
from aeic.passes import PASS_COUNT, gather, pass_mask, scatter
from aeic.tables import PRECISION, Rows, gaussian_scales


@dataclass(frozen=True)
class FrameContent:
    """What a frame holds, in the units that were coded. Bits are ideal code lengths."""

    y_hat: NDArray[np.float32]
    """The latents with their gain, (M, h, w)."""
    symbols: NDArray[np.int16]
    """Integers of y: the latents minus their predicted means, (M, h, w)."""
    scales: NDArray[np.float64]
    """Predicted standard deviation of each element, (M, h, w); 0 where it is skipped and costs nothing."""
    y_bits: NDArray[np.float64]
    """(M, h, w)"""
    z_bits: NDArray[np.float64]
    """(Cz, hz, wz)"""

    def bits_by_pass(self) -> list[float]:
        """The bits of the four passes of y."""
        return [float(self.y_bits[pass_mask(index, *self.y_bits.shape)].sum()) for index in range(PASS_COUNT)]

    def bits_by_position(self, index: int | None = None) -> NDArray[np.float64]:
        """The bits at each position (h, w) of y: of pass ``index``, or of all passes."""
        bits = self.y_bits
        if index is not None:
            bits = np.where(pass_mask(index, *bits.shape), bits, 0.0)
        total: NDArray[np.float64] = bits.sum(axis=0)
        return total

    @property
    def bits(self) -> float:
        """All bits of y and z. The payload has some more: check value, the coder's last state and its rounding."""
        return float(self.y_bits.sum() + self.z_bits.sum())


def inspect(bundle: Bundle, data: bytes, threads: int = 1) -> FrameContent:
    """Decode the entropy-coded part of a frame and compute the bits of every element.

    Raises ``BitstreamError`` as :meth:`aeic.latent_codec.LatentCodec.decode` does.
    """
    decoded = LatentCodec(bundle, threads).decode_symbols(data)
    model = EntropyModel(bundle, threads)
    base = model.hyper_synthesis(decoded.z_symbols[None], *decoded.y_hat.shape[1:])
    indexes = np.full(decoded.y_hat.shape, -1, np.int8)
    for index in range(PASS_COUNT):
        _, found = model.context(index, base)
        indexes += scatter(found[0] + np.int8(1), index)
        base = fill(base, index, gather(decoded.y_hat[None], index))
    is_coded = indexes >= 0
    scales, y_bits = np.zeros(indexes.shape), np.zeros(indexes.shape)
    scales[is_coded] = gaussian_scales()[indexes[is_coded]]
    y_bits[is_coded] = _bits(bundle.tables.y, decoded.symbols[is_coded], indexes[is_coded])
    channels = np.broadcast_to(np.arange(len(decoded.z_symbols))[:, None, None], decoded.z_symbols.shape)
    z_bits = _bits(bundle.tables.z[decoded.frame.rate], decoded.z_symbols.ravel(), channels.ravel())
    return FrameContent(decoded.y_hat, decoded.symbols, scales, y_bits, z_bits.reshape(decoded.z_symbols.shape))


def _bits(rows: Rows, values: NDArray[np.integer], ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """The ideal code length of each value under the table of its id."""
    bits: NDArray[np.float64] = PRECISION - np.log2(rows.freqs[rows.places(values, ids.astype(np.int64))])
    return bits
