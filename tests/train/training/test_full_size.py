"""The training setup of the paper on synthetic official files at a reduced width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aeic import profiles
from aeic.profiles import Profile
from aeic_nets.official import keys
from aeic_nets.official.files import read_official
from aeic_nets.official.pickles import entry, read_file
from aeic_train.export import from_official
from aeic_train.training import full_size
from aeic_train.training import trainer as loop
from aeic_train.training.full_size import Sources
from aeic_train.training.recipe import Recipe
from aeic_train.training.schedule import learning_rate
from aeic_train.training.trainer import RunSettings, Trainer
from aeic_train.workers import StopSignal
from tests.support.models.official_files import write_official
from tests.support.models.official_model import SMALL

RECIPES = Path(loop.__file__).parents[1] / "recipes"
SMALL_ME = replace(
    SMALL,
    name="small-me",
    analysis_widths=(8, 16, 16, 16, 24),
    analysis_depth=2,
    latent_channels=24,
    context_width=24,
)
SMALL_SE = replace(SMALL, name="small-se")


@pytest.fixture(scope="module", autouse=True)
def profiles_and_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    profiles.PROFILES |= {"small-me": SMALL_ME, "small-se": SMALL_SE}
    yield
    torch.set_num_threads(before)
    for name in ("small-me", "small-se"):
        del profiles.PROFILES[name]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    write_official(folder, SMALL_ME)
    # Pickles are read by a child process, which takes seconds. Each test reads the decoder.
    decoder = read_file(folder / "halfDecoder.ckpt", folder)
    save_file(dict(entry(decoder, "state_dict")), folder / "halfDecoder.safetensors")
    return folder


def sources(official: Path) -> Sources:
    return Sources(official / "sd-turbo", official / "halfDecoder.safetensors")


def small(name: str, steps: tuple[int, int] = (1, 1)) -> Recipe:
    """The recipe as it is, with few steps of small crops, without the terms whose weights are files."""
    recipe = Recipe.load(RECIPES / f"{name}.toml")
    stages = tuple(
        replace(stage, steps=n, crop=64, crops_a_step=2, weights={"mse": stage.weights["mse"], "features": 0.1})
        for stage, n in zip(recipe.stages, steps, strict=True)
    )
    return replace(recipe, profile=f"small-{name}", teacher=recipe.teacher and "small-me", stages=stages)


def settings(photographs: Path, run: Path, official: Path, **more: Any) -> RunSettings:
    return RunSettings(photographs, photographs, run, sources=sources(official), **more)


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("hours", "seconds_per_step")} for line in lines]


@pytest.fixture(scope="module")
def me(official: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("me") / "run"
    assert Trainer(small("me"), settings(photographs, run, official)).train()
    return run


def test_the_recipes_are_the_published_settings() -> None:
    for name in ("me", "se"):
        relaxed, target = Recipe.load(RECIPES / f"{name}.toml").stages
        assert (relaxed.steps, target.steps) == (300_000, 30_000)
        assert (relaxed.crops_a_step, target.crops_a_step, relaxed.crop, target.crop) == (8, 32, 512, 512)
        assert (relaxed.lambdas, target.lambdas) == ({"0": 0.8}, {"0": 2.0})
        at = (0, 10_000, 25_000, 28_000, 29_999)
        assert [learning_rate(target, step) for step in at] == [5e-5, 2e-5, 1e-5, 5e-6, 1e-6]
        assert [learning_rate(relaxed, step) for step in (0, 279_999, 280_000)] == [1e-4, 1e-4, 5e-5]


def test_only_codec_lora_and_ends_learn(me: Path, official: Path) -> None:
    model = full_size.build(SMALL_ME, sources(official))
    base = full_size.frozen(model)
    learning = {name for name, _ in model.named_parameters()} - base
    assert {name.split(".")[0] for name in base} == {"unet", "vae"}
    assert {name.removeprefix("unet.") for name in learning if name.startswith("unet.")} == set(
        keys.trained_unet_keys(SMALL_ME)
    )
    state = torch.load(me / "state.pt", weights_only=True)
    assert set(state["average"]) & base == set()
    assert {name for name in state["average"] if name in learning} == learning
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    full_size.load_trained(model, me / "state.pt")
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= learning and any(".lora_A." in name for name in moved)


def test_two_steps_resumed_are_the_same_steps(me: Path, official: Path, photographs: Path, tmp_path: Path) -> None:
    stop = StopSignal()
    stop.received = True
    recipe = small("me", (2, 1))
    through = tmp_path / "through"
    Trainer(recipe, settings(photographs, through, official)).train()
    again = tmp_path / "again"
    assert not Trainer(recipe, settings(photographs, again, official), stop=stop).train()
    assert Trainer(recipe, settings(photographs, again, official)).train()
    one, two = (torch.load(run / "state.pt", weights_only=True) for run in (through, again))
    assert one["position"] == two["position"] == [2, 0, 3]
    for name, tensor in one["average"].items():
        assert torch.equal(tensor, two["average"][name]), name
    assert log(through)[-1] == log(again)[-1]
    assert log(through)[-1]["lambda_0"] == 2.0 and log(through)[0]["lambda_0"] == 0.8


def test_other_official_files_are_noticed(me: Path, official: Path, photographs: Path, tmp_path: Path) -> None:
    state = torch.load(me / "state.pt", weights_only=True)
    (tmp_path / "run").mkdir()
    torch.save(state | {"base": "0" * 16}, tmp_path / "run" / "state.pt")
    with pytest.raises(ValueError, match="other official files"):
        Trainer(small("me"), settings(photographs, tmp_path / "run", official))
    with pytest.raises(ValueError, match="--sd-turbo"):
        Trainer(small("me"), RunSettings(photographs, photographs, tmp_path / "new"))


def test_a_run_becomes_a_checkpoint_that_convert_reads(me: Path, official: Path, tmp_path: Path) -> None:
    trained = full_size.build(SMALL_ME, sources(official))
    full_size.load_trained(trained, me / "checkpoint.safetensors")
    turbo = from_official.find_sd_turbo(official / "sd-turbo")
    files = read_official(turbo, official / "halfDecoder.safetensors", me / "checkpoint.safetensors", tmp_path)
    from_official.check(files, SMALL_ME)
    merged = from_official.build(files, SMALL_ME, folded=False)
    y_hat = torch.randn(1, 24, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(trained.generate(y_hat), merged.generate(y_hat), atol=2e-4, rtol=1e-3)
        factors = [p for name, p in trained.unet.named_parameters() if ".lora_B." in name]
        assert any(float(p.abs().max()) > 0 for p in factors)


@pytest.mark.parametrize("teacher", ["state.pt", "checkpoint.safetensors", "aeic.pkl"])
def test_a_student_of_other_latents_learns_from_me(
    teacher: str, me: Path, official: Path, photographs: Path, tmp_path: Path
) -> None:
    weights = (official if teacher == "aeic.pkl" else me) / teacher
    trainer = Trainer(small("se"), settings(photographs, tmp_path / "run", official, teacher=weights))
    distillation = trainer.distillation
    assert distillation is not None and len(distillation.projections) == 5
    ours, theirs = trainer.model.unet.mid_block.resnets[0].conv1, distillation.teacher.unet.mid_block.resnets[0].conv1
    assert ours.weight is theirs.weight
    if teacher != "state.pt":
        return  # one of the three forms is trained with
    assert trainer.train()
    first, second = log(tmp_path / "run")
    assert first["distil_analysis"] > 0 and first["distil_latent"] > 0
    assert second["distil_unet"] > 0 and second["discriminator"] > 0


@pytest.mark.slow
@pytest.mark.skipif("AEIC_FULL" not in os.environ, reason="full size: minutes, 9 GB of memory, 5 GB of disk")
def test_one_step_at_full_size(photographs: Path, tmp_path: Path) -> None:
    official = tmp_path / "official"
    write_official(official, profiles.profile("me"))
    command = [sys.executable, "-m", "tests.train.training.full_size_step", official, tmp_path / "run", photographs]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)  # shown by pytest -s
    assert 0 < found["peak_gb"] < 12
    assert found["moved"] > 0.9 * found["tensors"]
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert line["mse"] > 0 and line["bpp"] > 0 and line["skipped"] == 0
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_the_unet_has_eleven_taps() -> None:
    model = full_size_unet(SMALL_SE)
    assert len(model.features(torch.randn(1, 16, 8, 8))) == 11


def full_size_unet(profile: Profile) -> Any:
    from aeic_nets.unet import UNet

    return UNet(profile.unet, profile.unet_channels, profile.residual_channels)


def test_checkpointing_changes_no_gradient(official: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = full_size.build(SMALL_ME, sources(official))
        if checkpointing:
            full_size.checkpoint_blocks(model)
        torch.manual_seed(1)
        model(torch.rand(1, 3, 64, 64) * 2 - 1)["x_hat"].square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(".lora_B." in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_frozen_layers_may_be_half_as_large(official: Path) -> None:
    model = full_size.build(SMALL_ME, sources(official))
    before = full_size.fingerprint(model)
    full_size.store_frozen(model, torch.bfloat16)
    assert full_size.fingerprint(model) == before
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds["unet.mid_block.resnets.0.conv1.weight"] == torch.bfloat16
    assert kinds["unet.mid_block.resnets.0.norm1.weight"] == torch.float32
    assert kinds["unet.mid_block.resnets.0.conv1.lora_A.default.weight"] == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.rand(1, 3, 64, 64) * 2 - 1)
    out["x_hat"].float().square().mean().backward()
    assert model.unet.conv_in.weight.grad is not None
