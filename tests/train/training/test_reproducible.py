"""A seed says what a run becomes: twice the same, stopped and resumed or not."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aeic_train.export import bundle as export
from aeic_train.training import trainer as loop
from aeic_train.training.recipe import Recipe
from aeic_train.training.trainer import RunSettings, Trainer
from aeic_train.workers import StopSignal, Workers, launch

SMOKE = Path(loop.__file__).parents[1] / "recipes" / "smoke.toml"


def short_smoke_recipe() -> Recipe:
    """The smoke recipe with few steps of small crops: every kind of stage, exact and adversarial ones among them."""
    recipe = Recipe.load(SMOKE)
    steps = (1, 3, 2)
    return replace(
        recipe,
        stages=tuple(replace(stage, crop=64, batch=2, steps=n) for stage, n in zip(recipe.stages, steps, strict=True)),
    )


def train(recipe: Recipe, photographs: Path, run: Path) -> dict[str, Any]:
    Trainer(recipe, RunSettings(photographs, photographs, run)).train()
    return saved(run)


def saved(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "state.pt", weights_only=True)
    return state


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """The places where two states are not equal to the bit, but for the time that they took."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [found for key in a if key != "seconds" for found in differences(a[key], b[key], f"{at}/{key}")]
    if isinstance(a, list | tuple):
        return [found for i, (p, q) in enumerate(zip(a, b, strict=True)) for found in differences(p, q, f"{at}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [at]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "run"
    train(short_smoke_recipe(), photographs, folder)
    return folder


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_to_the_bit(run: Path, photographs: Path, tmp_path: Path) -> None:
    assert differences(saved(run), train(short_smoke_recipe(), photographs, tmp_path / "run")) == []


@pytest.mark.slow
def test_no_step_of_the_smoke_recipe_is_left_out(run: Path) -> None:
    """Else the tests of this file would compare networks that have not moved."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["prior", "rates", "decoder"]
    assert all(line["skipped"] == 0.0 for line in lines)


@pytest.mark.slow
def test_another_seed_gives_another_run(run: Path, photographs: Path, tmp_path: Path) -> None:
    other = train(replace(short_smoke_recipe(), seed=2), photographs, tmp_path / "run")
    assert any(place.startswith("/average") for place in differences(saved(run), other))


@pytest.mark.slow
def test_sigterm_saves_and_the_resumed_run_becomes_what_it_would_have_become(
    run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short_smoke_recipe()
    seed_step = Trainer._seed_step

    def end(trainer: Trainer) -> None:
        if trainer.total_steps == 2:  # the second of the three steps of the second stage
            handler = signal.getsignal(signal.SIGTERM)  # test_workers.py raises the real one, in a process of its own
            assert callable(handler)
            handler(signal.SIGTERM, None)
        seed_step(trainer)

    monkeypatch.setattr(Trainer, "_seed_step", end)
    with StopSignal() as stop:
        finished = Trainer(recipe, RunSettings(photographs, photographs, tmp_path / "run"), stop=stop).train()
    assert not finished
    assert saved(tmp_path / "run")["position"] == [1, 2, 3]
    monkeypatch.undo()
    assert differences(saved(run), train(recipe, photographs, tmp_path / "run")) == []


def _train_and_keep(workers: Workers, recipe: Recipe, photographs: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(recipe, RunSettings(photographs, photographs, folder / "run"), workers=workers)
    first_crops = next(iter(trainer._crops(recipe.stages[0], workers)))
    trainer.train()
    assert trainer.discriminator
    torch.save(
        {
            "model": trainer.model.state_dict(),
            "average": trainer.average.state_dict(),
            "discriminator": trainer.discriminator.discriminator.state_dict(),
            "steering": trainer.lambda_controller.state_dict(),
            "crops": first_crops,
        },
        folder / f"{workers.rank}.pt",
    )


@pytest.mark.slow
def test_two_processes_see_other_crops_and_keep_equal_weights(photographs: Path, tmp_path: Path) -> None:
    launch(_train_and_keep, (short_smoke_recipe(), photographs, tmp_path), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first.pop("crops"), second.pop("crops"))
    assert first.pop("steering") == second.pop("steering")
    for part, tensors in first.items():
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in tensors.items()), part
    assert (tmp_path / "run" / "state.pt").exists()


@pytest.mark.slow
def test_the_sites_of_an_exact_stage_are_kept_and_exported(
    run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = export.trained_sites(run)
    assert sites and saved(run)["sites"]
    given = []
    monkeypatch.setattr(export, "export", lambda *arguments: given.append(arguments[-1]))
    monkeypatch.setattr(export, "calibrate", lambda *_: pytest.fail("calibrated anew"))
    monkeypatch.setattr(export.Bundle, "load", lambda _: pytest.fail("reached the end"))
    arguments = ["--run", str(run), "--rates", "0.1,0.2,0.3,0.4,0.5,0.6", "--calibration", str(photographs)]
    (tmp_path / "out").mkdir()
    with pytest.raises(pytest.fail.Exception, match="reached the end"):
        export.main([*arguments, "--out", str(tmp_path / "out")])
    assert given == [sites]


def test_sites_are_forgotten_once_the_entropy_model_moves_on(run: Path, photographs: Path, tmp_path: Path) -> None:
    recipe = short_smoke_recipe()
    trainer = Trainer(recipe, RunSettings(photographs, photographs, run))
    trainer.step = 1
    assert trainer.sites
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_(name.startswith("vae"))
    trainer._set_quantisation(replace(recipe.stages[2], exact=False))
    assert trainer.sites and type(trainer.model.codec).__name__ == "QuantisedCodec"
    trainer.model.requires_grad_(True)
    trainer._set_quantisation(replace(recipe.stages[2], exact=False))
    assert trainer.sites is None and type(trainer.model.codec).__name__ == "Codec"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nanno.toml", None, "nanno.toml cannot be read: No such file or directory"),
        ("a.toml", "profile = ", "is not TOML"),
        ("a.toml", "profile = 'nano'", "has no stage"),
        ("a.toml", "profile = 'nano'\n[[stage]]\nname = 'x'\nstep = 3", "unknown keys: step"),
        ("a.toml", "profile = 'nano'\n[[stage]]\nname = 'x'", "missing keys: batch, crop"),
        ("a.toml", SMOKE.read_text().replace('"nano"', '"nanno"'), "unknown profile 'nanno'"),
        ("a.toml", SMOKE.read_text().replace("average", "averaged"), "unknown keys: averaged"),
    ],
)
def test_a_wrong_recipe_is_one_line(
    name: str, text: str | None, message: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text:
        (tmp_path / name).write_text(text)
    folders = ["--photographs", str(photographs), "--validation", str(photographs), "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        loop.main(["--recipe", str(tmp_path / name), *folders])
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_a_wrong_folder_or_device_is_one_line(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--photographs", str(tmp_path / "none"), "--validation", str(photographs)], "no folder"),
        (["--photographs", str(photographs), "--validation", str(photographs), "--device", "gpu"], "gpu"),
    ):
        with pytest.raises(SystemExit, match="2"):
            loop.main(["--recipe", str(SMOKE), *arguments, "--run", str(tmp_path / "run")])
        assert message in capsys.readouterr().err.splitlines()[-1]
