"""The probability of a rounded residual under a Gaussian of the predicted scale. Gradients pass its lower bounds."""

from __future__ import annotations

import torch
from compressai.ops import LowerBound
from torch import Tensor

from aeic.profiles import SCALE_MIN

LIKELIHOOD_MIN = 1e-9
_scale_bound = LowerBound(SCALE_MIN)
_likelihood_bound = LowerBound(LIKELIHOOD_MIN)


def gaussian_likelihood(value: Tensor, scale: Tensor) -> Tensor:
    """P(value - 1/2 < N(0, scale) < value + 1/2), elementwise, float32. Source: docs/model.md section 4.5."""
    scale = _scale_bound(scale.float())
    distance = value.float().abs()
    upper = torch.special.ndtr((0.5 - distance) / scale)
    lower = torch.special.ndtr((-0.5 - distance) / scale)
    bounded: Tensor = _likelihood_bound(upper - lower)
    return bounded
