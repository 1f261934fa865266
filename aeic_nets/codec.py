"""The trained parts of the codec: g_a, h_a, h_s, the four-pass context model, the factorised prior and g_s.

Parameter names are those of the official ``state_dict_codec``. Source: docs/model.md section 4.
"""

from __future__ import annotations

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from aeic.passes import PASS_COUNT, group_tile
from aeic.profiles import HYPER_STRIDE, SKIP_SCALE, Profile
from aeic_nets.blocks import Adapter, Downsample, GatedBlock, InceptionNeXt, StarBlock, Upsample
from aeic_nets.likelihood import gaussian_likelihood
from aeic_nets.synthesis import Synthesis


class Analysis(nn.Module):
    """g_a: picture (N, 3, H, W) in [-1, 1] to y (N, M, H/32, W/32)."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in profile.analysis_widths:
            layers += [Downsample(previous, width), *(StarBlock(width) for _ in range(profile.analysis_depth))]
            previous = width
        self.stage_layers = 1 + profile.analysis_depth
        self.analysis_transform = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.analysis_transform(x)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, from 1/2 to 1/32 scale, which distillation compares. The last one is y."""
        taps = []
        for i, layer in enumerate(self.analysis_transform, start=1):
            x = layer(x)
            if i % self.stage_layers == 0:
                taps.append(x)
        return taps


class HyperAnalysis(nn.Module):
    """h_a: y (N, M, h, w), whose sides are multiples of 4, to z (N, M/2, h/4, w/4)."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        m, n = profile.latent_channels, profile.hyper_channels
        self.reduction = nn.Sequential(Downsample(m, n), StarBlock(n), StarBlock(n), Downsample(n, n))

    def forward(self, y: Tensor) -> Tensor:
        return self.reduction(y)


class HyperSynthesis(nn.Module):
    """h_s: z_hat (N, M/2, h/4, w/4) to the first base (N, M, h, w)."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        m, n = profile.latent_channels, profile.hyper_channels
        self.increase = nn.Sequential(Upsample(n, n), StarBlock(n), StarBlock(n), Upsample(n, m))

    def forward(self, z_hat: Tensor) -> Tensor:
        return self.increase(z_hat)


