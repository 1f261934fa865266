"""Lowering to float32 for GPUs: matrix products of whole numbers, which are exact by the proof. It also runs on a CPU.

No convolution node is used, since an implementation may choose a Winograd or FFT algorithm, which is not exact: 1x1 and
3x3 are matrix products, depthwise ones are a product and a sum over all taps. TF32 and FP16-with-float32-sums keep
8-bit codes and 7-bit weights exactly. Layout is (N, H, W, C). Every constant factor is a power of two,
so fusing the product with an addition changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aeic.passes import group_tile
from aeic_nets.integer.fake_quant import norm_floor
from aeic_nets.integer.model import Exponents, IntegerModel, Layer, Site
from aeic_nets.integer.onnx_builder import DOUBLE, FLOAT, Graph

FAR = 2**31 - 1


@dataclass(frozen=True)
class Codes:
    """Tensors of the limbs, the most significant first, and the step of each channel."""

    limbs: tuple[str, ...]
    exponents: Exponents


@dataclass(frozen=True)
class Parted(Codes):
    """Codes by position class: ``limbs[k]`` at class k // L of limb k % L, (N, h/2, w/2, C), for pass ``index``.

    The classes are (even, even), (even, odd), (odd, even), (odd, odd). What pass ``index`` codes is one group of
    channels in each class, so that a last layer needs to compute a quarter only.
    """

    index: int


class FloatLowering:
    """The operations of :mod:`network`, writing nodes into ``graph``. Codes are float32 whole numbers."""

    def __init__(self, model: IntegerModel, graph: Graph) -> None:
        self._sites, self._layers, self.g = model.sites, model.layers, graph

    def quantise(self, x: str, site: str) -> Codes:
        where = self._sites[site]
        channels = np.zeros(1, np.int64)  # one common step: broadcast when split or concatenated
        return Codes(self._encode(x, where), channels + where.exponent)

    def stream(self, x: Codes) -> str:
        return self.g.times(x.limbs[0], _power(x.exponents))

    def settle(self, x: str, site: str) -> str:
        where = self._sites[site]
        return self.g.times(self._round(x, where), 2.0**where.exponent)

    def add(self, a: str, b: str) -> str:
        return self.g.op("Add", a, b)

    plus = add

    def conv(self, x: Codes, layer: str) -> Codes:
        return self._spread(self.quantise(self.wide(x, layer), layer), layer)

    def wide(self, x: Codes, layer: str) -> str:
        if isinstance(x, Parted):
            return self._wide_parted(x, layer)
        kept = self._layers[layer]
        total = ""
        for weight_factor, weight in zip((128, 1)[-len(kept.limbs) :], kept.limbs):
            for code_factor, codes in zip((256, 1)[-len(x.limbs) :], x.limbs):
                sums = self._whole(self._product(codes, weight, kept))
                term = self.g.times(sums, _power(kept.exponents) * (weight_factor * code_factor))
                total = self.g.op("Add", term, total or self.g.constant(kept.bias_value, np.float32))
        return total

    def gelu(self, x: Codes, site: str) -> Codes:
        where = self._sites[site]
        smooth = self.g.gelu(self.stream(x))
        if where.shift:
            smooth = self.g.op("Add", smooth, self.g.constant(where.shift * 2.0**where.exponent, np.float32))
        return Codes(self._encode(smooth, where), np.full_like(x.exponents, where.exponent))

    def gate(self, a: Codes, b: Codes, site: str) -> Codes:
        where = self._sites[site]
        product = self.g.op("Mul", self.stream(a), self.stream(b))
        return Codes(self._encode(product, where), np.full_like(a.exponents, where.exponent))

    def norm(self, x: str, site: str) -> Codes:
        g, last = self.g, self.g.constant([-1], np.int64)
        count = self._channels_of(site)
        total = g.op("ReduceSum", x, last, keepdims=1)
        wide = g.op("Cast", x, to=DOUBLE)
        squares = g.op("ReduceSum", g.op("Mul", wide, wide), last, keepdims=1)
        wide_total = g.op("Cast", total, to=DOUBLE)
        spread = g.op("Mul", squares, g.constant(float(count), np.float64))
        spread = g.op("Sub", spread, g.op("Mul", wide_total, wide_total))
        spread = g.op("Add", spread, g.constant(norm_floor(count), np.float64))
        inverse = g.op("Cast", g.op("Div", g.constant(1.0, np.float64), g.op("Sqrt", spread)), to=FLOAT)
        centred = g.op("Sub", g.op("Mul", x, g.constant(float(count), np.float32)), total)
        return self.quantise(g.op("Mul", centred, inverse), site)

    def split(self, x: Codes, sizes: Sequence[int]) -> list[Codes]:
        lengths = self.g.constant(list(sizes), np.int64)
        parts = [self.g.ops("Split", len(sizes), limb, lengths, axis=-1) for limb in x.limbs]
        exponents = np.broadcast_to(x.exponents, (sum(sizes),))
        cuts = np.split(exponents, np.cumsum(sizes)[:-1])
        return [Codes(tuple(part[k] for part in parts), cuts[k]) for k in range(len(sizes))]

    def concat(self, parts: Sequence[Codes]) -> Codes:
        limbs = zip(*(part.limbs for part in parts), strict=True)
        joined = tuple(self.g.op("Concat", *limb, axis=-1) for limb in limbs)
        return Codes(joined, np.concatenate([part.exponents for part in parts]))

    def shuffle(self, x: str) -> str:
        planes = self.g.op("DepthToSpace", self.g.op("Transpose", x, perm=[0, 3, 1, 2]), blocksize=2, mode="CRD")
        return self.g.op("Transpose", planes, perm=[0, 2, 3, 1])

    def coded(self, x: Codes, index: int) -> Codes:
        return Parted(tuple(piece for at in classes(self.g, x.limbs) for piece in at), x.exponents, index)

    def halves(self, x: str) -> tuple[str, str]:
        first, second = self.g.ops("Split", 2, x, axis=-1, num_outputs=2)
        return first, second

    def _wide_parted(self, x: Parted, layer: str) -> str:
        """(N, 4, h/2, w/2, O/4): of a last layer, the outputs that the pass codes, by class."""
        g, kept = self.g, self._layers[layer]
        rows = coded_rows(x.index, len(kept.bias))
        powers = kept.steps[rows][:, None, None]  # (4, 1, 1, O/4)
        total, count = g.constant(kept.bias_value[rows][:, None, None], np.float32), len(x.limbs) // len(rows)
        for weight_factor, weight in zip((128, 1)[-len(kept.limbs) :], kept.limbs):
            for limb, code_factor in enumerate((256, 1)[-count:]):
                sums = [self._product(x.limbs[k * count + limb], weight[row], kept) for k, row in enumerate(rows)]
                term = g.times(self._whole(stack(g, sums)), powers * (weight_factor * code_factor))
                total = g.op("Add", term, total)
        return total

    def _channels_of(self, site: str) -> int:
        """Number of channels of a norm's input, which is that of the next layer."""
        return int(self._layers[site.removesuffix("norm") + "fc1.u"].limbs[0].shape[1])

    def _spread(self, x: Codes, layer: str) -> Codes:
        return Codes(x.limbs, np.broadcast_to(x.exponents, (len(self._layers[layer].bias),)))

    def _round(self, x: str, where: Site) -> str:
        scaled = self.g.times(x, 2.0**-where.exponent)
        low, high = (self.g.constant(limit, np.float32) for limit in (where.lowest, where.highest))
        return self.g.op("Round", self.g.op("Clip", scaled, low, high))

    def _encode(self, x: str, where: Site) -> tuple[str, ...]:
        codes = self._round(x, where)
        return (codes,) if where.bits == 8 else self._halves(codes)

    def _halves(self, codes: str) -> tuple[str, str]:
        g = self.g
        high = g.op("Floor", g.times(g.op("Add", codes, g.constant(128, np.float32)), 2.0**-8))
        return high, g.op("Sub", codes, g.times(high, 256))

    def _whole(self, sums: str) -> str:
        """The result of ``_product`` as float32."""
        return sums

    def _product(self, codes: str, weight: NDArray[np.int8], layer: Layer) -> str:
        """Whole-number convolution of one limb of each, (N, H, W, O)."""
        if layer.groups == 1:
            return self.g.op("MatMul", self._patches(codes, layer), self.g.constant(matrix(weight), np.float32))
        g, taps = self.g, self._taps(codes, layer)
        shape = g.constant([0, 0, 0, len(taps), len(weight)], np.int64)  # 0: as before
        weights = g.constant(weight[:, 0].reshape(len(weight), -1).T.ravel(), np.float32)
        terms = g.op("Mul", g.op("Concat", *taps, axis=-1), weights)
        return g.op("ReduceSum", g.op("Reshape", terms, shape), g.constant([3], np.int64), keepdims=0)

    def _patches(self, codes: str, layer: Layer) -> str:
        taps = self._taps(codes, layer)
        return taps[0] if len(taps) == 1 else self.g.op("Concat", *taps, axis=-1)

    def _taps(self, codes: str, layer: Layer, zero: str = "") -> list[str]:
        """The input under each tap of the kernel, rows first, zero outside."""
        rows, columns = layer.kernel
        if (rows, columns) == (1, 1):
            return [codes]
        g, (top, left) = self.g, (rows // 2, columns // 2)
        padded = g.op("Pad", codes, g.constant([0, top, left, 0] * 2, np.int64), *([zero] if zero else []))
        axes, taps = g.constant([1, 2], np.int64), []
        for i in range(rows):
            for j in range(columns):
                ends = [i + 1 - rows or FAR, j + 1 - columns or FAR]
                taps.append(g.op("Slice", padded, g.constant([i, j], np.int64), g.constant(ends, np.int64), axes))
        return taps


def classes(g: Graph, tensors: Sequence[str]) -> list[list[str]]:
    """The four position classes, in the order of :class:`Parted`, of tensors (N, h, w, C): [class][tensor]."""
    axes, steps, far = g.constant([1, 2], np.int64), g.constant([2, 2], np.int64), g.constant([FAR, FAR], np.int64)
    starts = [g.constant([row, column], np.int64) for row in (0, 1) for column in (0, 1)]
    return [[g.op("Slice", tensor, start, far, axes, steps) for tensor in tensors] for start in starts]


def stack(g: Graph, parts: Sequence[str]) -> str:
    """Tensors (N, h/2, w/2, C) along a new axis 1."""
    axis = g.constant([1], np.int64)
    return g.op("Concat", *(g.op("Unsqueeze", part, axis) for part in parts), axis=1)


def coded_groups(index: int) -> list[int]:
    """The channel group that pass ``index`` codes in each class."""
    return [group for row in group_tile(index) for group in row]


def coded_rows(index: int, outputs: int) -> NDArray[np.int64]:
    """(4, outputs/4): which outputs (means, then scales) of a last layer pass ``index`` codes in each class."""
    quarter = outputs // 8
    half = np.array(coded_groups(index))[:, None] * quarter + np.arange(quarter)
    return np.concatenate([half, half + outputs // 2], 1)


def matrix(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """(O, I, kh, kw) to (kh * kw * I, O): what patches, taps outermost, are multiplied with."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _power(exponents: Exponents) -> NDArray[np.float64]:
    """2**exponents, one number if they are all the same."""
    return 2.0 ** (exponents[0] if (exponents == exponents[0]).all() else exponents)
