"""The plan of a recipe, and the figures of it in docs/training.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aeic.profiles import NANO
from aeic_train.training import cost_plan
from aeic_train.training import trainer as loop
from aeic_train.training.recipe import Recipe
from tests.support.roots import ROOT

RECIPES = Path(loop.__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", ["me", "se"])
def test_the_documentation_has_the_figures(name: str) -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    rows = cost_plan.text(cost_plan.plan(Recipe.load(RECIPES / f"{name}.toml"))).splitlines()
    upper = {"me": "AEIC-ME", "se": "AEIC-SE"}[name]
    section = text.partition(f"#### {upper}")[2].partition("####")[0]
    missing = [row for row in rows if row.startswith("|") and row not in section]
    assert not missing


def test_recomputing_trades_time_for_memory() -> None:
    recipe = Recipe.load(RECIPES / "nano.toml")
    (stage,) = (stage for stage in recipe.stages if stage.name == "1-relaxed")
    plain, again = recipe, replace(recipe, checkpointing=True)
    memory = [sum(cost_plan.memory(each, stage, NANO).values()) for each in (plain, again)]
    flops = [cost_plan.flops_a_crop(each, stage, NANO) for each in (plain, again)]
    assert memory[1] < memory[0] and 1 < flops[1] / flops[0] < 1.4


def test_what_learns_is_what_the_checkpoint_holds() -> None:
    from aeic.profiles import SE

    found = cost_plan.sizes(SE, 64, official=True)
    # The codec, 192 pairs of factors and both ends of the UNet; all else stands still (docs/model.md section 8.1).
    assert found.trained == pytest.approx(83.43 + 28.90 + 0.92 + 0.74, abs=0.02)
    assert found.still == pytest.approx(789.29 + 12.97 - 0.92 - 0.74, abs=0.02)


def test_the_command_needs_no_pictures(capsys: Any) -> None:
    loop.main(["--recipe", str(RECIPES / "smoke.toml"), "--plan"])
    said = capsys.readouterr().out
    line = json.loads(said.splitlines()[-1])
    assert [stage["stage"] for stage in line["plan"][0]["stages"]] == ["prior", "rates", "decoder"]
    assert "Nothing was measured" in said
    with pytest.raises(SystemExit):
        loop.main(["--recipe", str(RECIPES / "smoke.toml")])
    assert "--photographs" in capsys.readouterr().err
