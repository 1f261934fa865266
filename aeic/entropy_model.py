"""The entropy model: hyper analysis, hyper synthesis and context passes. No other module runs these graphs.

Both sides must get bit-identical numbers from it, or the frame cannot be decoded (docs/determinism.md). This
module therefore only runs graphs, and all arithmetic between them is element-wise (aeic.quantise).

The decoder's arrays are batched over pictures of one size: base, means (N, M, h, w) float32, indexes (N, M, h, w) int8,
z (N, Cz, hz, wz). Arrays that only the encoder needs are of one picture and have no batch axis.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.passes import PASS_COUNT, gather, pass_mask, scatter
from aeic.profiles import HYPER_STRIDE
from aeic.quantise import Floats, dequantise, hyper_size, pad_latent, quantise_residual
from aeic.runtime import memory

Symbols = NDArray[np.int16]
Indexes = NDArray[np.int8]


_LARGE_BYTES = 8 << 20
"""Bytes of an input after whose run the arena is emptied: the float32 latents of a picture of 16 megapixels with 128
channels. To empty it after smaller ones would take from the synthesis the memory that it keeps."""


def fill(base: Floats, index: int, values: Floats) -> Floats:
    """``base`` (..., M, h, w) with the elements of pass ``index`` replaced by ``values`` (..., M/4, h, w)."""
    filled: Floats = np.where(pass_mask(index, *base.shape[-3:]), scatter(values, index), base)
    return filled


class EntropyDecoderModel(Protocol):
    """What decoding needs of an entropy model. Every implementation gives the same numbers, bit for bit."""

    def hyper_synthesis(self, z_symbols: NDArray[np.int32], height: int, width: int) -> Floats:
        """h_s: symbols of z (N, Cz, hz, wz) to the first base, cropped to (N, M, height, width)."""

    def context(self, index: int, base: Floats) -> tuple[Floats, Indexes]:
        """Means and table indexes of the elements of pass ``index``, gathered: (N, M/4, h, w) each."""


class EntropyEncoderModel(Protocol):
    """What encoding needs of an entropy model. Every implementation gives the same numbers, bit for bit, but for z,
    which is the encoder's own choice."""

    def hyper_analysis(self, y: Floats) -> Floats:
        """h_a: y with its gain (M, h, w), any even sides, to z (Cz, hz, wz) float32."""

    def quantise(self, y: Floats, z_symbols: NDArray[np.int32]) -> tuple[Symbols, Indexes, Floats]:
        """All four passes: y with its gain to ``(symbols, indexes, y_hat)``, each (M, h, w)."""


class EntropyModel:
    """The graphs of one bundle's entropy model; ``threads`` as for :meth:`Bundle.session`."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._bundle = bundle
        self._threads = threads

    def hyper_analysis(self, y: Floats) -> Floats:
        """h_a: y with its gain (M, h, w), any even sides, to z (Cz, hz, wz) float32."""
        (z,) = self._run("hyper_analysis", y=pad_latent(y)[None])
        return self._expect(z[0], (self._bundle.hyper_channels, *hyper_size(*y.shape[1:])), np.float32)

    def hyper_synthesis(self, z_symbols: NDArray[np.int32], height: int, width: int) -> Floats:
        """h_s: symbols of z (N, Cz, hz, wz) to the first base, cropped to (N, M, height, width)."""
        (base,) = self._run("hyper_synthesis", z_symbols=z_symbols)
        sides = tuple(HYPER_STRIDE * side for side in hyper_size(height, width))
        full = self._expect(base, (len(z_symbols), self._bundle.channels, *sides), np.float32)
        return np.ascontiguousarray(full[..., :height, :width])

    def context(self, index: int, base: Floats) -> tuple[Floats, Indexes]:
        """Means and table indexes of the elements of pass ``index``, gathered: (N, M/4, h, w) each."""
        means, indexes = self._run(f"context_{index}", base=base)
        means = self._expect(means, base.shape, np.float32)
        return gather(means, index), gather(self._indexes(indexes, base.shape), index)

    def quantise(self, y: Floats, z_symbols: NDArray[np.int32]) -> tuple[Symbols, Indexes, Floats]:
        """All four passes of the encoder: y with its gain to ``(symbols, indexes, y_hat)``, each (M, h, w)."""
        if self._bundle.has("entropy.onnx"):
            symbols, indexes, y_hat = self._run("entropy", y=y[None], z_symbols=z_symbols[None])
            symbols = self._expect(symbols[0], y.shape, np.int16)
            indexes = self._indexes(indexes[0], y.shape)
            if symbols[indexes < 0].any():
                raise BundleError(
                    f"entropy.onnx of bundle {self._bundle.name} codes elements that it must skip: export it again"
                )
            return symbols, indexes, self._expect(y_hat[0], y.shape, np.float32) + np.float32(0)
        rows = self._bundle.tables.y
        base = self.hyper_synthesis(z_symbols[None], *y.shape[1:])
        symbols, indexes = np.zeros(y.shape, np.int16), np.full(y.shape, -1, np.int8)
        for index in range(PASS_COUNT):
            means, tables = self.context(index, base)
            found = quantise_residual(gather(y, index), means[0], tables[0], rows)
            base = fill(base, index, dequantise(found, means[0])[None])
            symbols += scatter(found, index)
            indexes += scatter(tables[0] + np.int8(1), index)
        return symbols, indexes, base[0]

    def _run(self, name: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        session = self._bundle.session(name, self._threads)
        large = max(array.nbytes for array in inputs.values()) > _LARGE_BYTES
        try:
            outputs: list[NDArray[Any]] = session.run(None, inputs, memory.shrinking() if large else None)
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            raise BundleError(f"{name}.onnx of bundle {self._bundle.name} failed ({error}): export it again") from error
        return outputs

    def _indexes(self, indexes: NDArray[Any], shape: tuple[int, ...]) -> Indexes:
        checked: Indexes = self._expect(indexes, shape, np.int8)
        if checked.min() < -1 or checked.max() >= len(self._bundle.tables.y):
            raise BundleError(f"a context graph of bundle {self._bundle.name} gave an index without a table")
        return checked

    def _expect(self, array: NDArray[Any], shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
        if array.shape != shape or array.dtype != dtype:
            raise BundleError(
                f"a graph of bundle {self._bundle.name} gave {array.dtype} {array.shape},"
                f" not {np.dtype(dtype)} {shape}: export it again"
            )
        return array
