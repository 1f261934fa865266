"""The plots of docs/results: colours, axes, and pages that are what the committed figures give and show their plots."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aeic_train.reports import evolution_plots, rd_plots, training_curves
from aeic_train.reports.plot_style import COLOURS, codec_colours, log_scale, open_pyplot
from aeic_train.studies import costs
from aeic_train.training.recipe import Recipe
from tests.support.roots import ROOT

RESULTS = ROOT / "docs" / "results"
PLOTS = sorted(path.relative_to(RESULTS) for path in RESULTS.glob("**/*.svg"))


def test_a_codec_has_one_colour_in_every_plot() -> None:
    first, second = codec_colours(["vvc", "avif-half", "heic-half"]), codec_colours(["heic-half", "new", "avif", "vvc"])
    assert first["vvc"] == second["vvc"] and first["heic-half"] == second["heic-half"]
    assert first["avif-half"] == second["avif"]
    assert len(set(second.values())) == 4, "a codec without a fixed colour takes a free one"
    assert set(codec_colours(map(str, range(20))).values()) == set(COLOURS)
    for of_set in rd_plots.load(RESULTS).values():
        others = [name for name in of_set.curves if not rd_plots.is_ours(name)]
        assert len(set(codec_colours(others).values())) == len(others)


@pytest.mark.parametrize(("low", "high"), [(0.07, 0.23), (0.008, 0.25), (5, 3000), (30, 20_000)])
def test_logarithmic_axes_have_plain_decimals(low: float, high: float) -> None:
    figure, axis = open_pyplot().subplots()
    axis.plot([low, high], [low, high])
    log_scale(axis, "x")
    figure.canvas.draw()
    shown = [
        label.get_text()
        for tick, label in zip(axis.get_xticks(), axis.get_xticklabels())
        if low <= tick <= high and label.get_text()
    ]
    open_pyplot().close(figure)
    assert 2 <= len(shown) <= 8 and all(re.fullmatch(r"[\d,.]+", text) for text in shown), shown


@pytest.mark.parametrize("plot", PLOTS, ids=str)
def test_every_plot_is_on_the_page_of_its_table(plot: Path) -> None:
    page = RESULTS / plot.with_name("training.md" if plot.stem == "latents" else f"{plot.stem}.md")
    image = re.search(rf"!\[([^\]]+)\]\({plot.name}\)\n\n\*[^*]+\*\n", page.read_text())
    assert image, f"{page} lacks {plot.name} with a text for those who do not see it, and a caption"


def test_the_pages_are_those_of_the_committed_figures() -> None:
    sets = rd_plots.load(RESULTS)
    assert {"val40", "val12", "kodak", "div2k", "clic2020"} <= set(sets)
    pages = {RESULTS / f"{name}.md": rd_plots.table(of_set, RESULTS / name) for name, of_set in sets.items()}
    lines = training_curves.read(ROOT / "models" / "aeic-se-nano" / "training_log.jsonl")
    pages[RESULTS / "training.md"] = training_curves.table(lines)
    pages[RESULTS / "costs.md"] = costs.table(json.loads((RESULTS / "costs.json").read_text()))
    evolution = RESULTS / "evolution" / "evolution.json"
    content = json.loads(evolution.read_text())
    pages[evolution.with_suffix(".md")] = evolution_plots.table(content, evolution.with_suffix(".svg"))
    for page, text in pages.items():
        assert page.read_text() == text, f"{page}: run make results"


def test_the_steps_of_the_shipped_model_are_those_of_its_log() -> None:
    """The page says that the last steps of stage 5, after its last line, are in no total."""
    lines = training_curves.read(ROOT / "models" / "aeic-se-nano" / "training_log.jsonl")
    decoder = Recipe.load(ROOT / "aeic_train" / "recipes" / "nano_decoder.toml").stages[0]
    unlogged = decoder.steps - max(line["step"] for line in lines if line["stage"] == decoder.name)
    text = (ROOT / "docs" / "shipped-model.md").read_text()
    assert f"{lines[-1]['total'] + unlogged:,} steps" in text and f"{lines[-1]['total']:,} steps" in text
    assert f"last {unlogged} of the {decoder.steps} steps" in text and f"{lines[-1]['hours']:.2f};" in text
