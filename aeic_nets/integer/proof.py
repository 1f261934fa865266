"""The proof that no sum of the integer network can be rounded, layer by layer, from the weights alone.

It runs the network over bounds instead of numbers. Every lowering depends on it: below 2**24, whole numbers are exact
in float32, also as sums of bfloat16, TF32 or FP16 products with float32 accumulation, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aeic_nets.integer import network
from aeic_nets.integer.model import ExactnessError, Exponents, IntegerModel, Site

EXACT = 2**24


@dataclass(frozen=True)
class Bounds:
    """A stream of multiples of ``2**grid``, none larger than ``limit`` in magnitude; grid None: not on a known grid."""

    limit: float
    grid: int | None
    channels: int

    @property
    def steps(self) -> float:
        if self.grid is None:
            raise ExactnessError("a wide result is used before it is rounded: settle it first")
        return self.limit / 2.0**self.grid


@dataclass(frozen=True)
class Codes:
    exponents: Exponents
    bits: int = 8


class BoundOps:
    """The operations of :mod:`network` on bounds. ``sums`` collects the largest possible sum of every layer."""

    def __init__(self, model: IntegerModel) -> None:
        self._sites, self._layers = model.sites, model.layers
        self.sums: dict[str, int] = {}

    def quantise(self, x: Bounds, site: str) -> Codes:
        where = self._sites[site]
        if where.bits not in (8, 16):
            raise ExactnessError(f"{site}: codes have 8 or 16 bits, not {where.bits}")
        return Codes(np.full(x.channels, where.exponent), where.bits)

    def stream(self, x: Codes) -> Bounds:
        if x.bits != 8:
            raise ExactnessError("only 8-bit codes can become a stream")
        return Bounds(128 * 2.0 ** int(x.exponents.max()), int(x.exponents.min()), len(x.exponents))

    def settle(self, x: Bounds, site: str) -> Bounds:
        return _bounds(self._sites[site], x.channels)

    def add(self, a: Bounds, b: Bounds) -> Bounds:
        if a.grid is None or b.grid is None:
            raise ExactnessError("a wide result is added before it is rounded: settle it first")
        total = Bounds(a.limit + b.limit, min(a.grid, b.grid), a.channels)
        self._check("a residual sum", total.steps)
        return total

    def plus(self, a: Bounds, b: Bounds) -> Bounds:
        return Bounds(a.limit + b.limit, None, a.channels)

    def conv(self, x: Codes, layer: str) -> Codes:
        return self.quantise(self.wide(x, layer), layer)

    def wide(self, x: Codes, layer: str) -> Bounds:
        kept = self._layers[layer]
        bias = np.abs(kept.bias.astype(np.int64))
        worst = int(bias.max())
        if x.bits > 8 or len(kept.limbs) > 1:
            bias = 0 * bias  # limb sums and bias are added in float32, in order: each must be exact, the sum need not
        for limb in kept.limbs:
            if np.abs(limb.astype(np.int64)).max() > 64:
                raise ExactnessError(f"{layer}: a weight is beyond 64, which saturates on x86 without VNNI")
            sums = 128 * np.abs(limb.astype(np.int64)).reshape(len(limb), -1).sum(1) + bias
            worst = max(worst, int(sums.max()))
        self.sums[layer] = worst
        self._check(layer, worst)
        return Bounds(float("inf"), None, len(kept.bias))

    def gelu(self, x: Codes, site: str) -> Codes:
        _one_step(x, site)
        return self.quantise(Bounds(0, 0, len(x.exponents)), site)

    def gate(self, a: Codes, b: Codes, site: str) -> Codes:
        _one_step(a, site)
        _one_step(b, site)
        return self.quantise(Bounds(0, 0, len(a.exponents)), site)

    def norm(self, x: Bounds, site: str) -> Codes:
        # channels * x - total is float32; the squares are float64 and sum to less than 2**53 whenever this holds.
        self._check(site, 2 * x.steps * x.channels)
        return self.quantise(x, site)

    def split(self, x: Codes, sizes: Sequence[int]) -> list[Codes]:
        return [Codes(part, x.bits) for part in np.split(x.exponents, np.cumsum(sizes)[:-1])]

    def concat(self, parts: Sequence[Codes]) -> Codes:
        return Codes(np.concatenate([p.exponents for p in parts]), max(p.bits for p in parts))

    def shuffle(self, x: Bounds) -> Bounds:
        return Bounds(x.limit, x.grid, x.channels // 4)

    def coded(self, x: Codes, index: int) -> Codes:
        return x

    def halves(self, x: Bounds) -> tuple[Bounds, Bounds]:
        half = Bounds(x.limit, x.grid, x.channels // 2)
        return half, half

    def _check(self, what: str, steps: float) -> None:
        if not steps < EXACT:
            raise ExactnessError(
                f"{what}: sums can reach {steps:.3g}, beyond 2**24, and float32 would round them."
                " Use fewer input channels, smaller weights (a larger weight step) or narrower sites"
            )


def prove(model: IntegerModel) -> dict[str, int]:
    """The largest possible sum of every layer; :class:`ExactnessError` names the first one that is not exact."""
    ops, sizes = BoundOps(model), model.sizes
    symbols = Bounds(2.0**14 + 128, -8, sizes.hyper_channels)
    base = network.hyper_synthesis(ops, symbols, sizes)
    ops._check("the first base", base.steps)
    ops._check("a base (symbol + mean)", (2.0**13 + _bounds(model.sites["means"], 1).limit) * 2.0**8)
    for index in range(4):
        network.context(ops, index, base, sizes)
    return ops.sums


def _bounds(site: Site, channels: int) -> Bounds:
    step = 2.0**site.exponent
    return Bounds(max(-site.lowest, site.highest) * step, site.exponent, channels)


def _one_step(x: Codes, site: str) -> None:
    if x.bits != 8 or len(set(x.exponents.tolist())) != 1:
        raise ExactnessError(f"{site}: takes 8-bit codes of one common step")
