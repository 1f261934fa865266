"""Two steps of training, a restart, an export; then the format's own codec runs on what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.profiles import Profile
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights
from aeic_train.codecs.ours import OurCodec
from aeic_train.export import bundle as export
from aeic_train.training import trainer

RECIPE = """
profile = "tiny"
seed = 1
average = 0.9
teacher = "tiny"

[[stage]]
name = "prior"
kind = "prior"
steps = 1
crop = 64
batch = 2
learning_rate = 1e-3
weights = { mse = 1.0 }

[[stage]]
name = "codec"
kind = "codec"
steps = 2
crop = 64
batch = 2
learning_rate = 1e-3
spread_from = 0
exact = true
weights = { mse = 1.0, features = 0.1, texture = 0.1, low = 0.1 }
rates = { 0 = [0.1, 0.05], 1 = [0.2, 0.1] }

[[stage]]
name = "taught"
kind = "codec"
steps = 1
crop = 64
batch = 2
learning_rate = 1e-3
weights = { mse = 1.0, features = 0.1 }
rates = { 0 = [0.05, 0.05] }
distill = { analysis = 0.5, latent = 0.5, unet = 0.5 }
adversarial = 0.1
"""


@pytest.fixture(scope="module")
def run(tiny: Profile, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.toml").write_text(RECIPE)
    arguments = ["--recipe", str(folder / "tiny.toml"), "--photographs", str(photographs)]
    arguments += ["--validation", str(photographs), "--run", str(folder / "run")]
    save_file(AEIC(tiny).state_dict(), folder / "teacher.safetensors")
    arguments += ["--teacher", str(folder / "teacher.safetensors")]
    trainer.main([*arguments, "--threads", "1"])
    trainer.main([*arguments, "--threads", "1"])  # nothing is left to do: it must see that
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("models") / "tiny"
    export.main(
        [
            "--run",
            str(run),
            "--profile",
            "tiny",
            "--name",
            "tiny",
            "--rates",
            "0.05,0.1",
            "--calibration",
            str(photographs),
            "--out",
            str(out),
        ]
    )
    return Bundle.load(out)


def test_the_state_says_where_it_stands(run: Path) -> None:
    state = torch.load(run / "state.pt", weights_only=True)
    assert state["position"] == [3, 0, 4]
    assert state["adversary"] and state["distillation"]


def test_the_export_is_a_bundle_that_codes(bundle: Bundle) -> None:
    assert json.loads((bundle.path / "bundle.json").read_text())["card"]["steps"] == 4
    y = np.random.default_rng(0).normal(0, 2, (bundle.channels, 4, 6)).astype(np.float32)
    codec = LatentCodec(bundle, threads=1)
    for rate in (0, 1):
        data = codec.encode(y, rate, 190, 100)
        assert codec.decode(data).symbols.shape == y.shape


@pytest.mark.parametrize("size", [(16, 16), (65, 130)])
def test_a_picture_goes_through(bundle: Bundle, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    pair = OurCodec(bundle, threads=1)
    assert pair.decode(pair.encode(picture, 1)).shape == (*size, 3)


def test_its_weights_start_another_run(bundle: Bundle, tiny: Profile) -> None:
    model, _ = export.load_average(tiny, None, bundle.path / "weights.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_run_starts_another_but_for_what_is_to_be_fresh(run: Path, tiny: Profile) -> None:
    model, before = AEIC(tiny), AEIC(tiny)
    before.load_state_dict(model.state_dict())
    load_weights(model, run / "state.pt", fresh=("codec.g_a",))
    same = {name for name, p in model.named_parameters() if torch.equal(p, before.get_parameter(name))}
    assert {name for name, _ in model.named_parameters() if name.startswith("codec.g_a")} <= same
    assert not any(name.startswith("vae.decoder.conv") for name in same)


def test_weights_of_another_shape_are_refused(run: Path, tiny: Profile) -> None:
    wider = AEIC(replace(tiny, name="wider", analysis_widths=(16, 8, 16, 16, 16)))
    with pytest.raises(ValueError, match="does not fit profile 'wider'"):
        load_weights(wider, run / "state.pt")
    load_weights(wider, run / "state.pt", fresh=("codec.g_a",))


def test_recipes_are_trained_one_after_the_other(tiny: Profile, photographs: Path, tmp_path: Path) -> None:
    head = (
        'profile = "tiny"\nseed = {seed}\naverage = 0.5\n[[stage]]\nname = "s"\nkind = "codec"\ncrop = 64\nbatch = 1\n'
    )
    rest = "steps = {steps}\nlearning_rate = {rate}\nweights = {{ mse = 1.0 }}\nrates = {{ 0 = [0.1, 0.1] }}\n"
    (tmp_path / "one.toml").write_text((head + rest).format(seed=1, steps=4, rate=1e-3))
    (tmp_path / "two.toml").write_text((head + rest).format(seed=2, steps=1, rate=0.0))
    arguments = ["--photographs", str(photographs), "--validation", str(photographs), "--run", str(tmp_path / "run")]
    trainer.main(["--recipe", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"), *arguments, "--threads", "1"])
    one, two = (torch.load(tmp_path / "run" / name / "state.pt", weights_only=True) for name in ("one", "two"))
    assert one["position"] == [1, 0, 4] and two["position"] == [1, 0, 1]
    # The second, which does not learn, has what the first ended with.
    assert all(torch.equal(two["average"][name], tensor) for name, tensor in one["average"].items())
    model = torch.manual_seed(2) and AEIC(tiny)
    assert not torch.equal(
        two["average"]["vae.decoder.conv_in.weight"], model.state_dict()["vae.decoder.conv_in.weight"]
    )


def test_one_recipe_cannot_be_named_twice(photographs: Path, tmp_path: Path) -> None:
    recipe = Path(trainer.__file__).parents[1] / "recipes" / "smoke.toml"
    folders = ["--photographs", str(photographs), "--validation", str(photographs), "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        trainer.main(["--recipe", str(recipe), str(recipe), *folders])
