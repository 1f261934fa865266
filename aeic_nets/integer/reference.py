"""The reference implementation in numpy integers: slow and readable. All others must give the same results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.passes import PASS_COUNT, pass_mask
from aeic_nets.integer import network
from aeic_nets.integer.fake_quant import norm_floor
from aeic_nets.integer.gelu_table import gelu_table
from aeic_nets.integer.model import Exponents, IntegerModel, Layer, Site
from aeic_nets.integer.scale_index import cells, index_table

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Codes:
    """``values`` (N, C, H, W) int64 in steps of ``2**exponents[c]``."""

    values: NDArray[np.int64]
    exponents: Exponents
    bits: int = 8

    def limbs(self) -> list[tuple[int, NDArray[np.int64]]]:
        """(factor, codes -128..127), the most significant first; the sum of factor * codes is ``values``."""
        if self.bits == 8:
            return [(1, self.values)]
        high = (self.values + 128) // 256
        return [(256, high), (1, self.values - 256 * high)]


class NumpyOps:
    """The operations of :mod:`network` on numpy arrays; a stream is float32 (N, C, H, W)."""

    def __init__(self, model: IntegerModel) -> None:
        self._sites, self._layers = model.sites, model.layers

    def quantise(self, x: Floats, site: str) -> Codes:
        where = self._sites[site]
        return Codes(_round(x, where), np.full(x.shape[1], where.exponent), where.bits)

    def stream(self, x: Codes) -> Floats:
        return (x.values * 2.0 ** x.exponents[:, None, None]).astype(np.float32)

    def settle(self, x: Floats, site: str) -> Floats:
        where = self._sites[site]
        return (_round(x, where) * 2.0**where.exponent).astype(np.float32)

    def add(self, a: Floats, b: Floats) -> Floats:
        return a + b

    plus = add

    def conv(self, x: Codes, layer: str) -> Codes:
        return self.quantise(self.wide(x, layer), layer)

    def wide(self, x: Codes, layer: str) -> Floats:
        kept = self._layers[layer]
        step = kept.steps[:, None, None].astype(np.float32)
        total = kept.bias_value[:, None, None].astype(np.float32)
        for weight_factor, weight in zip((128, 1)[-len(kept.limbs) :], kept.limbs):
            for code_factor, codes in x.limbs():
                sums = _convolve(codes, weight, kept)
                total = total + sums.astype(np.float32) * (step * np.float32(weight_factor * code_factor))
        return total

    def gelu(self, x: Codes, site: str) -> Codes:
        where = self._sites[site]
        table = gelu_table(int(x.exponents[0]), where.exponent, where.shift)
        return Codes(table[x.values + 128], np.full_like(x.exponents, where.exponent))

    def gate(self, a: Codes, b: Codes, site: str) -> Codes:
        return self.quantise(self.stream(a) * self.stream(b), site)

    def norm(self, x: Floats, site: str) -> Codes:
        wide, count = x.astype(np.float64), x.shape[1]
        total, squares = wide.sum(1, keepdims=True), (wide * wide).sum(1, keepdims=True)
        spread = count * squares - total * total + norm_floor(count)
        inverse = (1 / np.sqrt(spread)).astype(np.float32)
        return self.quantise((count * wide - total).astype(np.float32) * inverse, site)

    def split(self, x: Codes, sizes: Sequence[int]) -> list[Codes]:
        at = np.cumsum(sizes)[:-1]
        pairs = zip(np.split(x.values, at, 1), np.split(x.exponents, at))
        return [Codes(values, exponents, x.bits) for values, exponents in pairs]

    def concat(self, parts: Sequence[Codes]) -> Codes:
        return Codes(np.concatenate([p.values for p in parts], 1), np.concatenate([p.exponents for p in parts]))

    def shuffle(self, x: Floats) -> Floats:
        n, c, h, w = x.shape
        return x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)

    def coded(self, x: Codes, index: int) -> Codes:
        return x

    def halves(self, x: Floats) -> tuple[Floats, Floats]:
        first, second = np.split(x, 2, 1)
        return first, second


def _round(x: Floats, site: Site) -> NDArray[np.int64]:
    scaled = x * np.float32(2.0**-site.exponent)
    return np.rint(np.clip(scaled, site.lowest, site.highest)).astype(np.int64)


def _convolve(codes: NDArray[np.int64], weight: NDArray[np.int8], layer: Layer) -> NDArray[np.float64]:
    """Integer convolution with zero padding; float64 holds the whole numbers exactly and has a fast product."""
    n, _, height, width = codes.shape
    rows, columns = layer.kernel
    padded = np.pad(codes, ((0, 0), (0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2))).astype(np.float64)
    total = np.zeros((n, len(weight), height, width))
    for i in range(rows):
        for j in range(columns):
            tap, part = weight[:, :, i, j].astype(np.float64), padded[:, :, i : i + height, j : j + width]
            if layer.groups == 1:
                total += (tap @ part.reshape(n, part.shape[1], -1)).reshape(total.shape)
            else:
                total += tap[:, 0, None, None] * part
    return total


class Reference:
    """The graphs of the bundle, computed by the reference, for one or more pictures. Shapes and dtypes are the
    bundle's."""

    def __init__(self, model: IntegerModel) -> None:
        self._model, self._ops, self._table = model, NumpyOps(model), index_table()

    def hyper_synthesis(self, z_symbols: NDArray[np.int32]) -> Floats:
        z = z_symbols.astype(np.float32) + self._model.medians[:, None, None]
        return network.hyper_synthesis(self._ops, z, self._model.sizes)

    def context(self, index: int, base: Floats) -> tuple[Floats, NDArray[np.int8]]:
        """Means and indexes of the elements that pass ``index`` codes; 0 and -1 elsewhere."""
        means, scales = network.context(self._ops, index, base, self._model.sizes)
        mask = pass_mask(index, *means.shape[1:])
        return np.where(mask, means, np.float32(0)), np.where(mask, self._table[cells(scales)], np.int8(-1))

    def entropy(self, y: Floats, z_symbols: NDArray[np.int32], limits: NDArray[Any]) -> tuple[Any, Any, Floats]:
        """All four passes. ``limits`` (64,): the largest symbol of each table, tables being symmetric."""
        base = self.hyper_synthesis(z_symbols)[..., : y.shape[-2], : y.shape[-1]]
        symbols, indexes = np.zeros(y.shape, np.int16), np.full(y.shape, -1, np.int8)
        bounds = np.append(limits, 0).astype(np.float32)  # entry -1: skipped
        for index in range(PASS_COUNT):
            mask = pass_mask(index, *y.shape[1:])
            means, found = self.context(index, base)
            rounded = np.clip(np.rint(y - means), -bounds[found], bounds[found])
            base = np.where(mask, rounded + means, base)
            symbols, indexes = np.where(mask, rounded.astype(np.int16), symbols), np.where(mask, found, indexes)
        return symbols, indexes, base
