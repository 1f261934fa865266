"""The adversarial loss: a small discriminator on the frozen feature maps that the picture loss already computes.

It is a small Projected GAN (arXiv 2111.01007), which uses the same EfficientNet-lite0. Both pictures are randomly
shifted and jittered (picture_loss.py), so that the discriminator does not memorise 1,500 photographs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from aeic_train.losses.picture_loss import TAP_WIDTHS
from aeic_train.workers import Workers

JUDGED = (1, 2, 4)
"""The maps of the picture loss that the discriminator sees: those at 1/4, 1/8 and 1/16 scale."""
WIDTH = 64


class Discriminator(nn.Module):
    """Feature maps to one map of logits for each scale: a fixed random 1x1, then two 3x3 with spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Conv2d(TAP_WIDTHS[i], WIDTH, 1).requires_grad_(False) for i in JUDGED)
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1)),
            )
            for _ in JUDGED
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [head(mixer(maps[i].float())) for i, mixer, head in zip(JUDGED, self.mixers, self.heads)]


class DiscriminatorTrainer:
    """The discriminator with its optimiser. ``learn`` is called once after every generator step."""

    def __init__(self, device: torch.device | str = "cpu", learning_rate: float = 2e-4) -> None:
        self.discriminator = Discriminator().to(device)
        heads = self.discriminator.heads.parameters()
        self.optimizer = torch.optim.AdamW(heads, lr=learning_rate, betas=(0.5, 0.9))

    def generator_loss(self, maps: list[Tensor]) -> Tensor:
        """The loss of the generator: minus the mean logit of its pictures."""
        return -torch.stack([logits.mean() for logits in self.discriminator(maps)]).mean()

    def learn(self, real: list[Tensor], fake: list[Tensor], workers: Workers | None = None) -> Tensor:
        """One hinge step on the same maps, detached; returns its loss, a scalar (2 where it cannot distinguish them).

        ``workers``: those whose gradients are averaged; all of them call this in the same step.
        """
        losses = [
            F.relu(1 - a).mean() + F.relu(1 + b).mean()
            for a, b in zip(
                self.discriminator([m.detach() for m in real]), self.discriminator([m.detach() for m in fake])
            )
        ]
        loss = torch.stack(losses).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if workers:
            workers.average(list(self.discriminator.heads.parameters()), loss.new_zeros(0))
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
