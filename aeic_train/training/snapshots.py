"""Copies of the weights during a run, from which ``aeic bench evolution`` shows how rate and picture change.

``RUN/snapshots/TOTAL.safetensors`` holds the moving average after TOTAL steps in half precision, without the parameters
that never learn; its metadata hold profile, stage and rate points.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aeic import profiles
from aeic.errors import InputError
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights


@dataclass(frozen=True)
class RunPosition:
    """The position of a snapshot in its run."""

    stage: str
    total: int
    """Steps since the beginning of the run."""
    rates: list[int]
    """Rate points that the stage trains."""


def write(model: AEIC, folder: Path, place: RunPosition, without: Collection[str] = ()) -> None:
    """Write a snapshot of ``model`` without the parameters named in ``without``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: parameter.detach().to("cpu", torch.float16).contiguous()
        for name, parameter in model.named_parameters()
        if name not in without
    }
    metadata = {"profile": model.profile.name, "stage": place.stage, "total": str(place.total)}
    metadata |= {"rates": json.dumps(place.rates), "complete": json.dumps(not without)}
    target = folder / f"{place.total:06d}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.rename(target)


def find(run: Path) -> list[Path]:
    """The snapshots of a run, in order. ``InputError`` if there are none."""
    paths = sorted((run / "snapshots").glob("*.safetensors"))
    if not paths:
        raise InputError(f"{run} has no snapshots: train it with --snapshots STEPS")
    return paths


def place_of(path: Path) -> RunPosition:
    """The position of a snapshot."""
    metadata = _metadata(path)
    return RunPosition(metadata["stage"], int(metadata["total"]), json.loads(metadata["rates"]))


def load(path: Path) -> AEIC:
    """The network of a snapshot. ``InputError`` for a run of full size, whose snapshots lack the frozen parameters."""
    metadata = _metadata(path)
    if not json.loads(metadata["complete"]):
        raise InputError(f"{path} holds the trained parameters only, as runs of full size do: it cannot be evaluated")
    model = AEIC(profiles.profile(metadata["profile"])).eval().requires_grad_(False)
    load_weights(model, path)
    return model


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not {"profile", "stage", "total", "rates", "complete"} <= metadata.keys():
        raise InputError(f"{path} is not a snapshot of a run")
    return metadata
