"""The networks, written once more from the text of docs/model.md alone, compute the same as ours.

The functions here follow the sections of that page and use its parameter names. A number or an order that is wrong in
the page is wrong here too, and the comparison fails.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aeic.profiles import NANO, Profile
from aeic.tables import Rows, gaussian_rows, rows_from_pmf
from aeic_nets.network import AEIC
from aeic_train.export.tables import hyper_pmfs
from tests.support.models.official_model import SMALL

PROFILES = {"nano": NANO, "with attention and one rate": replace(SMALL, rates=1)}


class Rebuilt:
    """Sections 3 to 5 as functions of named weights."""

    def __init__(self, weights: dict[str, Tensor], sizes: Profile) -> None:
        self.weights, self.sizes = weights, sizes

    # -- section 3 ---------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.weights

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """A convolution with zero padding that keeps the sides, or a linear layer over the channels. Depthwise
        convolutions are known by their shape."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if weight.dim() == 2:
            weight = weight[:, :, None, None]
        groups = x.shape[1] // weight.shape[1]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + eps).sqrt() * weight[:, None, None] + bias[:, None, None]

    def down(self, name: str, x: Tensor) -> Tensor:
        x = self.conv(f"{name}.body.0", x)
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)

    def up(self, name: str, x: Tensor) -> Tensor:
        x = self.conv(f"{name}.body.0", x)
        n, c, h, w = x.shape
        return x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)

    def idw(self, name: str, x: Tensor) -> Tensor:
        q = x.shape[1] // 8
        kept, square, wide, high = x.split([x.shape[1] - 3 * q, q, q, q], 1)
        assert self.weights[f"{name}.dwconv_hw.weight"].shape[2:] == (3, 3)
        assert self.weights[f"{name}.dwconv_w.weight"].shape[2:] == (1, 11)
        assert self.weights[f"{name}.dwconv_h.weight"].shape[2:] == (11, 1)
        parts = (("dwconv_hw", square), ("dwconv_w", wide), ("dwconv_h", high))
        return torch.cat([kept, *(self.conv(f"{name}.{part}", value) for part, value in parts)], 1)

    def star(self, name: str, x: Tensor) -> Tensor:
        u, v = self.conv(f"{name}.fc1", self.layer_norm(f"{name}.norm", self.idw(f"{name}.dwconv", x), 1e-6)).chunk(
            2, 1
        )
        return x + self.conv(f"{name}.fc2", F.gelu(u) * v)

    def inx(self, name: str, x: Tensor) -> Tensor:
        return x + self.conv(f"{name}.conv2", F.gelu(self.conv(f"{name}.conv1", self.idw(f"{name}.depthconv", x))))

    def gated(self, name: str, x: Tensor) -> Tensor:
        u, v = self.conv(f"{name}.fc1", self.layer_norm(f"{name}.norm", x, 1e-6)).chunk(2, 1)
        assert self.weights[f"{name}.conv.weight"].shape[1:] == (1, 3, 3)
        return x + self.conv(f"{name}.fc2", F.gelu(u) * self.conv(f"{name}.conv", v))

    def adapter(self, name: str, x: Tensor) -> Tensor:
        assert self.weights[f"{name}.branch1.2.weight"].shape[1:] == (1, 5, 5)
        middle = F.gelu(self.conv(f"{name}.branch1.2", F.gelu(self.conv(f"{name}.branch1.0", x))))
        return self.conv(f"{name}.branch1.4", middle) + self.conv(f"{name}.branch2", x)

    # -- section 4 ---------------------------------------------------------------------------------------------------

    def g_a(self, x: Tensor) -> Tensor:
        number = 0
        for _ in self.sizes.analysis_widths:
            x = self.down(f"codec.g_a.analysis_transform.{number}", x)
            for block in range(number + 1, number + 1 + self.sizes.analysis_depth):
                x = self.star(f"codec.g_a.analysis_transform.{block}", x)
            number += 1 + self.sizes.analysis_depth
        return x

    def h_a(self, y: Tensor) -> Tensor:
        y = F.pad(y, (0, -y.shape[3] % 4, 0, -y.shape[2] % 4), mode="reflect")
        x = self.down("codec.h_a.reduction.0", y)
        x = self.star("codec.h_a.reduction.2", self.star("codec.h_a.reduction.1", x))
        return self.down("codec.h_a.reduction.3", x)

    def h_s(self, z_hat: Tensor, height: int, width: int) -> Tensor:
        x = self.up("codec.h_s.increase.0", z_hat)
        x = self.star("codec.h_s.increase.2", self.star("codec.h_s.increase.1", x))
        return self.up("codec.h_s.increase.3", x)[..., :height, :width]

    def cumulative(self, v: Tensor, rate: int) -> Tensor:
        """Section 4.3: the sigmoid of the cumulative logit of v (M/2, 1, any)."""
        own = slice(rate * self.sizes.hyper_channels, (rate + 1) * self.sizes.hyper_channels)
        name, t = "codec.entropy_bottleneck", v
        for i in range(5):
            t = F.softplus(self.weights[f"{name}.matrices.{i}"][own]) @ t + self.weights[f"{name}.biases.{i}"][own]
            if i < 4:
                t = t + torch.tanh(self.weights[f"{name}.factors.{i}"][own]) * torch.tanh(t)
        return torch.sigmoid(t)

    def z_bits(self, symbols: Tensor, rate: int) -> Tensor:
        """Section 4.3, of symbols plus medians (1, M/2, hz, wz)."""
        n = self.sizes.hyper_channels
        medians = self.weights["codec.entropy_bottleneck.quantiles"][:n, 0, 1]
        v = (symbols[0] + medians[:, None, None]).reshape(n, 1, -1)
        likelihood = self.cumulative(v + 0.5, rate) - self.cumulative(v - 0.5, rate)
        return -likelihood.clamp_min(1e-9).log2().sum()

    def context(self, i: int, base: Tensor) -> tuple[Tensor, Tensor]:
        x = self.adapter(f"codec.adapter_in.{i}", base)
        for j in range(self.sizes.context_depth):
            x = self.inx(f"codec.g_c.block.{j}.blocks.0", x)
            x = self.gated(f"codec.g_c.block.{j}.blocks.1", x)
        means, scales = self.adapter(f"codec.adapter_out.{i}", x).chunk(2, 1)
        return means, scales

    def g_s(self, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        x = y_hat
        kinds = [self.adapter, self.star, self.star, self.up, self.star, self.star, self.up, self.star, self.star]
        for number, block in enumerate([*kinds, self.adapter]):
            x = block(f"codec.g_s.synthesis_transform.{number}", x)
        latent, residual = x.split([self.sizes.unet_channels, self.sizes.residual_channels], 1)
        return latent, residual

    # -- section 5 ---------------------------------------------------------------------------------------------------

    def group_norm(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        return F.group_norm(x, groups, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def res(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.group_norm(f"{name}.norm1", x, groups, eps)))
        h = self.conv(f"{name}.conv2", F.silu(self.group_norm(f"{name}.norm2", h, groups, eps)))
        return h + (self.conv(f"{name}.conv_shortcut", x) if self.has(f"{name}.conv_shortcut") else x)

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Self-attention over all positions of x (1, C, h, w)."""
        shape = x.shape
        q, k, v = (self.conv(f"{name}.to_{p}", x).reshape(heads, shape[1] // heads, -1).transpose(1, 2) for p in "qkv")
        mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(shape[1] // heads), -1) @ v
        return self.conv(f"{name}.to_out.0", mixed.transpose(1, 2).reshape(shape))

    def transformer(self, name: str, x: Tensor) -> Tensor:
        sizes = self.sizes.unet
        block = f"{name}.transformer_blocks.0"
        h = self.conv(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, sizes.norm_groups, 1e-6))
        for part in "qkv":
            assert f"{block}.attn1.to_{part}.bias" not in self.weights
        heads = h.shape[1] // sizes.head_width
        h = h + self.attention(f"{block}.attn1", self.layer_norm(f"{block}.norm1", h, 1e-5), heads)
        value, gate = self.conv(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h, 1e-5)).chunk(2, 1)
        h = h + self.conv(f"{block}.ff.net.2", value * F.gelu(gate))
        return x + self.conv(f"{name}.proj_out", h)

    def unet(self, latent: Tensor) -> Tensor:
        sizes, last = self.sizes.unet, len(self.sizes.unet.widths) - 1
        x = self.conv("unet.conv_in", latent)
        skips = [x]

        def res(name: str, x: Tensor) -> Tensor:
            return self.res(name, x, sizes.norm_groups, 1e-5)

        for i in range(last + 1):
            for j in range(sizes.layers):
                x = res(f"unet.down_blocks.{i}.resnets.{j}", x)
                if sizes.attention[i]:
                    x = self.transformer(f"unet.down_blocks.{i}.attentions.{j}", x)
                skips.append(x)
            if i < last:
                x = self.conv(f"unet.down_blocks.{i}.downsamplers.0.conv", x, stride=2)
                skips.append(x)
        x = res("unet.mid_block.resnets.0", x)
        x = self.transformer("unet.mid_block.attentions.0", x)
        x = res("unet.mid_block.resnets.1", x)
        for number, i in enumerate(range(last, -1, -1)):
            for j in range(sizes.layers + 1):
                x = res(f"unet.up_blocks.{number}.resnets.{j}", torch.cat([x, skips.pop()], 1))
                if sizes.attention[i]:
                    x = self.transformer(f"unet.up_blocks.{number}.attentions.{j}", x)
            if i > 0:
                x = double(x)[..., : skips[-1].shape[2], : skips[-1].shape[3]]
                x = self.conv(f"unet.up_blocks.{number}.upsamplers.0.conv", x)
        assert not skips
        return self.conv("unet.conv_out", F.silu(self.group_norm("unet.conv_norm_out", x, sizes.norm_groups, 1e-5)))

    def picture_decoder(self, x: Tensor) -> Tensor:
        sizes, name = self.sizes.vae, "vae.decoder"
        x = self.conv(f"{name}.conv_in", x)
        x = self.res(f"{name}.mid_block.resnets.0", x, sizes.norm_groups, 1e-6)
        if sizes.mid_attention:
            middle = f"{name}.mid_block.attentions.0"
            x = x + self.attention(middle, self.group_norm(f"{middle}.group_norm", x, sizes.norm_groups, 1e-6), 1)
        x = self.res(f"{name}.mid_block.resnets.1", x, sizes.norm_groups, 1e-6)
        for i in range(len(sizes.widths)):
            for j in range(sizes.layers):
                x = self.res(f"{name}.up_blocks.{i}.resnets.{j}", x, sizes.norm_groups, 1e-6)
            if i < len(sizes.widths) - 1:
                x = self.conv(f"{name}.up_blocks.{i}.upsamplers.0.conv", double(x))
        x = self.conv(f"{name}.conv_out", F.silu(self.group_norm(f"{name}.conv_norm_out", x, sizes.norm_groups, 1e-6)))
        return F.pixel_shuffle(x, sizes.patch)


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour doubling of the sides."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@cache
def networks(name: str) -> tuple[AEIC, Rebuilt]:
    """A network of ours whose every parameter is random, and the rebuilt one with its weights."""
    torch.manual_seed(0)
    sizes = PROFILES[name]
    model = AEIC(sizes).eval().requires_grad_(False)
    for path, parameter in model.named_parameters():
        if "entropy_bottleneck" in path:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.dim() > 1:
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, Rebuilt(dict(model.state_dict()), sizes)


def same(ours: Tensor, rebuilt: Tensor) -> None:
    assert float(ours.std()) > 0.01
    torch.testing.assert_close(rebuilt, ours, atol=2e-4, rtol=2e-4)


@pytest.fixture(params=PROFILES)
def pair(request: pytest.FixtureRequest) -> tuple[AEIC, Rebuilt]:
    return networks(request.param)


@torch.no_grad()
def test_the_codec(pair: tuple[AEIC, Rebuilt]) -> None:
    model, rebuilt = pair
    m, n = rebuilt.sizes.latent_channels, rebuilt.sizes.hyper_channels
    torch.manual_seed(1)
    x = torch.rand(1, 3, 128, 192) * 2 - 1
    same(model.codec.g_a(x), rebuilt.g_a(x))
    for height, width in ((4, 6), (6, 8)):
        y = torch.randn(1, m, height, width)
        same(model.codec.hyper(y), rebuilt.h_a(y))
    z_hat = torch.randn(1, n, 2, 2)
    same(model.codec.h_s(z_hat)[..., :6, :8], rebuilt.h_s(z_hat, 6, 8))
    base = torch.randn(1, m, 4, 6)
    for i in range(4):
        for ours, other in zip(model.codec.context(i, base), rebuilt.context(i, base), strict=True):
            same(ours, other)
    for ours, other in zip(model.codec.g_s(base), rebuilt.g_s(base), strict=True):
        same(ours, other)


@torch.no_grad()
def test_the_generator(pair: tuple[AEIC, Rebuilt]) -> None:
    model, rebuilt = pair
    torch.manual_seed(2)
    latent = torch.randn(1, rebuilt.sizes.unet_channels, 16, 24)
    residual = torch.randn(1, rebuilt.sizes.residual_channels, 16, 24)
    same(model.unet(latent), rebuilt.unet(latent))
    odd = torch.randn(1, rebuilt.sizes.unet_channels, 12, 20)  # a tile of 3 x 5 latents
    same(model.unet(odd), rebuilt.unet(odd))
    same(model.vae(residual), rebuilt.picture_decoder(residual))


@torch.no_grad()
def test_a_picture_from_end_to_end(pair: tuple[AEIC, Rebuilt]) -> None:
    """The passes of section 4.4, bits of 4.3 and 4.5, gains of 4.6, and the formula of section 5."""
    model, rebuilt = pair
    torch.manual_seed(3)
    x, rate = torch.rand(1, 3, 128, 192) * 2 - 1, rebuilt.sizes.rates - 1
    model.codec.zero_skipped = True
    out = model(x, rate)
    gains = [rebuilt.weights[f"codec.{name}"][rate].exp()[:, None, None] for name in GAINS] if rate else [1.0, 1.0]
    y = model.codec.g_a(x) * gains[0]
    medians = rebuilt.weights["codec.entropy_bottleneck.quantiles"][: rebuilt.sizes.hyper_channels, 0, 1][:, None, None]
    z_symbols = (model.codec.hyper(y) - medians).round()
    assert torch.equal(z_symbols, out["z_symbols"]) and z_symbols.any()
    base = model.codec.h_s(z_symbols + medians)[..., :4, :6]
    bits = torch.zeros(())
    quarter = rebuilt.sizes.latent_channels // 4
    for i, classes in enumerate(PASSES):
        means, scales = model.codec.context(i, base)
        here = torch.zeros_like(base, dtype=torch.bool)
        for group, letter in enumerate(classes):
            row, column = divmod("abcd".index(letter), 2)
            here[:, group * quarter : (group + 1) * quarter, row::2, column::2] = True
        symbols = torch.where(scales < 0.08, 0.0, (y - means).round())
        base = torch.where(here, symbols + means, base)
        assert torch.equal(symbols[here], out["symbols"][here])
        size, value = scales.clamp_min(0.11), (y - means).round().abs()
        likelihood = phi((0.5 - value) / size) - phi((-0.5 - value) / size)
        bits += torch.where(here & (scales >= 0.08), -likelihood.clamp_min(1e-9).log2(), 0.0).sum()
    torch.testing.assert_close(base * gains[1], out["y_hat"])
    # Random networks are often surprised, and torch's float32 ndtr is inaccurate below 1e-7.
    torch.testing.assert_close(bits, out["y_bits_hard"], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(rebuilt.z_bits(z_symbols, rate), out["z_bits_hard"], rtol=1e-3, atol=1e-3)
    latent, residual = rebuilt.g_s(out["y_hat"])
    same(out["x_hat"], rebuilt.picture_decoder(rebuilt.unet(latent) + residual))


def shared(p: NDArray[np.float64]) -> list[int]:
    """The rule of section 4.3: integers of at least 1 that sum to 2**24."""
    shares = p / p.sum() * (2**24 - len(p))
    entries = [1 + math.floor(share) for share in shares]
    by_fraction = sorted(range(len(p)), key=lambda k: math.floor(shares[k]) - shares[k])
    for k in by_fraction[: 2**24 - sum(entries)]:
        entries[k] += 1
    return entries


@torch.no_grad()
def test_the_tables_of_z(pair: tuple[AEIC, Rebuilt]) -> None:
    """Section 4.3."""
    model, rebuilt = pair
    n, name = rebuilt.sizes.hyper_channels, "codec.entropy_bottleneck"
    medians = (rebuilt.weights[f"{name}.quantiles"][:n, 0, 1] * 256).round() / 256
    assert (medians != rebuilt.weights[f"{name}.quantiles"][:n, 0, 1]).any()
    rows = Rows(*rows_from_pmf(*hyper_pmfs(model.codec)))
    for rate in range(rebuilt.sizes.rates):
        v = medians[:, None, None] + torch.arange(-60.0, 61.0)
        likelihood = (rebuilt.cumulative(v + 0.5, rate) - rebuilt.cumulative(v - 0.5, rate))[:, 0].double().numpy()
        for channel, p in enumerate(likelihood):
            first, last = -60, 60
            while first < -2 and p[: first + 61].sum() <= 1e-7:
                first += 1
            while last > 2 and p[last + 60 :].sum() <= 1e-7:
                last -= 1
            row = rate * n + channel
            assert (rows.offsets[row], rows.lengths[row]) == (first, last - first + 1)
            assert rows.freqs[rows.row(row)].tolist() == shared(p[first + 60 : last + 61])


def test_the_tables_of_y() -> None:
    """Section 4.5."""
    rows, step = Rows(*gaussian_rows()), (math.log(256) - math.log(0.11)) / 63
    for k in range(64):
        s = 0.11 * math.exp(k * step)
        reach = max(4, math.ceil(6.1094 * s))
        p = np.array(
            [NormalDist(0, s).cdf(0.5 - abs(v)) - NormalDist(0, s).cdf(-0.5 - abs(v)) for v in range(-reach, reach + 1)]
        )
        assert (rows.offsets[k], rows.lengths[k]) == (-reach, 2 * reach + 1)
        assert np.abs(rows.freqs[rows.row(k)] - shared(p)).max() <= 1


GAINS = ("log_gain", "log_inverse_gain")
PASSES = ("abcd", "dcba", "cdab", "badc")
"""docs/bitstream.md section 6.2: for each pass, the class of the positions where groups 0 to 3 are coded."""


def phi(x: Tensor) -> Tensor:
    """The distribution function of the standard normal."""
    return 0.5 * torch.erfc(-x / math.sqrt(2))
