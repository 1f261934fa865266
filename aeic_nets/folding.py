"""Folds three layers without changing the result: only four channel averages of (UNet output + residual) are needed.

The picture decoder's conv_in is a 4-channel kernel repeated 64 times and divided by 64. So the UNet's conv_out, the
residual half of the last g_s adapter and conv_in shrink to 4 channels with the same result.
Source: docs/model.md section 8.3. This holds for the official decoder, and not for one that was trained at full width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aeic.errors import BundleError
from aeic_nets.blocks import Adapter
from aeic_nets.synthesis import PictureGenerator
from aeic_nets.vae import VAE_INPUTS

_TOLERANCE = 1e-6


def fold(model: PictureGenerator) -> None:
    """Fold ``model`` in place. ``BundleError`` if the picture decoder's conv_in is not a repeated kernel."""
    kernel = model.vae.decoder.conv_in.weight.detach()
    channels = kernel.shape[1]
    groups = kernel.unflatten(1, (channels // VAE_INPUTS, VAE_INPUTS))
    if (groups - groups[:, :1]).abs().max() > _TOLERANCE * kernel.abs().max():
        raise BundleError("this picture decoder was trained at its full input width: leave it unfolded")
    ends = model.unet.conv_out, *_residual_ends(model)
    keep = (0, model.profile.unet_channels, model.profile.unet_channels)
    values = [
        (_averaged(end.weight.detach(), kept), _averaged(_bias(end), kept))
        for end, kept in zip(ends, keep, strict=True)
    ]
    shrink(model)
    with torch.no_grad():
        for end, (weight, bias) in zip((model.unet.conv_out, *_residual_ends(model)), values, strict=True):
            end.weight.copy_(weight)
            _bias(end).copy_(bias)
        model.vae.decoder.conv_in.weight.copy_(groups.sum(dim=1))


def shrink(model: PictureGenerator) -> None:
    """Give the three layers of ``model`` their folded sizes, in place. Their weights must still be set."""
    outputs = model.profile.unet_channels
    adapter = _last_adapter(model)
    model.unet.conv_out = _like(model.unet.conv_out, out_channels=VAE_INPUTS)
    adapter.branch1[4] = _like(adapter.branch1[4], out_channels=outputs + VAE_INPUTS)
    adapter.branch2 = _like(adapter.branch2, out_channels=outputs + VAE_INPUTS)
    model.codec.g_s.outputs = (outputs, VAE_INPUTS)
    conv_in = model.vae.decoder.conv_in
    model.vae.decoder.conv_in = _like(conv_in, in_channels=VAE_INPUTS)
    model.vae.decoder.conv_in.bias = conv_in.bias


def channel_averages(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 4, H, W): the averages over channels of equal index mod 4."""
    return x.unflatten(1, (x.shape[1] // VAE_INPUTS, VAE_INPUTS)).mean(dim=1)


def _last_adapter(model: PictureGenerator) -> Adapter:
    adapter = model.codec.g_s.synthesis_transform[-1]
    assert isinstance(adapter, Adapter)
    return adapter


def _residual_ends(model: PictureGenerator) -> tuple[nn.Conv2d, nn.Conv2d]:
    adapter = _last_adapter(model)
    return adapter.branch1[4], adapter.branch2


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def _averaged(rows: Tensor, kept: int) -> Tensor:
    """The first ``kept`` rows unchanged, then the averages of the other rows by index mod 4."""
    rest = rows[kept:].unflatten(0, (-1, VAE_INPUTS)).mean(dim=0)
    return torch.cat((rows[:kept], rest))


def _like(layer: nn.Module, in_channels: int | None = None, out_channels: int | None = None) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    side = layer.kernel_size[0]
    with layer.weight.device:
        made = nn.Conv2d(in_channels or layer.in_channels, out_channels or layer.out_channels, side, padding=side // 2)
    return made.requires_grad_(layer.weight.requires_grad)
