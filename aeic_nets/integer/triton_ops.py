"""The integer entropy model in a few Triton kernels: what :mod:`.torch_ops` computes in many small ones, to the bit.

torch multiplies matrices. Everything between two products is one kernel: steps, bias, rounding, GELU, and the addition
to the stream. Depthwise convolutions and norms are one kernel each. Fused multiply-adds would change nothing, since
every product that is added to something is exact (:mod:`.proof`): a whole number times a power of two, or, in a norm's
float64, whole numbers below 2**46. They are nevertheless turned off, so that the compiled code has the operations that
are written here, and only those. tests/exact/test_triton_ops.py runs the kernels in Triton's interpreter and reads
their PTX. None has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from aeic.profiles import SCALE_MAX
from aeic_nets.integer.fake_quant import norm_floor
from aeic_nets.integer.model import Exponents, IntegerModel, Site
from aeic_nets.integer.scale_index import COARSE, FINE, SWITCH
from aeic_nets.integer.torch_ops import Codes, Factors, TorchOps, matrix_of, patches

BLOCK = 1024
"""Values that one program of a kernel computes."""
TO_EVEN = tl.constexpr(1.5 * 2**23)
"""Adding this and subtracting it rounds a float32 of at most 2**22 to a whole number, half to even, on any machine."""


@triton.jit
def _codes(scaled, low, high):
    return (tl.minimum(tl.maximum(scaled, low), high) + TO_EVEN) - TO_EVEN


@triton.jit
def _finish(total, at, inside, table, residual, out, scale, low, high, step, ROUND: tl.constexpr):
    """What follows the sums of a convolution: rounding, then GELU by ``table`` or addition to ``residual``, if any."""
    if ROUND:
        total = _codes(total * scale, low, high)
    if table is not None:
        total = tl.load(table + (total + 128).to(tl.int32), inside, 0.0)
    if residual is not None:
        total = tl.load(residual + at, inside, 0.0) + total * step
    tl.store(out + at, total, inside)


@triton.jit
def round_kernel(x, factor, out, size, scale, low, high, step, LIMBS: tl.constexpr, BLOCK: tl.constexpr):
    """Round ``x``, or its product with ``factor``; of 16-bit codes the two limbs, one behind the other."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, inside, 0.0)
    if factor is not None:
        value *= tl.load(factor + at, inside, 0.0)
    codes = _codes(value * scale, low, high)
    if LIMBS == 2:
        whole = codes.to(tl.int32)
        upper = (whole + 128) >> 8
        tl.store(out + at, upper.to(tl.float32), inside)
        tl.store(out + size + at, (whole - 256 * upper).to(tl.float32), inside)
    else:
        tl.store(out + at, codes * step, inside)


