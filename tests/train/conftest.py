"""A profile of a few thousand parameters, and a folder of small made-up photographs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeic import profiles
from aeic.profiles import NANO, Profile, UNetSizes, VAESizes

TINY = replace(
    NANO,
    name="tiny",
    analysis_widths=(8, 8, 16, 16, 16),
    latent_channels=16,
    context_width=16,
    context_depth=1,
    synthesis_widths=(16, 16, 16),
    unet_channels=8,
    residual_channels=8,
    unet=UNetSizes((8, 8), (False, False), layers=1, head_width=8, norm_groups=4),
    vae=VAESizes((8, 8, 8), layers=1, mid_attention=False, norm_groups=4, patch=2),
    rates=2,
)


@pytest.fixture(scope="session")
def tiny() -> Iterator[Profile]:
    profiles.PROFILES["tiny"] = TINY
    yield TINY
    del profiles.PROFILES["tiny"]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((300, 280), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder
