from __future__ import annotations

from pathlib import Path

import pytest

import aeic_train
from aeic.profiles import NANO, PROFILES, Profile
from aeic_nets.network import AEIC
from aeic_train.losses.distillation import PARTS
from aeic_train.training.recipe import Recipe, Stage
from aeic_train.training.schedule import learning_rate, parameter_groups

RECIPES = Path(aeic_train.__file__).parent / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_sound(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.stages
    for stage in recipe.stages:
        assert stage.crop % 64 == 0
        assert stage.kind in {"prior", "codec"}
        assert set(stage.rates) <= {str(i) for i in range(NANO.rates)}
        assert bool(stage.rates) == (stage.kind == "codec")
        assert set(stage.distill) <= set(PARTS)
    assert recipe.profile in PROFILES
    assert recipe.teacher is None or recipe.teacher in PROFILES


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('profile = "nano"\nseed = 1\naverage = 0.9\n[[stage]]\nname = "x"\nspeed = 3\n')
    with pytest.raises(ValueError, match="speed"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('optimizer = "sgd"', "choose from soap, adamw"),
        ("drops = { soon = 1e-5 }", "drops needs steps"),
        ("steer = false\nrates = { 3 = [0.1, 0.1] }", "lambdas needs the rate points 3"),
    ],
)
def test_fields_that_cannot_work_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    stage = 'name = "x"\nkind = "codec"\nsteps = 1\ncrop = 64\nbatch = 1\nlearning_rate = 1e-4'
    path.write_text(f'profile = "nano"\nseed = 1\naverage = 0.9\n[[stage]]\n{stage}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        Recipe.load(path)


def test_the_learning_rate_warms_up_and_decays() -> None:
    stage = Stage("x", "codec", steps=1000, crop=64, batch=1, learning_rate=1.0, decay=0.5, warmup=100)
    rates = [learning_rate(stage, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[499] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=5e-3)


def test_the_gains_learn_faster_than_the_rest(tiny: Profile) -> None:
    model = AEIC(tiny)
    rest, gains = parameter_groups(model, list(model.parameters()))
    assert gains["speed"] > rest["speed"] == 1.0
    assert [tuple(p.shape) for p in gains["params"]] == [(tiny.rates, tiny.latent_channels)] * 2
    assert len(rest["params"]) + 2 == len(list(model.parameters()))
