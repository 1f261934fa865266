"""Frames made with integer graphs, through the format's own codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from tests.support.exact_models import SMALL, write_exact_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exact")
    return {target: write_exact_bundle(folder / target, target) for target in ("cpu", "gpu")}


def test_frames_decode_to_the_same_latents_by_every_lowering(bundles: dict[str, Path]) -> None:
    """An edge with int8 graphs and a cloud with float ones; the fingerprint differs, so the payload is moved over."""
    rng = np.random.default_rng(0)
    cpu, gpu = (LatentCodec(Bundle.load(bundles[target]), threads=2) for target in ("cpu", "gpu"))
    for width, height in ((64, 64), (300, 200), (129, 65)):
        y = rng.normal(size=(SMALL.latent_channels, -(-height // 64) * 2, -(-width // 64) * 2)).astype(np.float32) * 4
        frame = cpu.encode(y, 1, width, height)
        there = gpu.encode(y, 1, width, height)
        assert frame[9:] == there[9:]
        assert cpu.decode(frame).digest == gpu.decode(there).digest
