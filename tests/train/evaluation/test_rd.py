"""Bench rd: resumable tables, clear errors, metrics at any size, plots from committed figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeic_train.codecs.baselines import PillowCodec
from aeic_train.evaluation import rd
from aeic_train.evaluation.metrics import MetricSuite, frechet
from aeic_train.evaluation.rd import compare, main
from aeic_train.evaluation.results_table import Table
from aeic_train.evaluation.runner import Bench, curve
from aeic_train.reports import rd_plots
from tests.support.results import QuickMetrics


@pytest.fixture
def jpeg() -> PillowCodec:
    return PillowCodec("jpeg", "JPEG", settings=(5, 20, 60))


def bench(photographs: Path, out: Path, known: list[Path] | None = None) -> Bench:
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(photographs.iterdir())
    return Bench(paths, out, Table(out / "pictures.csv", known or []), QuickMetrics(), keep=True)


def test_a_second_run_computes_nothing(photographs: Path, tmp_path: Path, jpeg: PillowCodec) -> None:
    points = curve(bench(photographs, tmp_path), jpeg, None, {})
    assert [point["setting"] for point in points] == [5, 20, 60]
    assert points[0]["bpp"] < points[1]["bpp"] < points[2]["bpp"]
    assert points[0]["st_lpips"] > points[2]["st_lpips"]
    assert points[0]["efflite_fd"] > points[2]["efflite_fd"] > 0
    assert len(list((tmp_path / "pictures/jpeg/5").iterdir())) == 4

    class Broken(PillowCodec):
        def encode(self, picture: Any, setting: int) -> bytes:
            raise AssertionError("computed again")

    again = curve(bench(photographs, tmp_path), Broken("jpeg", "JPEG", settings=(5, 20, 60)), None, {})
    assert [point["psnr"] for point in again] == pytest.approx([point["psnr"] for point in points])
    elsewhere = bench(photographs, tmp_path / "else", [tmp_path / "pictures.csv"])
    assert "efflite_fd" not in curve(elsewhere, Broken("jpeg", "JPEG", settings=(5,)), None, {})[0]
    assert (
        curve(elsewhere, Broken("jpeg", "JPEG", settings=(5,)), None, {"jpeg 5": {"efflite_fd": 7.0}})[0]["efflite_fd"]
        == 7
    )


def test_a_line_cut_short_is_computed_again(photographs: Path, tmp_path: Path, jpeg: PillowCodec) -> None:
    whole = curve(bench(photographs, tmp_path), jpeg, None, {})
    table = tmp_path / "pictures.csv"
    text = table.read_text()
    table.write_text(text[:-30])
    assert curve(bench(photographs, tmp_path), jpeg, None, {})[2]["psnr"] == pytest.approx(whole[2]["psnr"])
    assert len(Table(table).rows) == 12


def test_another_picture_of_the_same_name_is_another_row(photographs: Path, tmp_path: Path, jpeg: PillowCodec) -> None:
    curve(bench(photographs, tmp_path / "out"), jpeg, None, {})
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "0.png").write_bytes((photographs / "1.png").read_bytes())
    curve(bench(folder, tmp_path / "out"), jpeg, None, {})
    assert len(Table(tmp_path / "out/pictures.csv").rows) == 15


def test_compare_puts_ours_against_each() -> None:
    ours = [{"setting": i, "bpp": 0.01 * 2**i, "psnr": 20.0 + i} for i in range(4)]
    baseline = [{**point, "bpp": 2 * point["bpp"]} for point in ours]
    found = compare({"aeic": ours, "vvc": baseline}, [0.02, 0.5])
    assert found["bd_rates"]["vvc"]["psnr"] == pytest.approx(-50, abs=0.1)
    assert found["bd_rates"]["vvc"]["st_lpips"] is None
    assert found["at_bpp"]["0.02"]["aeic"]["psnr"] == pytest.approx(21)
    assert found["at_bpp"]["0.5"]["vvc"]["psnr"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "o"], "not a folder"),
        (["empty", "--out", "o"], "no pictures"),
        (["full", "--out", "o", "--codecs", "bpg"], "none of the requested codecs"),
        (["full", "--out", "o", "--codecs", "jpeg", "--known", "none.csv"], r"none\.csv"),
        (["full", "--out", "o", "--codecs", "jpeg", "--known", "other.csv"], "other columns"),
    ],
)
def test_errors_name_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, photographs: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("full").symlink_to(photographs)
    with pytest.raises(SystemExit):
        main(arguments)
    assert __import__("re").search(message, capsys.readouterr().err)


def test_from_folder_to_plots(photographs: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(rd, "MetricSuite", QuickMetrics)
    out = tmp_path / "out"
    main([str(photographs), "--out", str(out), "--codecs", "jpeg,webp,no", "--bpp", "0.4,0.8,1.5", "--every", "2"])
    said = capsys.readouterr()
    assert "left out: unknown codec 'no'" in said.err
    line = json.loads(said.out.splitlines()[-1])
    assert line["codec"] == "jpeg" and line["pictures"] == 2
    assert {"bpp", "psnr", "ms_ssim", "st_lpips"} <= set(line["rates"][0])
    documents = json.loads((out / "results.json").read_text())
    assert [document["name"] for document in documents] == ["jpeg", "webp"]
    assert len(documents[0]["settings"]) == len(documents[0]["results"]["bpp"]) >= 2
    results = tmp_path / "results"
    results.mkdir()
    (results / "baselines_two.json").write_text(json.dumps(documents))
    ours = dict(documents[0], name="aeic-x")
    (results / "ours_two.json").write_text(json.dumps(ours))
    monkeypatch.setattr(rd_plots, "WIDEST", 9.0)
    rd_plots.main(["--results", str(results)])
    assert json.loads(capsys.readouterr().out) == {"two": ["aeic-x", "jpeg", "webp"]}
    assert (results / "two.png").stat().st_size > 10_000 and (results / "two.svg").exists()
    assert "| jpeg | " in (results / "two.md").read_text().partition("BD-rate")[2]


def test_plots_without_figures_say_what_to_run(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        rd_plots.main(["--results", str(tmp_path)])
    assert "run aeic bench rd" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("size", [(20, 33), (170, 200), (90, 2100)])
def test_metrics_take_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    metrics, features, made = MetricSuite().measure(original, original)
    assert metrics["st_lpips"] == pytest.approx(0, abs=1e-5) and metrics["psnr"] > 90
    assert np.isnan(metrics["ms_ssim"]) == (min(size) <= 160)
    assert features.shape == made.shape and len(features) >= 1
    with pytest.raises(ValueError, match="the same size"):
        MetricSuite().measure(original, original[1:])


def test_frechet_of_equal_sets_is_nought_and_grows_with_the_mean() -> None:
    a = np.random.default_rng(0).normal(size=(500, 4))
    assert frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet(a, a + 2) == pytest.approx(16)
