"""The one-step UNet at 1/8 scale, composed of diffusers blocks: no time embedding, no text, no cross-attention.

Parameter names are those of diffusers' ``UNet2DConditionModel`` in the SD 2.x layout: SD-Turbo's tensors load by name.
Source: docs/model.md section 5.1.
"""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import Tensor, nn
from torch.nn import functional as F

from aeic.profiles import UNetSizes

# The blocks' own default (1e-6) differs from SD 2.x and costs 8e-5 of error.
RESNET_EPS = 1e-5


EXACT_STAGES = 3
"""A latent is four samples wide. It can be halved twice, between three stages, and always doubles to the same width."""


class UNet(nn.Module):
    """l (N, in_channels, H, W) to (N, out_channels, H, W); H and W are multiples of 4."""

    def __init__(self, sizes: UNetSizes, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = sizes.widths
        last = len(widths) - 1
        self._sides_may_be_odd = len(widths) > EXACT_STAGES
        common = {"temb_channels": None, "resnet_eps": RESNET_EPS, "resnet_groups": sizes.norm_groups}

        def transformer(width: int) -> dict[str, object]:
            return {
                "num_attention_heads": width // sizes.head_width,
                "cross_attention_dim": None,
                "use_linear_projection": True,
            }

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            arguments = dict(
                common,
                in_channels=widths[max(i - 1, 0)],
                out_channels=width,
                num_layers=sizes.layers,
                add_downsample=i != last,
                downsample_padding=1,
            )
            self.down_blocks.append(
                CrossAttnDownBlock2D(**arguments, **transformer(width))
                if sizes.attention[i]
                else DownBlock2D(**arguments)
            )
        self.mid_block = UNetMidBlock2DCrossAttn(in_channels=widths[-1], **common, **transformer(widths[-1]))
        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            arguments = dict(
                common,
                in_channels=widths[max(i - 1, 0)],
                out_channels=widths[i],
                prev_output_channel=widths[min(i + 1, last)],
                num_layers=sizes.layers + 1,
                add_upsample=i != 0,
            )
            self.up_blocks.append(
                CrossAttnUpBlock2D(**arguments, **transformer(widths[i]))
                if sizes.attention[i]
                else UpBlock2D(**arguments)
            )
        self.conv_norm_out = nn.GroupNorm(sizes.norm_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1]

    def features(self, x: Tensor) -> list[Tensor]:
        """The taps that distillation compares: input, every down stage, middle, every up stage, output."""
        taps = [x]
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, states = block(x, None)
            skips.extend(states)
            taps.append(x)
        x = self.mid_block(x, None)
        taps.append(x)
        for block in self.up_blocks:
            count = len(block.resnets)
            used = tuple(skips[-count:])
            del skips[-count:]
            # As diffusers does: where a side was odd, twice its half is one too many. Tiles of large pictures have
            # such sides. Not in other networks, whose exported graph would compute the sides.
            size = skips[-1].shape[-2:] if skips and self._sides_may_be_odd else None
            x = block(x, used, None, upsample_size=size)
            taps.append(x)
        taps.append(self.conv_out(F.silu(self.conv_norm_out(x))))
        return taps


def widen_conv_in(weight: Tensor, channels: int, divisor: float) -> Tensor:
    """Repeats a kernel's inputs to ``channels``: W'[:, c] = W[:, c mod n] / divisor (docs/model.md section 8.3)."""
    repeats = torch.arange(channels) % weight.shape[1]
    return weight[:, repeats] / divisor
