"""A run leaves snapshots, and from them the table, plots and picture strip of its two stages are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from aeic.errors import InputError
from aeic.profiles import Profile
from aeic_train.reports import evolution_plots
from aeic_train.studies import evolution
from aeic_train.training import snapshots, trainer
from aeic_train.training.recipe import Recipe
from aeic_train.training.trainer import RunSettings, Trainer

RECIPES = Path(trainer.__file__).parents[1] / "recipes"
RECIPE = """
profile = "tiny"
seed = 1
average = 0.9

[[stage]]
name = "relaxed"
kind = "codec"
steps = 3
crop = 64
batch = 1
learning_rate = 1e-3
weights = { mse = 1.0 }
rates = { 1 = [0.2, 0.2] }

[[stage]]
name = "target"
kind = "codec"
steps = 2
crop = 64
batch = 1
learning_rate = 1e-3
weights = { mse = 1.0 }
rates = { 0 = [0.1, 0.1], 1 = [0.2, 0.1] }
"""


@pytest.fixture(scope="module")
def run(tiny: Profile, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evolution")
    (folder / "r.toml").write_text(RECIPE)
    settings = RunSettings(photographs, photographs, folder / "run", snapshots=2)
    made = Trainer(Recipe.load(folder / "r.toml"), settings)
    assert made.train()
    last = snapshots.load(folder / "run" / "snapshots" / "000005.safetensors")
    for name, parameter in made.average.named_parameters():
        torch.testing.assert_close(last.get_parameter(name), parameter, atol=1e-3, rtol=1e-3)
    return folder / "run"


def command(run: Path, photographs: Path, out: Path, *more: str) -> None:
    evolution.main([str(run), "--validation", str(photographs), "--threads", "1", "--out", str(out), *more])


def test_snapshots_are_kept_at_steps_and_at_the_end_of_stages(run: Path) -> None:
    places = [snapshots.place_of(path) for path in snapshots.find(run)]
    assert [(place.total, place.stage, place.rates) for place in places] == [
        (2, "relaxed", [1]),
        (3, "relaxed", [1]),
        (4, "target", [0, 1]),
        (5, "target", [0, 1]),
    ]


def test_the_evolution_is_a_table_a_plot_and_a_strip(
    run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(run, photographs, tmp_path / "out", "--pictures", "2")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["rate"], line["first"]["total"], line["last"]["total"]) == (1, 2, 5)
    content = json.loads((tmp_path / "out" / "evolution.json").read_text())
    assert [point["stage"] for point in content["points"]] == ["relaxed", "relaxed", "target", "target"]
    assert len({point["snapshot"] for point in content["points"]}) == 4
    assert all(point["bpp"] > 0 and point["psnr"] > 0 for point in content["points"])
    assert "variance" in content["points"][1], "the end of a stage is a line of the log"
    drawn = (tmp_path / "out" / "evolution.md").read_text()
    assert "| 3 | relaxed | " in drawn
    with Image.open(tmp_path / "out" / "evolution_strip.jpg") as strip:
        assert strip.size == (5 * evolution.SIDE, evolution.LABEL + 2 * evolution.SIDE)
    evolution_plots.main([str(tmp_path / "out" / "evolution.json")])
    assert (tmp_path / "out" / "evolution.md").read_text() == drawn

    def no_point(*_: object) -> None:
        raise AssertionError("a snapshot is evaluated again")

    monkeypatch.setattr(evolution.likelihood_estimate, "point", no_point)
    command(run, photographs, tmp_path / "out", "--pictures", "2")
    assert json.loads((tmp_path / "out" / "evolution.json").read_text()) == content


def test_what_cannot_be_shown_is_named(
    run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(tmp_path, photographs, tmp_path / "out")
    assert "train it with --snapshots" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(run, photographs, tmp_path / "out", "--rate", "0")
    assert "the stages have in common [1]" in capsys.readouterr().err
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is not a snapshot"):
        snapshots.load(tmp_path / "other.safetensors")
    model = snapshots.load(snapshots.find(run)[0])
    place = snapshots.RunPosition("s", 7, [0])
    snapshots.write(model, tmp_path, place, without={"codec.log_gain"})
    with pytest.raises(InputError, match="runs of full size"):
        snapshots.load(tmp_path / "000007.safetensors")


def test_the_recipe_of_the_committed_run_has_two_stages_with_a_common_rate() -> None:
    recipe = Recipe.load(RECIPES / "nano_me_evolution.toml")
    relaxed, target = recipe.stages
    assert recipe.profile == "nano-me" and set(relaxed.rates) <= set(target.rates)
