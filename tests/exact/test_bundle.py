"""Frames made with integer graphs, through the format's own codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.latent_codec import LatentCodec
from aeic_nets.integer.export import write_graphs
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import TorchEntropyModel
from tests.support.models.exact_models import SMALL, write_exact_bundle

SHIPPED = Path(__file__).parents[2] / "models" / "aeic-se-nano"


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


def test_the_shipped_graphs_come_back_from_integer_npz(tmp_path: Path) -> None:
    """integer.npz is not in the fingerprint: it must be the very model that the graphs hold."""
    bundle = Bundle.load(SHIPPED)
    path = bundle.auxiliary("integer.npz")
    assert path is not None
    write_graphs(IntegerModel.load(path), tmp_path)
    for file in sorted(tmp_path.iterdir()):
        assert file.read_bytes() == (SHIPPED / file.name).read_bytes(), file.name


def test_the_shipped_model_decodes_alike_by_torch() -> None:
    bundle = Bundle.load(SHIPPED)
    path = bundle.auxiliary("integer.npz")
    assert path is not None
    graphs, rng = LatentCodec(bundle, threads=1), np.random.default_rng(1)
    ours = LatentCodec(bundle, threads=1, decoding=TorchEntropyModel(IntegerModel.load(path)))
    y = 3 * rng.standard_normal((4, bundle.channels, 6, 8)).astype(np.float32)
    frames = [graphs.encode(one, rate, 250, 190) for rate, one in enumerate(y)]
    for frame, outcome in zip(frames, ours.decode_many(frames), strict=True):
        assert not isinstance(outcome, Exception) and outcome.digest == graphs.decode(frame).digest


def test_an_altered_auxiliary_file_is_refused(tmp_path: Path) -> None:
    for file in SHIPPED.iterdir():
        if file.name != "integer.npz":
            (tmp_path / file.name).symlink_to(file)
    bundle = Bundle.load(tmp_path)
    assert bundle.auxiliary("integer.npz") is None, "a bundle without it is whole"
    (tmp_path / "integer.npz").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        bundle.auxiliary("integer.npz")
