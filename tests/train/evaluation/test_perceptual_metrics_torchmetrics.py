"""LPIPS, DISTS, FID and KID as torchmetrics computes them.

AlexNet and VGG have random weights here, saved where torchvision looks for the published ones: tests download nothing.
The layers on top of them (LPIPS' linear layers, DISTS' alpha and beta) are the published ones, which torchmetrics
brings. So these tests show that the path works, and not the values that the published weights give.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet, vgg16

from aeic_train.evaluation import perceptual_metrics, rd
from aeic_train.evaluation.perceptual_metrics import PerceptualMetrics, find
from tests.support.results import QuickMetrics


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """AlexNet and VGG-16 with random convolutions in torch's cache, and no pyiqa."""
    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    for build, weights in ((alexnet, AlexNet_Weights.DEFAULT), (vgg16, VGG16_Weights.DEFAULT)):
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
        state = {}
        for name, shape in shapes.items():
            if len(shape) == 4:
                scale = (2 / shape[1:].numel()) ** 0.5
                state[name] = (torch.randn(shape, generator=random) * scale).half()
            else:  # biases, and the classifier, which neither metric uses: one stored number
                state[name] = torch.zeros(1).expand(shape)
        torch.save(state, folder / weights.url.rpartition("/")[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        patch.setitem(sys.modules, "pyiqa", None)
        yield


@pytest.fixture(scope="module")
def networks(backbones: None) -> PerceptualMetrics:
    found, missing = find(perceptual_metrics.PAIRED)
    assert found.names == perceptual_metrics.PAIRED and not missing
    return found


@pytest.fixture
def pictures(tmp_path: Path, photographs: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        with Image.open(photographs / f"{number}.png") as image:
            image.crop((0, 0, 72, 64)).save(folder / f"{number}.png")
    return folder


def test_more_noise_is_further_away(networks: PerceptualMetrics, photographs: Path) -> None:
    original = np.array(Image.open(photographs / "0.png"))[:80, :96]
    noise = np.random.default_rng(0).standard_normal(original.shape)
    made = [np.clip(original + level * noise, 0, 255).round().astype(np.uint8) for level in (0, 8, 32)]
    same, little, much = (networks.measure(original, each) for each in made)
    for name in perceptual_metrics.PAIRED:
        assert same[name] == pytest.approx(0, abs=1e-5)
        assert 1e-4 < little[name] < much[name] < 2


def test_a_picture_is_measured_alike_at_any_place_in_a_run(networks: PerceptualMetrics, photographs: Path) -> None:
    one, other = (np.array(Image.open(photographs / f"{number}.png"))[:80, :96] for number in (0, 1))
    first = networks.measure(one, other)
    networks.measure(other, other)
    assert networks.measure(one, other) == first


def test_a_picture_that_is_too_small_for_alexnet_gives_nan(networks: PerceptualMetrics) -> None:
    small = np.zeros((8, 8, 3), np.uint8)
    found = networks.measure(small, small)
    assert np.isnan(found["lpips"]) and found["dists"] == pytest.approx(0, abs=1e-5)


def test_bench_rd_on_three_pictures_and_the_plot_of_compressai(
    networks: PerceptualMetrics, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(rd, "MetricSuite", QuickMetrics)
    monkeypatch.setattr(rd, "find", lambda *_, **__: (networks, []))
    out = tmp_path / "out"
    rd.main([str(pictures), "--out", str(out), "--codecs", "jpeg", "--bpp", "2", "--perceptual", "lpips,dists"])
    said = capsys.readouterr().out
    assert "LPIPS" in said and "DISTS" in said
    assert all(set(perceptual_metrics.PAIRED) <= set(rate) for rate in json.loads(said.splitlines()[-1])["rates"])
    path = out / "curves" / "jpeg.json"
    results = json.loads(path.read_text())["results"]
    for name in perceptual_metrics.PAIRED:
        assert results[name][0] > results[name][-1] > 0, "more bits are nearer"
    target = tmp_path / "lpips.png"
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", ["plot", "-f", str(path), "-m", "lpips", "-o", str(target)])
    runpy.run_module("compressai.utils.plot", run_name="__main__", alter_sys=True)
    assert target.stat().st_size > 10_000


def test_without_the_weights_nothing_is_downloaded(
    backbones: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found, missing = find(perceptual_metrics.PAIRED)
    assert found.names == ()
    assert missing == ["lpips, dists: the weights are not on this machine; --download lets the library fetch them once"]


def test_fid_and_kid_of_known_features() -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((600, 8)).astype(np.float32)
    found = PerceptualMetrics(sets=perceptual_metrics.SETS)
    # Two sets that differ in their mean alone: the squared distance of the means.
    shifted = found.distances(features, features + np.float32(0.5))
    assert shifted["fid"] == pytest.approx(8 * 0.5**2, abs=1e-3) and shifted["kid"] > 0.1
    same = found.distances(features, features)
    assert same["fid"] == pytest.approx(0, abs=1e-3) and abs(same["kid"]) < 0.05
    # Standard deviations of 1 and 2 in each channel: (2 - 1) ** 2 for each of them, around their own mean.
    centred = features - features.mean(0)
    covariance = np.cov(centred.T)
    assert found.distances(centred, 2 * centred)["fid"] == pytest.approx(np.trace(covariance), rel=1e-3)
