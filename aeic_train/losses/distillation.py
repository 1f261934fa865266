"""Distillation on both sides: the student's analysis features, latents and UNet features learn to match a teacher's.

Source: the paper's two stages. Its weights and layers are not published beyond the eleven UNet taps
(docs/model.md section 5.1), so the distance is ours: the squared difference in units of the teacher's energy,
the mean over the taps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from aeic import profiles
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights

PARTS = ("analysis", "latent", "unet")


class Distillation(nn.Module):
    """A frozen teacher, and the 1x1 projections from the student's widths to the teacher's (trained).

    Latents of one width are compared as they are: ``latent`` and the projection of the last stage of g_a exist only if
    the widths differ, as between SE and ME.
    """

    def __init__(self, student: AEIC, teacher: AEIC) -> None:
        super().__init__()
        ours, theirs = student.profile, teacher.profile
        if (ours.unet, ours.unet_channels, ours.rates) != (theirs.unet, theirs.unet_channels, theirs.rates):
            raise ValueError(f"{theirs.name!r} cannot teach {ours.name!r}: UNet and rate points must be alike")
        # The teacher is in a list, so that it is neither trained nor saved with the projections.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.projections = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(ours.analysis_widths[:-1], theirs.analysis_widths[:-1])
        )
        self.latent: nn.Module = nn.Identity()
        if ours.latent_channels != theirs.latent_channels:
            self.projections.append(nn.Conv2d(ours.latent_channels, theirs.latent_channels, 1))
            self.latent = nn.Conv2d(ours.latent_channels, theirs.latent_channels, 1)

    @property
    def teacher(self) -> AEIC:
        return self._teacher[0]

    @classmethod
    def from_weights(cls, student: AEIC, profile: str, weights: Path) -> Distillation:
        """Distil from the teacher in a bundle's ``weights.safetensors``."""
        teacher = AEIC(profiles.profile(profile)).to(memory_format=torch.channels_last)
        load_weights(teacher, weights)
        return cls(student, teacher)

    def forward(
        self, x: Tensor, rate: int, y_hat: Tensor, analysis: list[Tensor], taps: list[Tensor]
    ) -> dict[str, Tensor]:
        """The distance of each part, a scalar, for pictures x and the student's results for them (AEIC.with_taps)."""
        teacher = self.teacher
        with torch.no_grad():
            features = teacher.codec.g_a.features(x)
            latents = teacher.codec(features[-1], rate)["y_hat"]
            teacher_taps = teacher.unet.features(teacher.codec.g_s(latents)[0])
        projected = [projection(tap) for projection, tap in zip(self.projections, analysis)]
        return {
            "analysis": mean_distance([*projected, *analysis[len(projected) :]], features),
            "latent": distance(self.latent(y_hat), latents),
            "unet": mean_distance(taps, teacher_taps),
        }


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference of a to b, in units of b's energy."""
    a, b = a.float(), b.detach().float()
    return (a - b).square().mean() / b.square().mean().clamp_min(1e-6)


def mean_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([distance(p, q) for p, q in zip(a, b, strict=True)]).mean()
