"""A teacher of other widths: its distances vanish for itself, and teach the student without moving the teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aeic.profiles import ME, NANO, NANO_ME, SE, Profile
from aeic_nets.network import AEIC
from aeic_train.losses.distillation import PARTS, Distillation, distance


def test_equal_features_are_no_distance_apart() -> None:
    a = torch.randn(1, 4, 3, 3)
    assert float(distance(a, a)) == 0
    assert float(distance(torch.zeros_like(a), a)) == pytest.approx(1)


def test_the_student_is_drawn_and_the_teacher_stands(tiny: Profile) -> None:
    torch.manual_seed(0)
    teacher = AEIC(replace(tiny, name="tiny-me", analysis_widths=(8, 16, 16, 24, 16), analysis_depth=2))
    student = AEIC(tiny)
    distillation = Distillation(student, teacher)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    out, analysis, taps = student.with_taps(x, 1)
    distances = distillation(x, 1, out["y_hat"], analysis, taps)
    assert set(distances) == set(PARTS)
    assert all(float(d.detach()) > 0 for d in distances.values())
    torch.stack(list(distances.values())).sum().backward()
    assert student.codec.g_a.analysis_transform[0].body[0].weight.grad.abs().sum() > 0
    assert student.unet.conv_in.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    # The teacher is not saved again with every state of the student.
    assert all(name.startswith("projections.") for name in distillation.state_dict())


def test_latents_of_another_width_are_projected(tiny: Profile) -> None:
    torch.manual_seed(0)
    teacher = AEIC(replace(tiny, latent_channels=32, analysis_widths=(*tiny.analysis_widths[:-1], 32)))
    student = AEIC(tiny)
    distillation = Distillation(student, teacher)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    out, analysis, taps = student.with_taps(x, 0)
    distillation(x, 0, out["y_hat"], analysis, taps)["latent"].backward()
    assert {name.split(".")[0] for name in distillation.state_dict()} == {"projections", "latent"}
    assert student.codec.g_a.analysis_transform[0].body[0].weight.grad.abs().sum() > 0


def test_a_teacher_with_another_unet_is_refused(tiny: Profile) -> None:
    with pytest.raises(ValueError, match="cannot teach"):
        Distillation(AEIC(tiny), AEIC(replace(tiny, rates=1)))


def test_the_shipped_profiles_fit() -> None:
    with torch.device("meta"):
        assert len(Distillation(AEIC(NANO), AEIC(NANO_ME)).projections) == 4
        assert len(Distillation(AEIC(SE), AEIC(ME)).projections) == 5
