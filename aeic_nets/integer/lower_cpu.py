"""Lowering to 8-bit integer operators, for CPUs: several times faster than float32, and exact.

Codes are uint8 with zero point 128. Where one limb meets one limb, ``QLinearConv`` (ONNX Runtime's variant for
channels-last) does sum, bias and rounding at once: its int32 sum stays below 2**24, its scale is a power of two, and it
rounds half to even. Where there are more limbs, or the sum is wanted wide, ``MatMulInteger`` gives the sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aeic_nets.integer.lower_gpu import Codes, FloatLowering, matrix
from aeic_nets.integer.model import Layer, Site
from aeic_nets.integer.onnx_builder import FLOAT, MICROSOFT


class CpuLowering(FloatLowering):
    """The operations of :mod:`network`. :class:`FloatLowering` has those that are not overridden here."""

    def stream(self, x: Codes) -> str:
        if (x.exponents == x.exponents[0]).all():
            return self._dequantise(x.limbs[0], int(x.exponents[0]))
        return self.g.times(self._dequantise(x.limbs[0], 0), 2.0**x.exponents)

    def conv(self, x: Codes, layer: str) -> Codes:
        kept, where = self._layers[layer], self._sites[layer]
        if len(x.limbs) > 1 or len(kept.limbs) > 1 or where.bits != 8:
            return super().conv(x, layer)
        g, outputs = self.g, len(kept.bias)
        one, zero = g.constant(1, np.float32), g.constant(128, np.uint8)
        scale = g.constant(2.0 ** (kept.exponents - where.exponent), np.float32)
        rows, columns = kept.kernel
        inputs = [x.limbs[0], one, zero, g.constant(kept.limbs[0], np.int8), scale]
        inputs += [g.constant(np.zeros(outputs), np.int8), one, zero, g.constant(kept.bias, np.int32)]
        pads = [rows // 2, columns // 2] * 2
        attributes = {"group": kept.groups, "kernel_shape": [rows, columns], "pads": pads, "channels_last": 1}
        made = g.op("QLinearConv", *inputs, domain=MICROSOFT, **attributes)
        return Codes((made,), np.full(outputs, where.exponent))

    def _encode(self, x: str, where: Site) -> tuple[str, ...]:
        if where.bits == 8:
            return (self._quantise(x, where.exponent),)
        return tuple(self._quantise(half, 0) for half in self._halves(self._round(x, where)))

    def _product(self, codes: str, weight: NDArray[np.int8], layer: Layer) -> str:
        if layer.groups > 1:
            return self._shifted(self._dequantise(codes, 0), weight, layer)
        zero = self.g.constant(128, np.uint8)
        return self.g.op("MatMulInteger", self._patches(codes, layer), self.g.constant(matrix(weight), np.int8), zero)

    def _shifted(self, codes: str, weight: NDArray[np.int8], layer: Layer) -> str:
        """A depthwise convolution as a sum of products of the shifted input."""
        total = ""
        for tap, part in zip(weight[:, 0].reshape(len(weight), -1).T, self._taps(codes, layer), strict=True):
            term = self.g.op("Mul", part, self.g.constant(tap, np.float32))
            total = self.g.op("Add", total, term) if total else term
        return total

    def _whole(self, sums: str) -> str:
        return self.g.op("Cast", sums, to=FLOAT)

    def _patches(self, codes: str, layer: Layer) -> str:
        taps = self._taps(codes, layer, self.g.constant(128, np.uint8))
        return taps[0] if len(taps) == 1 else self.g.op("Concat", *taps, axis=-1)

    def _quantise(self, x: str, exponent: int) -> str:
        scale, zero = self.g.constant(2.0**exponent, np.float32), self.g.constant(128, np.uint8)
        return self.g.op("QuantizeLinear", x, scale, zero)

    def _dequantise(self, x: str, exponent: int) -> str:
        scale, zero = self.g.constant(2.0**exponent, np.float32), self.g.constant(128, np.uint8)
        return self.g.op("DequantizeLinear", x, scale, zero)
