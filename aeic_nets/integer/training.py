"""Quantisation-aware training, and the cost of the integer form in bits.

``enable_quantisation(codec, latents)`` makes a :class:`~aeic_nets.codec.Codec` compute its hyper synthesis and contexts
with rounded weights and activations from then on, with straight-through gradients. Its parameters stay the float ones,
under the same names; nothing else of it changes, and a deep copy is a codec of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aeic.passes import PASS_COUNT
from aeic.profiles import SKIP_SCALE
from aeic_nets.codec import Codec, HyperSynthesis, coding_mask
from aeic_nets.integer import network
from aeic_nets.integer.calibrate import WEIGHT_BITS, calibrate, quantise, sizes_of, width
from aeic_nets.integer.fake_quant import FakeQuantOps
from aeic_nets.integer.model import MEAN_EXPONENT, Site
from aeic_nets.likelihood import gaussian_likelihood


class QuantisedHyperSynthesis(HyperSynthesis):
    """h_s on rounded numbers. Only :func:`enable_quantisation` creates it."""

    integer_ops: _OpsOf

    def forward(self, z_hat: Tensor) -> Tensor:
        with torch.autocast(z_hat.device.type, enabled=False):
            return network.hyper_synthesis(self.integer_ops.bind(self, "h_s."), z_hat.float(), self.integer_ops.sizes)


class QuantisedCodec(Codec):
    """A codec whose entropy model runs on rounded numbers. Only :func:`enable_quantisation` creates it."""

    integer_ops: _OpsOf

    def medians(self) -> Tensor:
        """The medians of z on the grid of the latents, as ``quantise`` rounds them, (1, M/2, 1, 1)."""
        grid = 2.0**MEAN_EXPONENT
        return (super().medians() / grid).round() * grid

    def context(self, index: int, base: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(base.device.type, enabled=False):
            return network.context(self.integer_ops.bind(self, ""), index, base.float(), self.integer_ops.sizes)


class _OpsOf:
    """The state of a quantised module besides its parameters. It holds no module, so that copies are independent."""

    def __init__(self, codec: Codec, sites: dict[str, Site]) -> None:
        self.sites, self.sizes = sites, sizes_of(codec)
        self.weight_bits = {name: width(name, WEIGHT_BITS, 7) for name in quantise(codec, sites).layers}

    def bind(self, module: torch.nn.Module, prefix: str) -> FakeQuantOps:
        return FakeQuantOps(lambda name: module.get_submodule(name.removeprefix(prefix)), self.sites, self.weight_bits)


def enable_quantisation(codec: Codec, latents: Sequence[Tensor]) -> dict[str, Site]:
    """Switch ``codec`` to rounded numbers, their steps calibrated on ``latents``: y with gain, (N, M, h, w) each.

    Returns the sites. Call it again to recalibrate. Pass the sites to ``quantise`` or ``export_entropy`` so that
    the exported model rounds where training did.
    """
    disable_quantisation(codec)
    sites = calibrate(codec, latents)
    set_sites(codec, sites)
    return sites


def set_sites(codec: Codec, sites: dict[str, Site]) -> None:
    """Switch ``codec`` to rounded numbers with known sites."""
    ops = _OpsOf(codec, sites)
    codec.__class__, codec.h_s.__class__ = QuantisedCodec, QuantisedHyperSynthesis
    for module in (codec, codec.h_s):
        object.__setattr__(module, "integer_ops", ops)


def disable_quantisation(codec: Codec) -> None:
    """Switch ``codec`` back to float."""
    codec.__class__, codec.h_s.__class__ = Codec, HyperSynthesis


@torch.no_grad()
def frame_bits(codec: Codec, y: Tensor, rate: int) -> tuple[float, Tensor]:
    """Ideal bits of y (1, M, h, w, gain not applied) as the coder would spend them, and y_hat with its gain.

    Rounded symbols, skipping as the coder does, likelihoods at the predicted scales.
    """
    gain, _ = codec.gains(rate)
    y = y.float() * gain
    medians = codec.medians()
    z_hat = (codec.hyper(y) - medians).round() + medians
    bits = float(codec._z_bits(z_hat, rate))
    base = codec.h_s(z_hat)[..., : y.shape[-2], : y.shape[-1]].float()
    for index in range(PASS_COUNT):
        means, scales = codec.context(index, base)
        mask = coding_mask(index, y)
        q = torch.where(scales < SKIP_SCALE, torch.zeros_like(y), (y - means).round())
        cost = -gaussian_likelihood(q, scales).log2() * (scales >= SKIP_SCALE)
        bits += float((cost * mask).sum())
        base = torch.where(mask, q + means, base)
    return bits, base


@torch.no_grad()
def price(codec: Codec, latents: Sequence[tuple[Tensor, int]], sites: dict[str, Site]) -> dict[str, float]:
    """Compare integers with float on ``latents``: pairs of y (1, M, h, w), before the gain, and rate.

    Returns mean ``float_bits`` and ``exact_bits`` a frame, ``price_percent``, and the mean squared difference of the
    quantised latent from y in both (``float_error``, ``exact_error``). Leaves the codec as it was.
    """
    before = codec.__class__, codec.h_s.__class__, getattr(codec, "integer_ops", None)
    totals = {"float": [0.0, 0.0], "exact": [0.0, 0.0]}
    for kind in totals:
        if kind == "float":
            disable_quantisation(codec)
        else:
            set_sites(codec, sites)
        for y, rate in latents:
            bits, y_hat = frame_bits(codec, y, rate)
            totals[kind][0] += bits / len(latents)
            totals[kind][1] += float((y_hat - y * codec.gains(rate)[0]).square().mean()) / len(latents)
    codec.__class__, codec.h_s.__class__ = before[:2]
    for module in (codec, codec.h_s):
        object.__setattr__(module, "integer_ops", before[2])
    (float_bits, float_error), (exact_bits, exact_error) = totals["float"], totals["exact"]
    return {
        "float_bits": float_bits,
        "exact_bits": exact_bits,
        "price_percent": 100 * (exact_bits / float_bits - 1),
        "float_error": float_error,
        "exact_error": exact_error,
    }
