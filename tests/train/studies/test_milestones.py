"""Milestones of a training are compared at equal bits over their hours, and their trend says what a target costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aeic.profiles import Profile
from aeic_nets.network import AEIC
from aeic_train.reports import milestone_plots
from aeic_train.studies import milestones


def bundle(folder: Path, profile: Profile, hours: float, seed: int) -> Path:
    """A milestone with random weights after ``hours``."""
    folder.mkdir()
    torch.manual_seed(seed)
    tensors = {name: parameter.detach().half() for name, parameter in AEIC(profile).named_parameters()}
    save_file(tensors, folder / "weights.safetensors")
    (folder / "training_log.jsonl").write_text(
        json.dumps({"stage": "s", "total": int(hours * 100), "hours": hours}) + "\n"
    )
    return folder


def milestone(hours: float, st_lpips: float, psnr: float) -> dict[str, Any]:
    """A milestone whose measures are equal at all rates."""
    measures = {"st_lpips": st_lpips, "psnr": psnr, "efflite_fd": 100.0}
    points = [{"bpp": bpp, **measures} for bpp in (0.01, 0.03, 0.06)]
    return {"hours": hours, "steps": 1, "weights": str(hours), "points": points}


# Each doubling takes a tenth of ST-LPIPS away and adds 0.5 dB. The first milestone does not count.
MILESTONES = [milestone(1, 0.9, 15.0), *(milestone(2**n, 0.4 * 0.9**n, 20.0 + 0.5 * n) for n in (1, 2, 3))]


def test_the_trend_is_that_of_the_last_milestones() -> None:
    gains = milestone_plots.gains(MILESTONES)
    assert gains["st_lpips"] == {str(bpp): "-10 %" for bpp in milestone_plots.RATES}
    assert gains["psnr"] == {str(bpp): "+0.50" for bpp in milestone_plots.RATES}
    distance = {"measure": "st_lpips", "bpp": 0.03, "value": 0.4 * 0.9**5}
    quality = {"measure": "psnr", "bpp": 0.03, "value": 23.0}
    assert milestone_plots.hours_to(MILESTONES, distance) == pytest.approx(32.0)
    assert milestone_plots.hours_to(MILESTONES, quality) == pytest.approx(64.0)


@pytest.mark.parametrize(
    ("target", "cell"),
    [
        ({"measure": "st_lpips", "bpp": 0.04, "value": 0.4 * 0.9**5}, "32"),
        ({"measure": "psnr", "bpp": 0.04, "value": 23.0}, "the trend does not lead there"),
        ({"measure": "st_lpips", "bpp": 0.04, "value": 1e-9}, "more than can be trained"),
    ],
)
def test_the_table_says_what_a_target_would_cost(target: dict[str, Any], cell: str, tmp_path: Path) -> None:
    flat = [MILESTONES[0], *(milestone(m["hours"], m["points"][0]["st_lpips"], 22.0) for m in MILESTONES[1:])]
    text = milestone_plots.table({"pictures": ["a"], "targets": [target], "milestones": flat}, tmp_path / "m.svg")
    assert text.splitlines()[-3].split(" | ")[-1] == f"{cell} |"


def test_a_rate_that_was_not_reached_has_no_value() -> None:
    narrow = [m | {"points": m["points"][:2]} for m in MILESTONES]
    assert milestone_plots.trend(narrow, "psnr", 0.05) is None
    assert milestone_plots.hours_to(narrow, {"measure": "psnr", "bpp": 0.05, "value": 23.0}) is None
    assert milestone_plots.hours_to(MILESTONES, {"measure": "st_lpips", "bpp": 0.05, "value": 1e-9}) == math.inf


def test_milestones_are_measured_once(
    tiny: Profile,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    made = [bundle(tmp_path / name, tiny, hours, seed) for name, hours, seed in (("late", 2.0, 1), ("early", 1.0, 0))]
    command = [*map(str, made), "--profile", "tiny", "--validation", str(photographs), "--pictures", "1"]
    command += ["--threads", "1", "--target", "psnr@0.03=40", "--out", str(tmp_path / "out")]
    milestones.main(command)
    assert "milestone 2 of 2, rate point" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "milestones.json").read_text())
    assert [m["hours"] for m in content["milestones"]] == [1.0, 2.0]
    assert {len(m["points"]) for m in content["milestones"]} == {tiny.rates}
    assert content["targets"] == [{"measure": "psnr", "bpp": 0.03, "value": 40.0}]
    assert (tmp_path / "out" / "milestones.svg").exists()

    monkeypatch.setattr(milestones.likelihood_estimate, "point", None)  # a call would fail
    milestones.main(command)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["per_doubling"]) == set(milestone_plots.MEASURES)


@pytest.mark.parametrize("target", ["psnr", "psnr@0.03", "psnr@0.03=high", "vmaf@0.03=90", "psnr@0.031=22"])
def test_a_malformed_target_is_one_line(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        milestones.main([str(tmp_path), "--validation", str(tmp_path), "--target", target])
    assert stopped.value.code not in (0, None)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bundle_without_a_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        milestones.main([str(tmp_path), "--validation", str(tmp_path)])
    assert "has no training_log.jsonl" in capsys.readouterr().err
