"""Stage 0: trains the picture decoder as half of an autoencoder, and the UNet as a one-step denoiser of its latents.

It stands in for SD-Turbo, whose weights nano does not have. The encoder is discarded afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aeic.profiles import Profile
from aeic_nets.blocks import Downsample, StarBlock
from aeic_nets.network import AEIC


class PriorEncoder(nn.Module):
    """Picture (N, 3, H, W) to a latent (N, residual_channels, H/8, W/8) of about unit deviation."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        width = profile.residual_channels
        if width != profile.unet_channels:
            raise ValueError("stage 0 needs equally wide UNet input and residual")
        self.layers = nn.Sequential(
            Downsample(3, 32), StarBlock(32), Downsample(32, 64), StarBlock(64), Downsample(64, width), StarBlock(width)
        )
        self.norm = nn.GroupNorm(1, width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        latent: Tensor = self.norm(self.layers(x))
        return latent


class DecoderPrior(nn.Module):
    """Decodes half of each batch from clean latents, and the other half from latents that were noised and denoised by
    the UNet."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.encoder = PriorEncoder(model.profile)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        latent = self.encoder(x)
        half = len(x) // 2
        level = torch.rand(half, 1, 1, 1, device=x.device) * 1.5  # noise deviation, against 1 of the latent
        noisy = (latent[:half] + level * torch.randn_like(latent[:half])) / (1 + level.square()).sqrt()
        denoised = self.model.unet(noisy) + noisy
        picture: Tensor = self.model.vae(torch.cat((denoised, latent[half:])))
        return picture
