"""Results files of others, CompressAI's plotting tool on ours, and the published figures in docs/results."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from aeic.errors import InputError
from aeic_train.evaluation import rd_curves, results_files
from tests.support.results import LISTS, documents
from tests.support.roots import ROOT


def test_lists_below_the_name_of_a_set(tmp_path: Path) -> None:
    path = tmp_path / "AEIC_ME.txt.txt"
    path.write_text(LISTS)
    kodak, clic = results_files.read(path)
    assert (kodak["name"], kodak["set"], clic["name"], clic["set"]) == (
        "StableCodec",
        "Kodak",
        "StableCodec",
        "CLIC 2020 Test",
    )
    assert rd_curves.curve_of(kodak)[1] == {"bpp": 0.02, "psnr": 22, "ms_ssim": 0.75, "kid": 0.0005}
    path.write_text("### DIV2K Val ###\nbpp = [0.01, 0.02]\ndists = [0.3, 0.2]\n")
    (div2k,) = results_files.read(path)
    assert (div2k["name"], div2k["set"]) == ("AEIC_ME", "DIV2K Val")
    assert results_files.read(path, "AEIC-ME")[0]["name"] == "AEIC-ME"


def test_compressai_files_in_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "vtm.json"
    for key in ("psnr", "psnr-rgb"):
        path.write_text(
            json.dumps({"name": "VTM", "results": {"bpp": [0.1, 0.2], key: [28, 30], "lpips": [0.1, None]}})
        )
        (found,) = results_files.read(path)
        assert rd_curves.curve_of(found) == [{"bpp": 0.1, "psnr": 28}, {"bpp": 0.2, "psnr": 30}]
    path.write_text(json.dumps({"bpp": [0.1], "psnr": [28]}))  # CompressAI's tool takes this form too
    assert results_files.read(path)[0]["name"] == "vtm"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", '{"results": {"psnr": [1]}}', "holds no results"),
        ("a.json", '{"results": {"bpp": [0.1, 0.2], "psnr-rgb": [1]}}', "1 values of psnr-rgb for 2 rates"),
        ("a.json", '{"results": {"bpp": [0.1, null]}}', "values of bpp"),
        ("a.json", '{"results": {"bpp": [true]}}', "values of bpp"),
        ("a.json", '{"results": {"bpp": []}}', "0 points"),
        ("a.txt", "# x\nbpp = [0.1, z]", "line 2: bpp is not a list"),
        ("a.txt", "bpp is 3", "holds no results"),
    ],
)
def test_files_that_are_none_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        results_files.read(tmp_path / name)


def test_the_plotting_tool_of_compressai_draws_our_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = results_files.write_each(documents(), tmp_path / "curves")
    assert [path.name for path in paths] == ["aeic-x.json", "aeic-x-2.json", "vvc.json"]
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for metric in ("psnr", "ms-ssim", "lpips"):
        target = tmp_path / f"{metric}.png"
        monkeypatch.setattr(sys, "argv", ["plot", "-f", *map(str, paths), "-m", metric, "-o", str(target)])
        runpy.run_module("compressai.utils.plot", run_name="__main__", alter_sys=True)
        assert target.stat().st_size > 10_000


PUBLISHED = sorted((ROOT / "docs" / "results").glob("published_*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_figures_have_sources_and_plausible_values(path: Path) -> None:
    found = results_files.read(path)
    assert {"AEIC-ME", "AEIC-SE", "StableCodec"} <= {document["name"] for document in found}
    bounds = {"psnr": (10, 40), "ms_ssim": (0.2, 1), "lpips": (0, 1), "dists": (0, 1), "fid": (0, 100), "kid": (0, 0.1)}
    for document in found:
        assert " at " in document["source"] and document["source"].startswith("github.com/")
        points = rd_curves.curve_of(document)
        assert points == sorted(points, key=lambda point: point["bpp"])
        for point in points:
            for measure, (low, high) in bounds.items():
                assert low <= point.get(measure, low) <= high
    assert len(PUBLISHED) == 3


def test_bd_rates_of_the_published_points() -> None:
    """The released AEIC-ME against StableCodec on Kodak. The paper's table has -13.7 and -24.9 for LPIPS and DISTS."""
    (path,) = (path for path in PUBLISHED if "kodak" in path.stem)
    curves = {document["name"]: rd_curves.curve_of(document) for document in results_files.read(path)}
    found = {m: rd_curves.bd_rate(curves["StableCodec"], curves["AEIC-ME"], m) for m in ("lpips", "dists", "psnr")}
    assert found == pytest.approx({"lpips": -9.0, "dists": -26.1, "psnr": 1.5}, abs=0.1)
