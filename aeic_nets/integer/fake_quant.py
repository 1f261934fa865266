"""The integer network in torch, either observed in float (calibration) or rounded with straight-through gradients.

Values are float32 multiples of their steps, so outside autocast the results are those of the integer network, to the
bit. Under bfloat16 autocast they are close to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeic_nets.integer.gelu_table import gelu_table
from aeic_nets.integer.model import Site, bias_shift

WEIGHT_LIMITS = {7: 63, 14: 63 * 128 + 63}


@dataclass(frozen=True)
class Codes:
    """``value`` (N, C, H, W) float32, multiples of ``2**exponents[c]``; ``exponents`` (C,) int64; 8 or 16 bits.

    ``site``: where it was rounded, if in one place.
    """

    value: Tensor
    exponents: Tensor
    bits: int
    site: str = ""


@dataclass
class Watcher:
    """Collects samples of the values at each site, and which site feeds which GELU."""

    samples: dict[str, list[Tensor]] = field(default_factory=dict)
    gelu_inputs: dict[str, str] = field(default_factory=dict)

    def see(self, site: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        step = max(1, flat.numel() // 4096)
        kept = torch.cat((flat[:: step | 1].float(), flat.aminmax().min[None], flat.aminmax().max[None]))
        self.samples.setdefault(site, []).append(kept)


def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of ``exact`` with the gradient of ``smooth``."""
    return smooth + (exact - smooth).detach()


def quantise_weight(weight: Tensor, exponents: Tensor, groups: int, bits: int) -> tuple[Tensor, Tensor]:
    """(O, I/groups, kh, kw) and the input's exponents to whole numbers of that shape (float32) and exponents (O,).

    Of the two exponents around the peak, the one with the smaller squared error.
    """
    limit = WEIGHT_LIMITS[bits]
    fold = torch.exp2(exponents.float())
    folded = weight.detach() * (fold[:, None, None, None] if groups > 1 else fold[None, :, None, None])
    peak = folded.abs().amax((1, 2, 3)).clamp_min(1e-20)
    high = torch.ceil(torch.log2(peak / limit))
    results = []
    for exponent in (high, high - 1):
        step = torch.exp2(exponent)[:, None, None, None]
        whole = (folded / step).round().clamp(-limit, limit)
        results.append((whole, (whole * step - folded).square().sum((1, 2, 3)), exponent))
    (coarse, coarse_error, _), (fine, fine_error, _) = results
    better = fine_error < coarse_error
    whole = torch.where(better[:, None, None, None], fine, coarse)
    return whole, torch.where(better, high - 1, high).long()


def layer_weights(find: Callable[[str], nn.Module], name: str) -> tuple[Tensor, Tensor, int]:
    """Float weight (O, I/groups, kh, kw), bias (O,) and groups of the layer called ``name`` (see :mod:`network`)."""
    stem, _, part = name.rpartition(".")
    if part in ("u", "v"):
        module = find(stem)
        assert isinstance(module, nn.Conv2d) and module.bias is not None
        weight, bias = (x.chunk(2)[part == "v"] for x in (module.weight, module.bias))
        norm = find(stem.rpartition(".")[0] + ".norm")
        assert isinstance(norm, nn.LayerNorm)
        bias = bias + (weight[:, :, 0, 0] * norm.bias).sum(1)
        return weight * norm.weight[None, :, None, None], bias, 1
    module = find(name)
    assert isinstance(module, nn.Conv2d) and module.bias is not None
    return module.weight, module.bias, module.groups


