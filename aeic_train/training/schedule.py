"""The learning rate over a stage, and its factor for each group of parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aeic_nets.network import AEIC
from aeic_train.training.recipe import Stage

GAINS = ("log_gain", "log_inverse_gain")
GAIN_SPEED = 8.0
"""Factor on the learning rate of the gains. A row of gains is used in one of six steps, and it determines the bits of
its rate point. If the gains learn too slowly, the controller raises lambda instead, and quality suffers."""


def parameter_groups(model: AEIC, parameters: list[Tensor]) -> list[dict[str, Any]]:
    """``parameters`` in two groups, the gains and the rest, each with its ``speed``, a factor on the learning rate."""
    gains = [p for name, p in model.codec.named_parameters() if name in GAINS and p.requires_grad]
    rest = [p for p in parameters if all(p is not gain for gain in gains)]
    groups = ({"params": rest, "speed": 1.0}, {"params": gains, "speed": GAIN_SPEED})
    return [group for group in groups if group["params"]]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, constant between ``drops``, then linear fall to a fiftieth over the last ``decay`` share."""
    scale = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    if stage.decay:
        left = (stage.steps - step) / (stage.decay * stage.steps)
        scale *= 0.02 + 0.98 * min(1.0, left)
    passed = [at for at in stage.drops if at <= step]
    return (stage.drops[max(passed)] if passed else stage.learning_rate) * scale
