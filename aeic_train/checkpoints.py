"""Initial weights: loaded from a bundle, or copied from a trained rate point to untrained ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from aeic_nets.network import AEIC

ENTROPY = ("codec.g_a", "codec.h_", "codec.adapter", "codec.g_c", "codec.entropy", "codec.log_gain")
"""Prefixes of the parameters that the bits of a file depend on."""


def spread_rate_prior(model: AEIC, source: int) -> None:
    """Copies the factorised prior of one rate point to every other: a start for points that were never trained."""
    n = model.profile.hyper_channels
    with torch.no_grad():
        for tensor in model.codec.entropy_bottleneck.parameters():
            tensor.copy_(tensor[source * n : (source + 1) * n].repeat(model.profile.rates, 1, 1))


def load_weights(model: AEIC, path: Path, fresh: tuple[str, ...] = ()) -> None:
    """Loads into ``model`` a bundle's ``weights.safetensors`` (float16) or the moving average of a run's ``state.pt``.

    Parameters whose names begin with one of ``fresh`` keep their own start: they may be absent or of another shape.
    Buffers made at export may be absent. ``ValueError`` if the rest does not fit.
    """
    stored = torch.load(path, weights_only=True)["average"] if path.suffix == ".pt" else load_file(path)
    tensors = {name: tensor.float() for name, tensor in stored.items() if not name.startswith(fresh)}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # torch's message names every parameter of another shape
        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: {error}") from None
    names = {name for name, _ in model.named_parameters() if not name.startswith(fresh)}
    wrong = [*unexpected, *(name for name in missing if name in names)]
    if wrong:
        raise ValueError(f"{path} does not fit profile {model.profile.name!r}: {', '.join(wrong[:5])}")