class FakeQuantOps:
    """The operations of :mod:`network`. ``find`` gives a float module by name; ``sites`` None watches with ``watcher``.

    ``weight_bits`` says per layer name how many; the default is 7.
    """

    def __init__(
        self,
        find: Callable[[str], nn.Module],
        sites: dict[str, Site] | None,
        weight_bits: dict[str, int] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._find, self._sites, self._watcher = find, sites, watcher
        self._weight_bits = weight_bits or {}

    def quantise(self, x: Tensor, site: str) -> Codes:
        value, where = self._round(x, site)
        return Codes(value, torch.full((x.shape[1],), where.exponent), where.bits, site)

    def stream(self, x: Codes) -> Tensor:
        return x.value

    def settle(self, x: Tensor, site: str) -> Tensor:
        return self._round(x, site)[0]

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    plus = add

    def conv(self, x: Codes, layer: str) -> Codes:
        return self.quantise(self.wide(x, layer), layer)

    def wide(self, x: Codes, layer: str) -> Tensor:
        weight, bias, groups = layer_weights(self._find, layer)
        rows, columns = weight.shape[2:]
        conv = partial(F.conv2d, padding=(rows // 2, columns // 2), groups=groups)
        if self._sites is None:
            return conv(x.value, weight, bias)
        bits = self._weight_bits.get(layer, 7)
        whole, exponents = quantise_weight(weight, x.exponents, groups, bits)
        step, fold = torch.exp2(exponents.float()), torch.exp2(-x.exponents.float())
        unfold = step[:, None, None, None] * (fold[:, None, None, None] if groups > 1 else fold[None, :, None, None])
        bias_step = step * 2.0 ** bias_shift(x.bits, bits)
        rounded_bias = straight_through((bias.detach() / bias_step).round() * bias_step, bias)
        if x.bits == 8 and bits == 7 or torch.is_grad_enabled():
            return conv(x.value, straight_through(whole * unfold, weight), rounded_bias)
        total = rounded_bias[None, :, None, None]
        for limb in weight_limbs(whole, bits):
            for part in code_limbs(x):
                total = total + conv(part, limb * unfold)
        return total

    def gelu(self, x: Codes, site: str) -> Codes:
        smooth = F.gelu(x.value)
        if self._watcher is not None:
            self._watcher.gelu_inputs[site] = x.site
        if self._sites is None:
            return self.quantise(smooth, site)
        where = self._sites[site]
        table = torch.from_numpy(gelu_table(int(x.exponents[0]), where.exponent, where.shift)).float()
        entries = torch.round(x.value.detach() * 2.0 ** -int(x.exponents[0])).long() + 128
        exact = table[entries] * 2.0**where.exponent
        return Codes(straight_through(exact, smooth), torch.full_like(x.exponents, where.exponent), 8)

    def gate(self, a: Codes, b: Codes, site: str) -> Codes:
        return self.quantise(a.value * b.value, site)

    def norm(self, x: Tensor, site: str) -> Codes:
        wide = x.double()
        count = x.shape[1]
        total, squares = wide.sum(1, keepdim=True), (wide * wide).sum(1, keepdim=True)
        spread = count * squares - total * total + norm_floor(count)
        inverse = (1 / spread.sqrt()).float()
        return self.quantise((count * wide - total).float() * inverse, site)

    def split(self, x: Codes, sizes: Sequence[int]) -> list[Codes]:
        pairs = zip(x.value.split(list(sizes), 1), x.exponents.split(list(sizes)))
        return [Codes(value, exponents, x.bits) for value, exponents in pairs]

    def concat(self, parts: Sequence[Codes]) -> Codes:
        value, exponents = torch.cat([p.value for p in parts], 1), torch.cat([p.exponents for p in parts])
        return Codes(value, exponents, parts[0].bits)

    def shuffle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)

    def coded(self, x: Codes, index: int) -> Codes:
        return x

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, 1)
        return first, second

    def _round(self, x: Tensor, site: str) -> tuple[Tensor, Site]:
        x = x.float()
        if self._watcher is not None:
            self._watcher.see(site, x)
        if self._sites is None:
            return x, Site(0)
        where = self._sites[site]
        step = 2.0**where.exponent
        clipped = x.clamp(where.lowest * step, where.highest * step)  # no gradient where it clips
        return straight_through((clipped.detach() / step).round() * step, clipped), where


def norm_floor(count: int) -> float:
    """What the norm adds under the root: eps 1e-6 on the variance, of ``count`` channels."""
    return float(np.float64(count) * np.float64(count) * 1e-6)


def weight_limbs(whole: Tensor, bits: int) -> list[Tensor]:
    """Whole numbers as multiples of 128 (if 14 bits) and the rest, -64..63: their sum is ``whole``."""
    if bits == 7:
        return [whole]
    high = torch.floor((whole + 64) / 128) * 128
    return [high, whole - high]


def code_limbs(x: Codes) -> list[Tensor]:
    """The same for codes of 16 bits: multiples of 256 and the rest, -128..127."""
    if x.bits == 8:
        return [x.value]
    step = torch.exp2(x.exponents.float())[None, :, None, None]
    high = torch.floor((x.value / step + 128) / 256) * 256 * step
    return [high, x.value - high]
