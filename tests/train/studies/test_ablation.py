"""Two arms of one step each are trained, compared at equal bits and reported; a second call only compares them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aeic.profiles import Profile
from aeic_nets.network import AEIC
from aeic_train.reports import ablation_plots
from aeic_train.studies import ablation

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


def test_arms_are_trained_judged_and_reported(
    tiny: Profile, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    arguments = ["adversarial", "--recipe", str(tmp_path / "r.toml"), "--photographs", str(photographs)]
    arguments += ["--validation", str(photographs), "--steps", "1", "--pictures", "2", "--threads", "1"]
    for _ in range(2):
        ablation.main([*arguments, "--out", str(tmp_path / "out")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["against"] == "neither" and set(line["bd_rates"]) == {"adversarial", "deep", "both"}
    documents = json.loads((tmp_path / "out" / "adversarial.json").read_text())
    assert [d["name"] for d in documents["arms"]] == ["neither", "adversarial", "deep", "both"]
    assert all(len(d["results"]["bpp"]) == 2 and min(d["results"]["bpp"]) > 0 for d in documents["arms"])
    assert all(min(d["results"]["efflite-fd"]) >= 0 for d in documents["arms"])
    drawn = (tmp_path / "out" / "adversarial.md").read_text()
    (tmp_path / "out" / "adversarial.md").unlink()
    ablation_plots.main([str(tmp_path / "out")])
    assert (tmp_path / "out" / "adversarial.md").read_text() == drawn
    assert "| adversarial | 0." in drawn


def test_every_arm_is_a_change_that_a_stage_knows() -> None:
    recipe = ablation.Recipe.load(ablation.RECIPE)
    for kind in ablation.ABLATIONS.values():
        assert len(kind.arms) > 1
        assert set(kind.profiles) <= set(kind.arms)
        for changes in kind.arms.values():
            ablation.replace(recipe.stages[0], **kind.stage | changes)


@pytest.mark.parametrize(("arm", "stride"), [("16x", 16), ("64x", 64)])
def test_the_latents_of_the_spatial_arms_have_their_grid(arm: str, stride: int) -> None:
    model = AEIC(ablation.ABLATIONS["spatial"].profiles[arm]).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 128, 192), 0)
    assert out["y_hat"].shape[-2:] == (128 // stride, 192 // stride)
    assert out["x_hat"].shape == (1, 3, 128, 192)
