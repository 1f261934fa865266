"""Small integer models and a bundle that uses one, for the tests of exactness. Random weights, no training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aeic.profiles import NANO, Profile
from aeic_nets.codec import Codec
from aeic_nets.integer.calibrate import calibrate, quantise
from aeic_nets.integer.export import write_graphs
from aeic_nets.integer.model import IntegerModel
from tests.support.models import tiny_bundle

SMALL: Profile = replace(
    NANO, name="small", analysis_widths=(8, 8, 8, 8, 32), latent_channels=32, context_width=48, context_depth=1
)
MODELS: dict[str, tuple[tuple[str, int], ...]] = {
    "8 bit": (),
    "14-bit weights at the ends": (("adapter_*.branch?*", 14), ("h_s.increase.?.body.0", 14)),
}
"""Widths of weights that differ from the calibrated ones, by the name of the case."""


def latents(count: int = 2, height: int = 8, width: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, SMALL.latent_channels, height, width, generator=generator) for _ in range(count)]


@lru_cache(maxsize=4)
def small_codec(seed: int = 0) -> Codec:
    """Random weights, larger than at the start of training, so that every value matters. Do not change it."""
    torch.manual_seed(seed)
    codec = Codec(SMALL).eval()
    with torch.no_grad():
        for module in (*codec.h_s.modules(), *codec.g_c.modules(), *codec.adapter_in.modules()):
            if isinstance(module, nn.Conv2d):
                module.weight *= 1.5
        for adapter in codec.adapter_out:
            adapter.branch2.weight *= 3
    return codec


@lru_cache(maxsize=4)
def small_model(seed: int = 0, weight_bits: tuple[tuple[str, int], ...] = ()) -> IntegerModel:
    codec = small_codec(seed)
    medians = np.linspace(-0.5, 0.5, SMALL.hyper_channels).astype(np.float32)
    return quantise(codec, calibrate(codec, latents()), medians, weight_bits)


def write_exact_bundle(folder: Path, target: Any = "cpu", integers: bool = False) -> Path:
    """A complete bundle with the integer entropy model of ``small_codec``; the rest is the tiny bundle, made wider.

    ``integers`` adds integer.npz, which is what a device needs.
    """
    sizes = {"CHANNELS": SMALL.latent_channels, "HYPER_CHANNELS": SMALL.hyper_channels}
    with patch.multiple(tiny_bundle, **sizes):
        tiny_bundle.write_tiny_bundle(folder)
        with np.load(folder / "tables.npz") as tables:
            medians: NDArray[np.float32] = tables["z_medians"]
        codec = small_codec()
        model = quantise(codec, calibrate(codec, latents()), medians)
        assert np.array_equal(model.medians, medians)
        write_graphs(model, folder, target)
        tiny_bundle._write_manifest(folder)
    if integers:
        model.save(folder / "integer.npz")
        manifest = json.loads((folder / "bundle.json").read_text())
        digest = hashlib.sha256((folder / "integer.npz").read_bytes()).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(manifest | {"auxiliary": {"integer.npz": digest}}))
    return folder


def bases() -> dict[str, NDArray[np.float32]]:
    """Random and extreme: whatever a foreign frame may lead to must be the same everywhere, too."""
    rng, shape = np.random.default_rng(1), (1, SMALL.latent_channels, 6, 10)
    return {
        "usual": (np.rint(rng.normal(size=shape) * 3 * 256) / 256).astype(np.float32),
        "wide": (np.rint(rng.normal(size=shape) * 300 * 256) / 256).astype(np.float32),
        "zero": np.zeros(shape, np.float32),
        "alternating": np.where(rng.integers(0, 2, shape) > 0, 3500, -3500).astype(np.float32),
        "half steps": (rng.integers(-9, 9, shape) + 0.5).astype(np.float32) / 256,
        "one pixel": np.pad(
            np.full((1, SMALL.latent_channels, 1, 1), 40, np.float32), ((0, 0), (0, 0), (0, 1), (0, 1))
        ),
        "two frames": (np.rint(rng.normal(size=(2, SMALL.latent_channels, 4, 6)) * 512) / 256).astype(np.float32),
    }
