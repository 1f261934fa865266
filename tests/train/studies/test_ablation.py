"""Arms of one or two steps are trained with several seeds, compared at equal bits and reported, and never twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aeic.profiles import Profile
from aeic_nets.network import AEIC
from aeic_train.data import picture_sets
from aeic_train.evaluation import likelihood_estimate
from aeic_train.reports import ablation_plots
from aeic_train.reports.ablation_plots import Claim, Run
from aeic_train.studies import ablation
from tests.support.roots import ROOT

RECIPE = """
profile = "tiny"
seed = 1
average = 0.9

[[stage]]
name = "arm"
kind = "codec"
steps = 9
crop = 64
batch = 1
learning_rate = 1e-3
weights = { mse = 1.0 }
rates = { 0 = [0.1, 0.1], 1 = [0.2, 0.2] }
"""


def run(name: str, folder: Path, photographs: Path, *more: str) -> None:
    """The command with one step for each arm."""
    recipe = folder / "r.toml"
    recipe.write_text(RECIPE)
    arguments = [name, "--recipe", str(recipe), "--photographs", str(photographs), "--steps", "1", "--threads", "1"]
    if "--set" not in more:
        arguments += ["--validation", str(photographs), "--pictures", "2"]
    ablation.main([*arguments, "--out", str(folder / "out"), *more])


@pytest.fixture
def two_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of "distillation", two arms that differ in the learning rate; judged by PSNR alone for speed."""
    arms: dict[str, dict[str, Any]] = {"none": {}, "fast": {"learning_rate": 1e-2}}
    monkeypatch.setitem(ablation.ABLATIONS, "distillation", ablation.Ablation("Two.", arms))

    def point(model: AEIC, pictures: list[Any], rate: int, _: object) -> dict[str, float]:
        found = [likelihood_estimate.reconstruct(model, picture, rate) for picture in pictures]
        errors = [np.mean((result.astype(float) - original) ** 2) for (result, _), original in zip(found, pictures)]
        psnr = float(10 * np.log10(255**2 / np.mean(errors)))
        names = ("psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_fd")
        return {"bpp": float(np.mean([bpp for _, bpp in found]))} | dict.fromkeys(names, psnr)

    monkeypatch.setattr(ablation.likelihood_estimate, "point", point)


