"""The weight of the rate (lambda) of each rate point, steered so that the bits of rounded latents meet a target."""

from __future__ import annotations

import math
from typing import Any

from aeic_train.training.recipe import Stage

STEER = 0.015
"""How fast lambda follows the bits: a rate point twice over its target gains 1.5 % a step."""


class RateController:
    """``lambdas`` by rate point, and the bpp that each was last steered to."""

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
        """Moves lambda by what the last batch cost, ``bpp`` of hard-rounded latents."""
        error = max(-1.0, min(1.0, bpp / self.targets[rate] - 1))
        self.lambdas[rate] *= math.exp(STEER * error)

    def _first(self, target: float) -> float:
        """For a rate point not trained before: from one that was, by the usual power law of weight and rate."""
        for rate, bpp in self.targets.items():
            return self.lambdas[rate] * (bpp / target) ** 1.5
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"lambdas": self.lambdas, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lambdas, self.targets = dict(state["lambdas"]), dict(state["targets"])
