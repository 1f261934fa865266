"""The picture decoder: diffusers' VAE decoder with half the widths in the published sizes, and smaller ones in nano.

Source: docs/model.md section 5.2.
"""

from __future__ import annotations

from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn
from torch.nn import functional as F

from aeic.profiles import VAESizes

VAE_INPUTS = 4
"""Channels that the half decoder's conv_in has in its file."""


class PictureDecoder(nn.Module):
    """Features (N, in_channels, H/8, W/8) to a picture (N, 3, H, W), about [-1, 1], not clamped."""

    def __init__(self, sizes: VAESizes, in_channels: int) -> None:
        super().__init__()
        self.patch = sizes.patch
        self.decoder = Decoder(
            in_channels=in_channels,
            out_channels=3 * sizes.patch**2,
            up_block_types=("UpDecoderBlock2D",) * len(sizes.widths),
            block_out_channels=tuple(reversed(sizes.widths)),
            layers_per_block=sizes.layers - 1,
            norm_num_groups=sizes.norm_groups,
            mid_block_add_attention=sizes.mid_attention,
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(x), self.patch)
