"""Calibration: chooses the step of every activation from float runs over sample latents, and quantises the model.

``calibrate`` finds the sites; ``quantise`` turns a codec and its sites into an :class:`IntegerModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aeic.passes import PASS_COUNT
from aeic_nets.codec import Codec, coding_mask
from aeic_nets.integer import network
from aeic_nets.integer.fake_quant import Codes, FakeQuantOps, Watcher, layer_weights, quantise_weight, weight_limbs
from aeic_nets.integer.gelu_table import gelu_shift
from aeic_nets.integer.model import MEAN_EXPONENT, IntegerModel, Layer, Site, Sizes, bias_shift

SITE_BITS: tuple[tuple[str, int], ...] = (
    ("h_s.increase.[03].in", 16),
    ("h_s.increase.0.out", 12),
    ("adapter_in.?.in", 16),
    ("adapter_in.?.out", 12),
)
"""Bits of the activations by name. The first match counts; activations without a match have 8 bits."""
WEIGHT_BITS: tuple[tuple[str, int], ...] = ()
"""Bits of the weights by name. The first match counts; weights without a match have 7 bits."""
SMALLEST_PEAK = 2.0**-5
"""The smallest range of a site. A site that saw only zeros would otherwise get steps in which no bias fits 32 bits."""
ON_THE_LATENT_GRID = ("means", "h_s.increase.3.out")
LATENT_BITS = 20


def sizes_of(codec: Codec) -> Sizes:
    profile = codec.profile
    return Sizes(profile.latent_channels, profile.context_width, profile.context_depth)


def width(name: str, table: Sequence[tuple[str, int]], default: int) -> int:
    return next((bits for pattern, bits in table if fnmatch(name, pattern)), default)


@torch.no_grad()
def calibrate(codec: Codec, latents: Sequence[Tensor]) -> dict[str, Site]:
    """The sites for ``codec``, from float runs over ``latents``: y with its gain applied, (N, M, h, w) float32 each."""
    watcher = Watcher()
    ops = FakeQuantOps(codec.get_submodule, None, watcher=watcher)
    sizes = sizes_of(codec)
    for y in latents:
        medians = codec.medians()
        z_hat = (codec.hyper(y) - medians).round() + medians
        base = network.hyper_synthesis(ops, z_hat, sizes)[..., : y.shape[-2], : y.shape[-1]]
        for index in range(PASS_COUNT):
            means, _ = network.context(ops, index, base, sizes)
            base = torch.where(coding_mask(index, y), (y - means).round() + means, base)
    sites = {}
    for name, parts in watcher.samples.items():
        bits = width(name, SITE_BITS, 8)
        sites[name] = Site(best_exponent(torch.cat(parts), bits), bits)
    sites |= {name: Site(MEAN_EXPONENT, LATENT_BITS) for name in ON_THE_LATENT_GRID}
    for name, source in watcher.gelu_inputs.items():
        exponent = sites[name].exponent
        sites[name] = Site(exponent, 8, gelu_shift(sites[source].exponent, exponent))
    return sites


def best_exponent(sample: Tensor, bits: int) -> int:
    """The power of two whose rounding and clipping to ``bits`` bits leaves the least squared error on ``sample``.

    Wider sites leave room for pictures with larger values: 12 bits hold twice the observed range, and 16 bits four
    times.
    """
    site = Site(0, bits)
    headroom = 2 ** ((bits - 8) // 4)
    top = int(np.ceil(np.log2(headroom * max(float(sample.abs().max()), SMALLEST_PEAK) / site.highest)))
    if bits > 8:
        return top

    def error(exponent: int) -> float:
        codes = (sample / 2.0**exponent).round().clamp(site.lowest, site.highest)
        return float((codes * 2.0**exponent - sample).double().square().mean())

    return min(range(top, top - 5, -1), key=error)


def quantise(
    codec: Codec,
    sites: dict[str, Site],
    medians: NDArray[np.float32] | None = None,
    weight_bits: Sequence[tuple[str, int]] = WEIGHT_BITS,
) -> IntegerModel:
    """``codec`` in integers. ``medians`` (Cz,) of the factorised prior (default 0) are rounded to the latents' grid."""
    sizes = sizes_of(codec)
    recorder = _LayerRecorder(codec, sites, weight_bits)
    with torch.no_grad():
        base = network.hyper_synthesis(recorder, torch.zeros(1, sizes.hyper_channels, 1, 1), sizes)
        for index in range(PASS_COUNT):
            network.context(recorder, index, base, sizes)
    grid = 2.0**MEAN_EXPONENT
    middle = np.zeros(sizes.hyper_channels) if medians is None else np.asarray(medians, np.float64)
    return IntegerModel(sizes, sites, recorder.layers, (np.rint(middle / grid) * grid).astype(np.float32))


class _LayerRecorder(FakeQuantOps):
    """Runs the network once without data, to record every layer with the exponents of its input."""

    def __init__(self, codec: nn.Module, sites: dict[str, Site], weight_bits: Sequence[tuple[str, int]]) -> None:
        super().__init__(codec.get_submodule, sites)
        self.layers: dict[str, Layer] = {}
        self._table = weight_bits

    def wide(self, x: Codes, layer: str) -> Tensor:
        if layer not in self.layers:
            weight, bias, groups = layer_weights(self._find, layer)
            bits = width(layer, self._table, 7)
            whole, exponents = quantise_weight(weight, x.exponents, groups, bits)
            limbs = weight_limbs(whole, bits)
            factors, shift = (128, 1)[-len(limbs) :], bias_shift(x.bits, bits)
            self.layers[layer] = Layer(
                limbs=tuple((limb / factor).numpy().astype(np.int8) for limb, factor in zip(limbs, factors)),
                exponents=exponents.numpy(),
                bias=(bias / torch.exp2(exponents.float() + shift)).round().numpy().astype(np.int32),
                groups=groups,
                bias_shift=shift,
            )
        return super().wide(x, layer)