class ContextBlock(nn.Module):
    """One InceptionNeXt block and one gated block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(InceptionNeXt(channels), GatedBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ContextNet(nn.Module):
    """g_c, shared by the four passes: (N, X, h, w) to the same shape."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.block = nn.Sequential(*(ContextBlock(profile.context_width) for _ in range(profile.context_depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Codec(nn.Module):
    """The whole codec. With ``rates`` > 1 it has per-channel gains on y and a factorised prior for each rate point."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile = profile
        m, x = profile.latent_channels, profile.context_width
        self.g_a = Analysis(profile)
        self.h_a = HyperAnalysis(profile)
        self.h_s = HyperSynthesis(profile)
        self.adapter_in = nn.ModuleList(Adapter(m, x) for _ in range(PASS_COUNT))
        self.g_c = ContextNet(profile)
        self.adapter_out = nn.ModuleList(Adapter(x, 2 * m) for _ in range(PASS_COUNT))
        self.g_s = Synthesis(profile)
        self.entropy_bottleneck = EntropyBottleneck(profile.hyper_channels * profile.rates)
        self.zero_skipped = False
        if profile.rates > 1:
            spread = 0.15 * (torch.arange(profile.rates) - (profile.rates - 2.0))[:, None]
            self.log_gain = nn.Parameter(spread.repeat(1, m))
            self.log_inverse_gain = nn.Parameter(-spread.repeat(1, m))
        with torch.no_grad():
            for adapter in self.adapter_out:  # scales start at 1: a start at 0 would skip everything
                adapter.branch2.bias[m:] = 1.0

    def gains(self, rate: int) -> tuple[Tensor | float, Tensor | float]:
        """Factors on y before quantising and on y_hat before g_s, each (1, M, 1, 1), or 1.0 for a single rate."""
        if self.profile.rates == 1:
            return 1.0, 1.0
        return self.log_gain[rate].exp()[None, :, None, None], self.log_inverse_gain[rate].exp()[None, :, None, None]

    def medians(self) -> Tensor:
        """The medians of z, (1, M/2, 1, 1). All rate points use those of the first, so that z has one grid."""
        quantiles = self.entropy_bottleneck.quantiles.detach()
        return quantiles[: self.profile.hyper_channels, 0, 1][None, :, None, None]

    def context(self, index: int, base: Tensor) -> tuple[Tensor, Tensor]:
        """Pass ``index``: base (N, M, h, w) to means and scales, each (N, M, h, w)."""
        out = self.adapter_out[index](self.g_c(self.adapter_in[index](base)))
        means, scales = out.chunk(2, dim=1)
        return means, scales

    def hyper(self, y: Tensor) -> Tensor:
        """y (N, M, h, w) to z, with y padded right and bottom to multiples of 4 by reflection."""
        for axis in (-2, -1):
            side = y.shape[axis]
            if pad := -side % HYPER_STRIDE:
                # Repeated reflection, so that a side of 2 works too (F.pad refuses it). Period 2 (side - 1).
                index = [min(i % (2 * side - 2), -i % (2 * side - 2)) for i in range(side + pad)]
                y = y.index_select(axis, torch.tensor(index, device=y.device))
        return self.h_a(y)

    def forward(self, y: Tensor, rate: int = 0) -> dict[str, Tensor]:
        """The training pass from y (N, M, h, w) before the gain: y_hat with the gain undone, and the bits by part.

        Rates come from likelihoods under uniform noise, values from straight-through rounding; ``y_bits_hard`` and
        ``z_bits_hard`` (no gradient) are those of the rounded values, which is what a file holds.
        """
        gain, inverse = self.gains(rate)
        y = y.float() * gain
        z = self.hyper(y).float()
        medians = self.medians()
        z_hat = straight_through_round(z - medians) + medians
        z_soft = self._z_bits(z + torch.rand_like(z) - 0.5, rate)
        base = self.h_s(z_hat)[..., : y.shape[-2], : y.shape[-1]].float()
        value, scale, y_mean = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
        for i in range(PASS_COUNT):
            means, scales = (part.float() for part in self.context(i, base))
            mask = coding_mask(i, y)
            residual = y - means
            q = straight_through_round(residual)
            if self.zero_skipped:
                q = torch.where(scales < SKIP_SCALE, residual - residual.detach(), q)
            base = torch.where(mask, q + means, base)
            scale = torch.where(mask, scales, scale)
            value = torch.where(mask, residual, value)
            y_mean = torch.where(mask, means, y_mean)
        y_soft = -gaussian_likelihood(value + torch.rand_like(value) - 0.5, scale).log2().sum()
        with torch.no_grad():
            y_hard = (-gaussian_likelihood(value.round(), scale).log2() * (scale >= SKIP_SCALE)).sum()
            z_hard = self._z_bits(z_hat, rate)
        return {
            "y_hat": base * inverse,
            "y_bits": y_soft,
            "z_bits": z_soft,
            "y_bits_hard": y_hard,
            "z_bits_hard": z_hard,
            "symbols": torch.where(scale < SKIP_SCALE, 0.0, value.detach().round()),
            "z_symbols": (z_hat - medians).detach().round(),
            "means": y_mean,
            "scale": scale,
            "y": y,
        }

    def _z_bits(self, z: Tensor, rate: int) -> Tensor:
        n = self.profile.hyper_channels
        model = self.entropy_bottleneck
        rows = z.repeat(1, self.profile.rates, 1, 1).transpose(0, 1).reshape(n * self.profile.rates, 1, -1)
        likelihood, _, _ = model._likelihood(rows)
        return -model.likelihood_lower_bound(likelihood)[rate * n : (rate + 1) * n].log2().sum()


def coding_mask(index: int, like: Tensor) -> Tensor:
    """True where pass ``index`` codes, (1, M, h, w) bool for ``like`` (N, M, h, w). The same masks as aeic.passes."""
    _, channels, height, width = like.shape
    tile = torch.tensor(group_tile(index), device=like.device)
    groups = tile.repeat((height + 1) // 2, (width + 1) // 2)[:height, :width]
    of_channel = torch.arange(channels, device=like.device) // (channels // PASS_COUNT)
    return (of_channel[:, None, None] == groups)[None]


def straight_through_round(x: Tensor) -> Tensor:
    """round(x), half to even, with the gradient of the identity."""
    return x + (x.round() - x).detach()
