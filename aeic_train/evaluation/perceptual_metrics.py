"""The metrics that papers report, from the libraries that papers use.

``lpips`` (AlexNet), ``dists``, ``musiq`` and ``clipiqa`` come from pyiqa, ``fid`` and ``kid`` from torchmetrics with
torch-fidelity. Without pyiqa, ``lpips`` and ``dists`` come from torchmetrics too, which has the same networks. FID and
KID are computed over tiles of 256 pixels and a second grid of tiles, shifted by 128, as HiFiC, MS-ILLM and AEIC's
authors do. Only the extra ``perceptual`` installs torchmetrics, and the weights are files of their own. A metric is
used if its library and its weights are on this machine. Nothing is downloaded unless the caller asks for it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aeic.errors import InputError
from aeic_train.libraries import no_downloads, remedy

Picture = NDArray[np.uint8]
Pooled = NDArray[np.float32]

PAIRED = ("lpips", "dists")
"""Metrics that compare with the original. Lower is better."""
SINGLE = ("musiq", "clipiqa")
"""Metrics of pyiqa that see the reconstruction alone. Higher is better."""
SETS = ("fid", "kid")
"""Distances of two sets of tiles. Lower is better."""
PICTURE_METRICS = (*PAIRED, *SINGLE)
PERCEPTUAL_METRICS = (*PICTURE_METRICS, *SETS)
TILE = 256
KID_SUBSET = 1000
"""Tiles in a subset of KID, torchmetrics' default; all tiles if there are fewer."""


@dataclass(frozen=True)
class PerceptualMetrics:
    """The metrics that can be used.

    ``metrics`` are functions of pictures (1, 3, H, W) in [0, 1]: of the reconstruction and, for ``PAIRED``, the
    original. ``extractor`` maps tiles to Inception features.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    extractor: nn.Module | None = None
    sets: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.metrics, *self.sets)

    @torch.no_grad()
    def measure(self, original: Picture, reconstruction: Picture) -> dict[str, float]:
        """Every metric of one pair of uint8 pictures (H, W, 3). nan where a network refuses a picture so small."""
        made, true = _unit(reconstruction), _unit(original)
        found = {}
        for name, metric in self.metrics.items():
            try:
                found[name] = float(metric(made, true) if name in PAIRED else metric(made))
            except (RuntimeError, ValueError, AssertionError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                found[name] = float("nan")
        return found

    @torch.no_grad()
    def features(self, picture: Picture) -> Pooled:
        """Inception features of the tiles of a picture, (tiles, channels) float32; no tiles under 256 pixels a side."""
        assert self.extractor is not None
        cut = list(tiles(picture))
        if not cut:
            return np.zeros((0, 0), np.float32)
        batch = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
        rows: Tensor = torch.cat([self.extractor(part) for part in batch.split(16)])
        return rows.float().numpy()

    def distances(self, original: Pooled, made: Pooled) -> dict[str, float]:
        """FID and KID between the features of two sets, each (n, channels); empty for fewer than two tiles."""
        if len(original) < 2 or len(made) < 2:
            return {}
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        identity = _Identity(original.shape[1])
        subset = min(KID_SUBSET, len(original), len(made))
        of = {
            "fid": lambda: FrechetInceptionDistance(feature=identity),
            "kid": lambda: KernelInceptionDistance(feature=identity, subset_size=subset),
        }
        found = {}
        for name in self.sets:
            metric = of[name]()
            metric.update(torch.from_numpy(original), real=True)
            metric.update(torch.from_numpy(made), real=False)
            with torch.random.fork_rng([]):  # KID draws its subsets at random
                torch.manual_seed(0)
                value = metric.compute()
            found[name] = float(value[0] if isinstance(value, tuple) else value)
        return found


class _Identity(nn.Module):
    """A feature extractor for features that are already computed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        return x


def tiles(picture: Picture) -> Iterator[Picture]:
    """The whole tiles of 256 x 256 pixels from the top left, then those from (128, 128) if both sides have 384."""
    height, width = picture.shape[:2]
    for start in (0, TILE // 2) if min(height, width) >= TILE + TILE // 2 else (0,):
        for top in range(start, height - TILE + 1, TILE):
            for left in range(start, width - TILE + 1, TILE):
                yield picture[top : top + TILE, left : left + TILE]


def find(wanted: Sequence[str], *, download: bool = False) -> tuple[PerceptualMetrics, list[str]]:
    """Those of ``wanted`` that this machine has, and a message with the remedy for each of the others.

    With ``download``, the libraries may fetch weights from the addresses that they know.
    """
    if unknown := [name for name in wanted if name not in PERCEPTUAL_METRICS]:
        raise InputError(f"unknown metric {unknown[0]!r}: choose from {', '.join(PERCEPTUAL_METRICS)}")
    metrics: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    allowed = contextlib.nullcontext if download else no_downloads
    for name in (name for name in PICTURE_METRICS if name in wanted):
        try:
            with allowed(), contextlib.redirect_stdout(sys.stderr):
                metrics[name] = _metric(name)
        except Exception as error:  # of any library below these two
            missing.setdefault(remedy(error, "pyiqa"), []).append(name)
    sets = tuple(name for name in SETS if name in wanted)
    extractor = None
    if sets:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            with allowed(), contextlib.redirect_stdout(sys.stderr):
                extractor = FrechetInceptionDistance(feature=2048).inception
        except Exception as error:  # of any library below torchmetrics
            missing.setdefault(remedy(error, "torchmetrics torch-fidelity"), []).extend(sets)
            sets = ()
    return PerceptualMetrics(metrics, extractor, sets), [
        f"{', '.join(names)}: {reason}" for reason, names in missing.items()
    ]


def _metric(name: str) -> Any:
    """A metric of one picture from pyiqa or, if that is not installed, from torchmetrics, which has LPIPS and DISTS."""
    try:
        import pyiqa

        return pyiqa.create_metric(name, device="cpu")
    except ModuleNotFoundError as error:
        if error.name != "pyiqa" or name not in PAIRED:
            raise
    if name == "lpips":
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    from torchmetrics.functional.image.dists import DISTSNetwork  # the metric's class loads VGG again for each picture

    return DISTSNetwork()


def _unit(picture: Picture) -> Tensor:
    """uint8 (H, W, 3) to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().div(255)