def test_arms_are_trained_compared_and_reported(
    tiny: Profile, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("adversarial", tmp_path, photographs, "--seeds", "1")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["against"] == "neither" and set(line["bd_rates"]) == {"adversarial", "deep", "both"}
    documents = json.loads((tmp_path / "out" / "adversarial.json").read_text())["arms"]
    assert [d["name"] for d in documents] == ["neither", "adversarial", "deep", "both"]
    assert all(len(d["results"]["bpp"]) == 2 and min(d["results"]["bpp"]) > 0 for d in documents)
    assert all(min(d["results"]["efflite-fd"]) >= 0 for d in documents)
    drawn = (tmp_path / "out" / "adversarial.md").read_text()
    assert "| adversarial | 0." in drawn and "±" not in drawn
    (tmp_path / "out" / "adversarial.md").unlink()
    ablation_plots.main([str(tmp_path / "out")])
    assert (tmp_path / "out" / "adversarial.md").read_text() == drawn


def test_seeds_are_different_trainings_and_none_is_done_twice(
    tiny: Profile,
    photographs: Path,
    tmp_path: Path,
    two_arms: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("distillation", tmp_path, photographs, "--seeds", "2")
    printed = capsys.readouterr().out
    assert "run 1 of 4: arm none, seed 1\n" in printed
    assert re.search(r"run 4 of 4: arm fast, seed 2; about \d+ minutes left", printed)
    line = json.loads(printed.splitlines()[-1])
    assert len(line["bd_rates"]["fast"]["psnr"]["runs"]) == 2
    documents = json.loads((tmp_path / "out" / "distillation.json").read_text())["arms"]
    found = [(d["name"], d["seed"], d["steps"]) for d in documents]
    assert found == [(arm, seed, 1) for arm in ("none", "fast") for seed in (1, 2)]
    assert documents[0]["results"] != documents[1]["results"], "another seed is another training"
    drawn = (tmp_path / "out" / "distillation.md").read_text()
    assert "| none | 1, 2 | 1 |" in drawn and " ± " in drawn

    def no_trainer(*_: object, **__: object) -> None:
        raise AssertionError("finished runs are trained or evaluated again")

    monkeypatch.setattr(ablation, "Trainer", no_trainer)
    run("distillation", tmp_path, photographs, "--seeds", "2")
    assert (tmp_path / "out" / "distillation.md").read_text() == drawn


def test_a_stopped_study_continues_with_the_same_steps(
    tiny: Profile, photographs: Path, tmp_path: Path, two_arms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, again = tmp_path / "through", tmp_path / "again"
    for folder in (through, again):
        folder.mkdir()
    run("distillation", through, photographs, "--seeds", "1", "--steps", "2")

    class Interrupted(ablation.StopSignal):
        def __init__(self) -> None:
            super().__init__()
            self.received = True

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(ablation, "StopSignal", Interrupted)
        run("distillation", again, photographs, "--seeds", "1", "--steps", "2")
    assert ended.value.code == 130
    assert not (again / "out" / "distillation.json").exists()
    run("distillation", again, photographs, "--seeds", "1", "--steps", "2")
    one, two = (json.loads((folder / "out" / "distillation.json").read_text())["arms"] for folder in (through, again))
    assert [arm["results"] for arm in one] == [arm["results"] for arm in two]


def test_a_run_with_other_settings_is_not_continued(
    tiny: Profile, photographs: Path, tmp_path: Path, two_arms: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run("distillation", tmp_path, photographs, "--seeds", "1")
    with pytest.raises(SystemExit):
        run("distillation", tmp_path, photographs, "--seeds", "1", "--steps", "2")
    assert "trained with other settings: choose another --out" in capsys.readouterr().err


def test_a_public_set_is_checked_and_its_digest_recorded(
    tiny: Profile, photographs: Path, tmp_path: Path, two_arms: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "kodak"
    root.mkdir()
    with pytest.raises(SystemExit):
        run("distillation", tmp_path, photographs, "--set", "kodak", "--root", str(root), "--seeds", "1")
    assert "lacks kodim01.png" in capsys.readouterr().err
    for number, name in enumerate(picture_sets.manifest("kodak").sizes):
        size = picture_sets.manifest("kodak").sizes[name]
        assert size is not None
        Image.new("RGB", size, (number, 90, 40)).save(root / name)
    more = ["--set", "kodak", "--root", str(root), "--seeds", "1", "--pictures", "1"]
    run("distillation", tmp_path, photographs, *more)
    found = json.loads((tmp_path / "out" / "distillation-set.json").read_text())
    assert len(found["pictures"]) == 24
    about = json.loads((tmp_path / "out" / "distillation.json").read_text())["about"]
    assert f"Mean over 1 pictures of Kodak (SHA-256 of the set {found['sha256'][:16]})." in about


def curve(shift: float) -> list[dict[str, float]]:
    """Four points; a larger shift is a higher quality at equal bits."""
    return [{"bpp": bpp, "psnr": 20 + 5 * bpp + shift, "st_lpips": 0.5 - bpp} for bpp in (0.1, 0.2, 0.3, 0.4)]


def test_tables_have_means_deviations_and_the_order_of_the_paper() -> None:
    runs = {
        "none": [Run(curve(0.0), seed, 300, 1.5) for seed in (1, 2, 3)],
        "good": [Run(curve(shift), seed, 300, 2.0) for seed, shift in ((1, 0.1), (2, 0.2), (3, 0.3))],
        "mixed": [Run(curve(shift), seed, 300, 2.0) for seed, shift in ((1, 0.2), (2, -0.2), (3, 0.2))],
        "far": [Run(curve(9.0), seed, 300, 2.0) for seed in (1, 2, 3)],
    }
    found = ablation_plots.gain(runs["none"], runs["good"], "psnr")
    assert all(value < 0 for value in found["runs"]) and found["runs"][0] > found["runs"][2]
    assert found["mean"] == pytest.approx(sum(found["runs"]) / 3, abs=0.01) and found["deviation"] > 0
    claims = [Claim(arm, "none", ("psnr",)) for arm in ("good", "mixed", "far")] + [Claim("none", "good", ("psnr",))]
    text = ablation_plots.table("About.", runs, Path("x.svg"), claims)
    assert "| none | 1, 2, 3 | 300 | 4.5 |" in text and "| good | 1, 2, 3 | 300 | 6.0 |" in text
    assert f"{found['mean']:+.1f} ± {found['deviation']:.1f}" in text
    assert "| good before none |  | yes, 3 of 3 |" in text
    assert "| mixed before none |  | unclear, 2 of 3 |" in text
    assert "| none before good |  | no, 0 of 3 |" in text
    assert "| far before none |  | yes, 3 of 3 |" in text, "no common quality: compared at equal bits"
    assert "| good | 0.1000 ± 0.0000 | 0.400 ± 0.000 | 20.700 ± 0.100 |" in text
    assert ablation_plots.is_better(curve(0.0), [{"bpp": 2.0, "psnr": 99.0, "st_lpips": 0.0}], "psnr") is None


def test_a_seed_is_compared_with_the_same_seed() -> None:
    anchor = [Run(curve(0.0), 1), Run(curve(3.0), 2)]
    test = [Run(curve(3.1), 2), Run(curve(0.1), 1)]
    first, second = ablation_plots.gain(anchor, test, "psnr")["runs"]
    assert first == pytest.approx(second, abs=0.5) and first < 0
    assert len(ablation_plots.gain(anchor, [Run(curve(0.1))], "psnr")["runs"]) == 2


def test_curves_that_share_neither_bits_nor_quality() -> None:
    """Fewer bits and better quality decide; fewer bits and worse quality do not."""

    def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"bpp": bpp, "psnr": psnr, "st_lpips": psnr} for bpp, psnr in pairs]

    few, many = points((0.01, 20), (0.02, 21)), points((0.04, 15), (0.05, 16))
    assert ablation_plots.is_better(few, many, "psnr") is True and ablation_plots.is_better(many, few, "psnr") is False
    assert ablation_plots.is_better(few, many, "st_lpips") is None is ablation_plots.is_better(many, few, "st_lpips")


def test_every_arm_is_a_change_that_a_stage_knows() -> None:
    recipe = ablation.Recipe.load(ablation.RECIPE)
    for kind in ablation.ABLATIONS.values():
        assert len(kind.arms) > 1
        assert set(kind.profiles) <= set(kind.arms)
        assert {name for claim in kind.claims for name in (claim.better, claim.worse)} <= set(kind.arms)
        for changes in kind.arms.values():
            ablation.replace(recipe.stages[0], **kind.stage | changes)


def test_the_committed_results_are_compared_with_the_paper() -> None:
    for name, kind in ablation.ABLATIONS.items():
        path = ROOT / "docs" / "results" / "ablations" / f"{name}.json"
        about, runs, claims = ablation_plots.read(path)
        assert tuple(claims) == kind.claims
        text = ablation_plots.table(about, runs, path.with_suffix(".svg"), claims)
        assert text == path.with_suffix(".md").read_text(), "run make results"
        assert all(run.seed and run.steps and run.minutes for arm in kind.arms for run in runs[arm])


@pytest.mark.parametrize(("arm", "stride"), [("16x", 16), ("64x", 64)])
def test_the_latents_of_the_spatial_arms_have_their_grid(arm: str, stride: int) -> None:
    model = AEIC(ablation.ABLATIONS["spatial"].profiles[arm]).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 128, 192), 0)
    assert out["y_hat"].shape[-2:] == (128 // stride, 192 // stride)
    assert out["x_hat"].shape == (1, 3, 128, 192)
