"""g_a in the form that is exported: equal to :class:`aeic_nets.codec.Analysis`, but faster in runtimes.

Three changes leave the result the same up to float32 rounding. A 3x3 convolution and the following pixel-unshuffle
become one 4x4 convolution of stride 2, so that no tensor is shuffled. The scale and shift of a norm move into the next
layer. The two halves of ``fc1`` become separate layers, whose GELU a runtime can fuse. The mean over the channels is
subtracted by a matrix, so that a norm needs only one sum.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeic_nets.blocks import Downsample, InceptionDepthwise, StarBlock
from aeic_nets.codec import Analysis


class StridedDownsample(nn.Module):
    """:class:`Downsample` as one convolution: (N, a, H, W) to (N, b, H/2, W/2)."""

    def __init__(self, block: Downsample) -> None:
        super().__init__()
        weight = block.body[0].weight.detach()  # (b/4, a, 3, 3)
        strided = weight.new_zeros(len(weight), 4, weight.shape[1], 4, 4)
        for dy in (0, 1):
            for dx in (0, 1):
                strided[:, 2 * dy + dx, :, dy : dy + 3, dx : dx + 3] = weight
        self.weight = nn.Parameter(strided.flatten(0, 1), requires_grad=False)
        self.bias = nn.Parameter(block.body[0].bias.detach().repeat_interleave(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2, padding=1)


class SplitStarBlock(nn.Module):
    """:class:`StarBlock` with the norm's affine part in ``fc1``, and ``fc1`` in two."""

    def __init__(self, block: StarBlock) -> None:
        super().__init__()
        self.dwconv: InceptionDepthwise = block.dwconv
        self.fc2, self.eps = block.fc2, block.norm.eps
        channels = len(block.norm.weight)
        centre = torch.eye(channels) - 1 / channels
        self.centre = nn.Parameter(centre[..., None, None], requires_grad=False)
        self.mean = nn.Parameter(torch.full((1, channels, 1, 1), 1 / channels), requires_grad=False)
        weight = block.fc1.weight.detach()[..., 0, 0]  # (4C, C)
        bias = block.fc1.bias.detach() + weight @ block.norm.bias.detach()
        weight = (weight * block.norm.weight.detach())[..., None, None]
        self.u, self.v = (_layer(w, b) for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        centred = F.conv2d(self.dwconv(x), self.centre)
        wide = centred.float()  # squares exceed the range of half precision
        deviation = (F.conv2d(wide * wide, self.mean.float()) + self.eps).sqrt()
        normed = (wide / deviation).to(x.dtype)
        return x + self.fc2(F.gelu(self.u(normed)) * self.v(normed))


class HalfAnalysis(nn.Module):
    """The rewritten g_a in half precision, float32 at both ends: for GPUs."""

    def __init__(self, g_a: Analysis) -> None:
        super().__init__()
        self.layers = fast_analysis(copy.deepcopy(g_a)).half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.half()).float()
        return y


def fast_analysis(g_a: Analysis) -> nn.Sequential:
    """The rewritten ``g_a``. It shares the weights that do not change."""
    layers: list[nn.Module] = []
    for block in g_a.analysis_transform:
        if isinstance(block, Downsample):
            layers.append(StridedDownsample(block))
        else:
            assert isinstance(block, StarBlock)
            layers.append(SplitStarBlock(block))
    return nn.Sequential(*layers).eval()


def _layer(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outputs, inputs = weight.shape[:2]
    with torch.device("meta"):
        made = nn.Conv2d(inputs, outputs, 1)
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    made.bias = nn.Parameter(bias, requires_grad=False)
    return made
