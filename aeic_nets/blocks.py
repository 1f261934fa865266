"""The building blocks. All take and return (N, C, H, W); parameter names are those of the official checkpoints.

Source: docs/model.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Downsample(nn.Module):
    """(N, a, H, W) to (N, b, H/2, W/2): 3x3 to b/4 channels, then pixel-unshuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, out_channels // 4, 3, padding=1), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsample(nn.Module):
    """(N, a, H, W) to (N, b, 2H, 2W): 3x3 to 4b channels, then pixel-shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, out_channels * 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class InceptionDepthwise(nn.Module):
    """A quarter or more of the channels unchanged, the others depthwise 3x3, 1x11 and 11x1 (InceptionNeXt)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        q = channels // 8
        self.split = (channels - 3 * q, q, q, q)
        self.dwconv_hw = nn.Conv2d(q, q, 3, padding=1, groups=q)
        self.dwconv_w = nn.Conv2d(q, q, (1, 11), padding=(0, 5), groups=q)
        self.dwconv_h = nn.Conv2d(q, q, (11, 1), padding=(5, 0), groups=q)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, high = torch.split(x, self.split, dim=1)
        return torch.cat((same, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)), dim=1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels at each position, eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StarBlock(nn.Module):
    """x + fc2(GELU(u) * v), (u, v) = fc1(norm(inception depthwise(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = InceptionDepthwise(channels)
        self.norm = ChannelNorm(channels)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.fc2 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.fc1(self.norm(self.dwconv(x))).chunk(2, dim=1)
        return x + self.fc2(F.gelu(u) * v)


class InceptionNeXt(nn.Module):
    """x + conv2(GELU(conv1(inception depthwise(x)))); no norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthconv = InceptionDepthwise(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(self.depthconv(x))))


class GatedBlock(nn.Module):
    """x + fc2(GELU(u) * depthwise3x3(v)), (u, v) = fc1(norm(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.fc2 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.fc1(self.norm(x)).chunk(2, dim=1)
        return x + self.fc2(F.gelu(u) * self.conv(v))


class Adapter(nn.Module):
    """Changes the width: [1x1, GELU, depthwise 5x5, GELU, 1x1] beside one 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        middle = (in_channels + out_channels) // 2
        self.branch1 = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1),
            nn.GELU(),
            nn.Conv2d(middle, middle, 5, padding=2, groups=middle),
            nn.GELU(),
            nn.Conv2d(middle, out_channels, 1),
        )
        self.branch2 = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch1(x) + self.branch2(x)
