"""From decoded latents to a picture: g_s, the one-step UNet and the picture decoder. This is what a decoder runs in
torch.

It does not need the training packages: a cloud installs torch and diffusers, but not CompressAI.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aeic.profiles import Profile
from aeic_nets.blocks import Adapter, StarBlock, Upsample
from aeic_nets.unet import UNet
from aeic_nets.vae import PictureDecoder


class Synthesis(nn.Module):
    """g_s: y_hat (N, M, h, w) to l (N, unet_channels, 4h, 4w) and the residual (N, residual_channels, 4h, 4w)."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        widths = profile.synthesis_widths
        layers: list[nn.Module] = [Adapter(profile.latent_channels, widths[0])]
        for width, following in zip(widths, (*widths[1:], None)):
            layers += [StarBlock(width), StarBlock(width)]
            if following is not None:
                layers.append(Upsample(width, following))
        self.outputs = (profile.unet_channels, profile.residual_channels)
        self.synthesis_transform = nn.Sequential(*layers, Adapter(widths[-1], sum(self.outputs)))

    def forward(self, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        latent, residual = torch.split(self.synthesis_transform(y_hat), self.outputs, dim=1)
        return latent, residual


class _SynthesisOnly(nn.Module):
    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.g_s = Synthesis(profile)


class PictureGenerator(nn.Module):
    """``codec.g_s``, ``unet`` and ``vae`` of one profile. Parameter names are those of the whole network."""

    def __init__(self, profile: Profile, codec: nn.Module | None = None) -> None:
        """``codec``: the whole codec, if there is one; by default only its g_s is made."""
        super().__init__()
        self.profile = profile
        self.codec: Any = codec or _SynthesisOnly(profile)
        self.unet = UNet(profile.unet, profile.unet_channels, profile.residual_channels)
        self.vae = PictureDecoder(profile.vae, profile.residual_channels)

    def generate(self, y_hat: Tensor) -> Tensor:
        """y_hat (N, M, h, w), gain undone, to a picture (N, 3, 32h, 32w), about [-1, 1], not clamped."""
        latent, residual = self.codec.g_s(y_hat)
        picture: Tensor = self.vae(self.unet(latent) + residual)
        return picture
