"""The metrics of papers through their libraries, for which stand-ins take the places."""

from __future__ import annotations

import json
import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aeic.errors import InputError
from aeic_train.evaluation import perceptual_metrics, rd
from aeic_train.evaluation.perceptual_metrics import PerceptualMetrics, find, tiles
from tests.support.results import QuickMetrics


class Metric:
    """A stand-in of pyiqa's: the mean difference, or the brightness of the reconstruction."""

    def __call__(self, made: torch.Tensor, original: torch.Tensor | None = None) -> torch.Tensor:
        assert made.shape[1] == 3 and made.min() >= 0 and made.max() <= 1
        if min(made.shape[2:]) < 8:
            raise RuntimeError("too small")
        return made.mean() if original is None else (made - original).abs().mean()


class Fid(nn.Module):
    """A stand-in of torchmetrics' classes: the distance of the means of the features."""

    def __init__(self, feature: Any = 2048, subset_size: int = 0) -> None:
        super().__init__()
        self.inception = feature if isinstance(feature, nn.Module) else nn.Sequential(Pool())
        self.subset_size, self.means = subset_size, dict[bool, torch.Tensor]()

    def update(self, rows: torch.Tensor, real: bool) -> None:
        assert len(rows) >= self.subset_size
        self.means[real] = self.inception(rows).mean(0)

    def compute(self) -> torch.Tensor:
        return (self.means[True] - self.means[False]).abs().sum()


class Kid(Fid):
    def compute(self) -> Any:
        return super().compute(), torch.zeros(())


class Pool(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.dtype == torch.uint8 and rows.shape[1:] == (3, 256, 256)
        return rows.float().mean((2, 3))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    pyiqa = types.ModuleType("pyiqa")
    pyiqa.create_metric = lambda name, device: Metric()
    fid, kid = types.ModuleType("torchmetrics.image.fid"), types.ModuleType("torchmetrics.image.kid")
    fid.FrechetInceptionDistance, kid.KernelInceptionDistance = Fid, Kid
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, module in (("pyiqa", pyiqa), (fid.__name__, fid), (kid.__name__, kid)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pyiqa", "torchmetrics"):
        monkeypatch.setitem(sys.modules, name, None)


def test_tiles_of_two_grids() -> None:
    picture = np.arange(600 * 400 * 3, dtype=np.uint32).astype(np.uint8).reshape(600, 400, 3)
    found = list(tiles(picture))
    assert len(found) == 2 + 1
    assert np.array_equal(found[2], picture[128:384, 128:384])
    assert len(list(tiles(picture[:383]))) == 1 and not list(tiles(picture[:255]))


def test_what_is_missing_is_named_with_its_remedy(no_libraries: None) -> None:
    found, missing = find(perceptual_metrics.PERCEPTUAL_METRICS)
    assert found.names == ()
    assert missing == [
        "lpips, dists: no package 'torchmetrics': pip install torchmetrics",
        "musiq, clipiqa: no package 'pyiqa': pip install pyiqa",
        "fid, kid: no package 'torchmetrics': pip install torchmetrics torch-fidelity",
    ]
    with pytest.raises(InputError, match="unknown metric 'nima'"):
        find(["nima"])


def test_nothing_is_downloaded_unasked(libraries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, device: str) -> Any:
        if name == "lpips":
            return Metric()
        for attempt in (1, 2):
            try:  # as libraries do that try again
                socket.create_connection(("127.0.0.1", 9), timeout=1)
            except OSError:
                assert attempt == 1, "an OSError is tried again"
        raise AssertionError

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", create)
    before = socket.socket.connect
    found, missing = find(["lpips", "dists"])
    assert found.names == ("lpips",)
    assert missing == ["dists: the weights are not on this machine; --download lets the library fetch them once"]
    assert socket.socket.connect is before


def test_a_library_that_breaks_is_left_out(libraries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, device: str) -> Any:
        raise TypeError("of another version")

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", create)
    assert find(["lpips"])[1] == ["lpips: pyiqa cannot be used (TypeError: of another version)"]


def test_a_network_that_refuses_a_picture_gives_nan(libraries: None, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = find(["lpips", "musiq"])
    small = np.full((4, 4, 3), 51, np.uint8)
    assert np.isnan(found.measure(small, small)["lpips"]) and "too small" in capsys.readouterr().err
    large = np.full((16, 16, 3), 51, np.uint8)
    assert found.measure(large, large) == pytest.approx({"lpips": 0.0, "musiq": 0.2})


def test_distances_need_two_tiles(libraries: None) -> None:
    found, _ = find(["fid", "kid"])
    assert found.features(np.zeros((100, 300, 3), np.uint8)).shape == (0, 0)
    one = found.features(np.zeros((256, 256, 3), np.uint8))
    assert one.shape == (1, 3) and found.distances(one, one) == {}
    many = np.concatenate([one, one + 2])
    assert found.distances(many, many + 1) == pytest.approx({"fid": 3, "kid": 3})
    assert PerceptualMetrics().distances(many, many) == {}


def test_bench_rd_has_a_column_for_each(
    libraries: None, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(rd, "MetricSuite", QuickMetrics)
    out = tmp_path / "out"
    command = [str(photographs), "--out", str(out), "--codecs", "jpeg,webp", "--bpp", "0.4,1"]
    rd.main(command)
    said = capsys.readouterr().out
    assert "LPIPS" in said and "DISTS" in said and "CLIP-IQA" in said and "FID" in said
    line = json.loads(said.splitlines()[-1])
    wanted = {"lpips", "dists", "musiq", "clipiqa", "fid", "kid"}
    assert all(wanted <= set(rate) for rate in line["rates"])
    assert line["bd_rates"]["webp"]["lpips"] is not None
    assert (out / "pictures.csv").read_text().splitlines()[0].endswith("decode_seconds,lpips,dists,musiq,clipiqa")
    one = json.loads((out / "curves" / "jpeg.json").read_text())
    assert wanted <= set(one["results"])

    # Again: nothing is computed, and the columns stay.
    monkeypatch.setattr(PerceptualMetrics, "measure", None)
    monkeypatch.setattr(PerceptualMetrics, "features", None)
    rd.main(command)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rates"] == line["rates"]
    with pytest.raises(SystemExit):
        rd.main([*command, "--perceptual", "lpips"])
    assert "was made with --perceptual lpips,dists,musiq,clipiqa" in capsys.readouterr().err
    for name in ("pyiqa", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit):
        rd.main(command)
    assert "cannot be used now" in capsys.readouterr().err


def test_bench_rd_without_libraries(
    no_libraries: None, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(rd, "MetricSuite", QuickMetrics)
    command = [str(photographs), "--out", str(tmp_path / "out"), "--codecs", "jpeg", "--bpp", "1", "--limit", "1"]
    rd.main(command)
    said = capsys.readouterr()
    assert "left out: lpips, dists: no package 'torchmetrics'" in said.err
    assert "left out: musiq, clipiqa: no package 'pyiqa'" in said.err
    assert "LPIPS" not in said.out.replace("ST-LPIPS", "").replace("eff.LPIPS", "")
    with pytest.raises(SystemExit):
        rd.main([*command, "--perceptual", "lpips"])
    assert "--perceptual lpips: no package 'torchmetrics'" in capsys.readouterr().err
    for option in ("--perceptual", "--judges"):  # the second is its old name
        rd.main([*command, option, "none"])
        assert "left out" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rd.main(["--help"])
    shown = capsys.readouterr().out
    assert "--perceptual" in shown and "--judges" not in shown
