"""Controls the weight of the rate (lambda) of each rate point so that the bits of rounded latents meet a target."""

from __future__ import annotations

import math
from typing import Any

from aeic_train.training.recipe import Stage

STEER = 0.015
"""The speed of the controller: lambda of a rate point with twice its target bits grows by 1.5 % a step."""


class LambdaController:
    """``lambdas`` by rate point, and the last target bpp of each."""

    def __init__(self) -> None:
        self.lambdas: dict[str, float] = {}
        self.targets: dict[str, float] = {}

    def weight(self, stage: Stage, rate: str, step: int) -> float:
        """Lambda of ``rate`` at a stage's ``step``, whose target moves from the stage's first bpp to its last."""
        first, final = stage.rates[rate]
        target = first * (final / first) ** min(1.0, step / (stage.fall * stage.steps))
        weight = self.lambdas.setdefault(rate, self._first(target))
        self.targets[rate] = target
        return weight

    def follow(self, rate: str, bpp: float) -> None:
        """Adjust the lambda of ``rate`` by ``bpp``, computed from rounded latents.

        Called once for each process in each step: ``bpp`` is the mean over the batches of that process, which all have
        this rate point.
        """
        error = max(-1.0, min(1.0, bpp / self.targets[rate] - 1))
        self.lambdas[rate] *= math.exp(STEER * error)

    def _first(self, target: float) -> float:
        """The first lambda of a rate point, from that of a trained one by a power law of weight and rate."""
        for rate, bpp in self.targets.items():
            return self.lambdas[rate] * (bpp / target) ** 1.5
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"lambdas": self.lambdas, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lambdas, self.targets = dict(state["lambdas"]), dict(state["targets"])