@triton.jit
def norm_kernel(x, out, scale, low, high, FLOOR: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """One position for each program; ``FLOOR`` is a constant because an argument would be float32."""
    channel = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * C + channel
    wide = tl.load(x + at, channel < C, 0.0).to(tl.float64)
    total, squares = tl.sum(wide, 0), tl.sum(wide * wide, 0)
    spread = C * squares - total * total + FLOOR
    inverse = (1 / tl.sqrt(spread)).to(tl.float32)
    value = (C * wide - total).to(tl.float32) * inverse
    tl.store(out + at, _codes(value * scale, low, high), channel < C)


@triton.jit
def sums_kernel(
    sums, steps, bias, table, residual, out, size, scale, low, high, step,
    C: tl.constexpr, WEIGHTS: tl.constexpr, CODES: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finish a matrix product. ``sums``: (CODES, positions, WEIGHTS, C) for each pair of limbs, added in order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    channel, position = at % C, at // C
    total = tl.load(bias + channel)
    for w in tl.static_range(WEIGHTS):
        for k in tl.static_range(CODES):
            pair = ((k * (size // C) + position) * WEIGHTS + w) * C + channel
            total += tl.load(sums + pair, inside, 0.0) * tl.load(steps + (w * CODES + k) * C + channel)
    _finish(total, at, inside, table, residual, out, scale, low, high, step, ROUND)


@triton.jit(do_not_specialize=["height", "width"])  # pictures have many sizes, and compiling takes a second
def depthwise_kernel(
    x, limb_stride, stride, height, width, weight, steps, bias, table, residual, out, scale, low, high, step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    C: tl.constexpr, WEIGHTS: tl.constexpr, CODES: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of one line of a picture for each program. ``stride``: from one position of ``x`` to the next."""
    line, row = tl.program_id(0).to(tl.int64), tl.program_id(0) % height
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width * C
    channel, column = at % C, at // C
    middle, weights = x + (line * width + column) * stride + channel, weight + channel
    total = tl.load(bias + channel)
    for w in tl.static_range(WEIGHTS):
        for k in tl.static_range(CODES):
            sums = tl.zeros((BLOCK,), tl.float32)
            for i in tl.static_range(ROWS):
                down = i - ROWS // 2
                here = inside & (row + down >= 0) & (row + down < height)
                for j in tl.static_range(COLUMNS):
                    right = j - COLUMNS // 2
                    there = here & (column >= -right) & (column < width - right)
                    value = tl.load(middle + (k * limb_stride + (down * width + right) * stride), there, 0.0)
                    sums += value * tl.load(weights + ((w * ROWS + i) * COLUMNS + j) * C)
            total += sums * tl.load(steps + (w * CODES + k) * C + channel)
    _finish(total, line * width * C + at, inside, table, residual, out, scale, low, high, step, ROUND)


@triton.jit
def cells_kernel(
    x, out, size, MOST: tl.constexpr, SWITCH: tl.constexpr, FINE: tl.constexpr, COARSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    clipped = tl.minimum(tl.maximum(tl.load(x + at, inside, 0.0), 0.0), MOST)
    cells = (tl.minimum(clipped, SWITCH) * FINE).to(tl.int32) + (clipped * COARSE).to(tl.int32)
    tl.store(out + at, cells.to(tl.int64), inside)


@dataclass(frozen=True)
class Sums:
    """The 8-bit codes of a convolution that has not run yet, so that a GELU or an addition can run in its kernel."""

    finish: Callable[..., Tensor]
    """Takes ``table`` or ``residual``, see :func:`_finish`."""
    exponents: Exponents
    bits: int = 8

    @cached_property
    def values(self) -> Tensor:
        """As :class:`Codes` has them."""
        return self.finish()


class TritonOps(TorchOps):
    """The operations of :mod:`.network` on a GPU. 16-bit codes are their limbs, stacked: (2, N, H, W, C).

    A stream that comes from a convolution stays :class:`Sums` until it is used.
    """

    def __init__(self, model: IntegerModel, device: torch.device, factors: Factors = "float32") -> None:
        super().__init__(model, device, factors)
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise ValueError("Triton's kernels need a CUDA device: use the operations of torch")
        if wide := [name for name, site in model.sites.items() if site.bits > 22]:
            raise ValueError(f"Triton's kernels round sites of at most 22 bits, not {wide[0]}: use those of torch")

    def launch(self, kernel: Any, grid: Sequence[int], *arguments: Any, block: int = BLOCK, **constants: Any) -> None:
        """Run ``kernel`` in ``grid`` programs."""
        with torch.cuda.device(self._device if self._device.type == "cuda" else -1):
            kernel[tuple(grid)](*arguments, **constants, BLOCK=block, enable_fp_fusion=False)

    def quantise(self, x: Tensor | Sums, site: str) -> Codes:
        where = self._sites[site]
        codes = self._round(x, where, limbs=2 if where.bits > 8 else 1)
        return Codes(codes, np.full(codes.shape[-1], where.exponent), where.bits)

    def stream(self, x: Codes | Sums) -> Tensor | Sums:  # type: ignore[override]  # a wider type than that of torch_ops
        return x if isinstance(x, Sums) else super().stream(x)

    def settle(self, x: Tensor | Sums, site: str) -> Tensor:
        where = self._sites[site]
        return self._round(x, where, step=2.0**where.exponent)

    def add(self, a: Tensor | Sums, b: Tensor | Sums) -> Tensor:
        a = self._tensor(a)
        return b.finish(residual=a.contiguous()) if isinstance(b, Sums) else a + b

    def conv(self, x: Codes | Sums, layer: str) -> Codes | Sums:  # type: ignore[override]  # the same
        where = self._sites[layer]
        if where.bits > 8:
            return super().conv(x, layer)
        outputs = len(self._layers[layer].bias)
        return Sums(partial(self._convolve, x, layer, where), np.full(outputs, where.exponent))

    def wide(self, x: Codes | Sums, layer: str) -> Tensor:
        return self._convolve(x, layer)

    def gelu(self, x: Codes | Sums, site: str) -> Codes:
        if not isinstance(x, Sums):
            return super().gelu(x, site)
        table, exponent = self._gelu_table(x, site), self._sites[site].exponent
        return Codes(x.finish(table=table), np.full_like(x.exponents, exponent))

    def gate(self, a: Codes | Sums, b: Codes | Sums, site: str) -> Codes:
        where, exponent = self._sites[site], int(a.exponents[0] + b.exponents[0])
        product = self._round(a.values, where, factor=b.values, exponent=exponent)
        return Codes(product, np.full_like(a.exponents, where.exponent))

    def norm(self, x: Tensor | Sums, site: str) -> Codes:
        x, where = self._tensor(x).contiguous(), self._sites[site]
        count = x.shape[-1]
        out, block = torch.empty_like(x), triton.next_power_of_2(count)
        constants = {"FLOOR": norm_floor(count), "C": count}
        self.launch(norm_kernel, [x.numel() // count], x, out, *_limits(where), block=block, **constants)
        return Codes(out, np.full(count, where.exponent))

    def cells(self, scales: Tensor) -> Tensor:
        scales = scales.contiguous()
        out = torch.empty_like(scales, dtype=torch.int64)
        constants = {"MOST": SCALE_MAX, "SWITCH": SWITCH, "FINE": FINE, "COARSE": COARSE}
        self.launch(cells_kernel, _blocks(out), scales, out, out.numel(), **constants)
        return out

    def _round(
        self,
        x: Tensor | Sums,
        where: Site,
        *,
        factor: Tensor | None = None,
        exponent: int = 0,
        step: float = 1,
        limbs: int = 1,
    ) -> Tensor:
        """``x * factor`` in steps of ``2**exponent``, rounded at a site: codes times ``step``, or their limbs."""
        x = self._tensor(x).contiguous()
        out = x.new_empty((limbs, *x.shape) if limbs > 1 else x.shape)
        factor = None if factor is None else factor.contiguous()
        numbers = (*_limits(where, exponent), float(step))
        self.launch(round_kernel, _blocks(x), x, factor, out, x.numel(), *numbers, LIMBS=limbs)
        return out

    def _tensor(self, x: Tensor | Sums) -> Tensor:
        return super().stream(x) if isinstance(x, Sums) else x

    def _convolve(
        self,
        x: Codes | Sums,
        name: str,
        where: Site | None = None,
        table: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The convolution and what follows it. It is rounded ``where``, if given."""
        layer, limbs = self._layers[name], x.values if x.bits > 8 else x.values[None]
        factors = [w * k for w in (128, 1)[-len(layer.limbs) :] for k in (256, 1)[-len(limbs) :]]
        steps = self.constant((name, "steps", len(limbs)), lambda: np.outer(factors, layer.steps).astype(np.float32))
        bias = self.constant((name, "bias"), lambda: layer.bias_value.astype(np.float32))
        out = limbs.new_empty((*limbs.shape[1:-1], len(bias)))
        numbers = (*_limits(where), 2.0**where.exponent) if where else (1.0, 0.0, 0.0, 1.0)
        constants = {"C": len(bias), "WEIGHTS": len(layer.limbs), "CODES": len(limbs), "ROUND": where is not None}
        if layer.groups == 1:
            matrix = self.constant(
                (name, "matrix"), lambda: np.concatenate([*map(matrix_of, layer.limbs)], 1).astype(self._factors)
            )
            sums = self._multiply(patches(limbs, layer), matrix)
            after = (steps, bias, table, residual, out, out.numel(), *numbers)
            self.launch(sums_kernel, _blocks(out), sums, *after, **constants)
            return out
        weight = self.constant(
            (name, "weight"), lambda: np.stack(layer.limbs)[:, :, 0].transpose(0, 2, 3, 1).astype(np.float32)
        )
        count, height, width, channels = out.shape
        grid = count * height, triton.cdiv(width * channels, BLOCK)
        given = (limbs, limbs.stride(0), limbs.stride(-2), height, width, weight)
        constants |= {"ROWS": layer.kernel[0], "COLUMNS": layer.kernel[1]}
        self.launch(depthwise_kernel, grid, *given, steps, bias, table, residual, out, *numbers, **constants)
        return out


def _limits(where: Site, exponent: int = 0) -> tuple[float, float, float]:
    """What to multiply with, to clip to the site, and the limits."""
    return 2.0 ** (exponent - where.exponent), float(where.lowest), float(where.highest)


def _blocks(x: Tensor) -> list[int]:
    return [triton.cdiv(x.numel(), BLOCK)]
