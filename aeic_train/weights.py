"""Weights before the first step: from a bundle, or from a rate point that was trained to those that were not."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from aeic_nets.network import AEIC


def spread_rate_prior(model: AEIC, source: int) -> None:
    """Copies the factorised prior of one rate point to every other: a start for points that were never trained."""
    n = model.profile.hyper_channels
    with torch.no_grad():
        for tensor in model.codec.entropy_bottleneck.parameters():
            tensor.copy_(tensor[source * n : (source + 1) * n].repeat(model.profile.rates, 1, 1))


def load_weights(model: AEIC, path: Path) -> None:
    """Loads a bundle's ``weights.safetensors`` (float16) into ``model``; buffers made at export may be absent."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    names = {name for name, _ in model.named_parameters()}
    wrong = [*unexpected, *(name for name in missing if name in names)]
    if wrong:
        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: {', '.join(wrong[:5])}")
