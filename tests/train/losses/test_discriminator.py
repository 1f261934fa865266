"""The discriminator learns to distinguish pictures, and its term moves pictures only through the feature maps."""

from __future__ import annotations

import torch

from aeic_train.losses.discriminator import DiscriminatorTrainer
from aeic_train.losses.picture_loss import TAP_WIDTHS, Features


def maps(mean: float, scale: int = 32) -> list[torch.Tensor]:
    sides = (scale, scale // 2, scale // 4, scale // 8, scale // 8)
    return [torch.randn(2, width, side, side) + mean for width, side in zip(TAP_WIDTHS, sides)]


def test_the_widths_are_the_feature_nets() -> None:
    assert tuple(m.shape[1] for m in Features()(torch.zeros(1, 3, 64, 64))) == TAP_WIDTHS


def test_it_learns_to_tell_apart_what_differs() -> None:
    torch.manual_seed(0)
    discriminator = DiscriminatorTrainer(learning_rate=5e-3)
    losses = [discriminator.learn(maps(1.0), maps(-1.0)) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    assert discriminator.generator_loss(maps(-1.0)) > discriminator.generator_loss(maps(1.0))


def test_its_state_goes_on_where_it_stood() -> None:
    first, second = DiscriminatorTrainer(), DiscriminatorTrainer()
    first.learn(maps(1.0), maps(-1.0))
    second.load_state_dict(first.state_dict())
    sample = maps(0.0)
    first.discriminator.eval(), second.discriminator.eval()
    for a, b in zip(first.discriminator(sample), second.discriminator(sample)):
        assert torch.equal(a, b)
