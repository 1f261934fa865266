"""Draws the quality of a training's milestones over its hours, from the JSON of ``aeic bench milestones``.

    python -m aeic_train.reports.milestone_plots [docs/results/milestones/milestones.json]

`make results` runs it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from aeic_train.evaluation.rd_curves import RISING, at
from aeic_train.reports.plot_style import COLOURS, embed, log_scale, open_pyplot, save_figure, tidy
from aeic_train.reports.rd_plots import TITLES

MEASURES = ("st_lpips", "psnr", "efflite_fd")
RATES = (0.02, 0.03, 0.04, 0.05)
"""Bits per pixel at which the milestones are compared."""
DIGITS = {"psnr": 2, "efflite_fd": 0}
ALT = "ST-LPIPS, PSNR and efflite_fd at equal bits over the hours of training"
CAPTION = "A point is a milestone, a line a rate. Dashed: the straight line through the last three milestones."
LAST = 3
"""How many milestones the straight line goes through. The first ones still learned what a picture is."""
DEFAULT = Path("docs/results/milestones/milestones.json")

Line = tuple[float, float]


def line(milestones: list[dict[str, Any]], measure: str, bpp: float) -> Line | None:
    """(value at one hour, change with each doubling of the hours) by least squares over the last milestones.

    None if fewer than two of them reach ``bpp``.
    """
    values = [(m["hours"], at(m["points"], measure, bpp)) for m in milestones]
    pairs = [(math.log2(hours), value) for hours, value in values if value is not None][-LAST:]
    if len(pairs) < 2:
        return None
    slope, start = np.polyfit(*zip(*pairs), 1)
    return float(start), float(slope)


def gains(milestones: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each measure and rate, the change with each doubling of the hours."""
    found: dict[str, dict[str, float]] = {}
    for measure in MEASURES:
        lines = {str(bpp): line(milestones, measure, bpp) for bpp in RATES}
        found[measure] = {bpp: round(fit[1], 4) for bpp, fit in lines.items() if fit is not None}
    return found


def hours_to(milestones: list[dict[str, Any]], target: dict[str, Any]) -> float | None:
    """The hours at which the line reaches a target; None if it does not lead there."""
    fit = line(milestones, target["measure"], target["bpp"])
    if fit is None:
        return None
    start, slope = fit
    improves = slope > 0 if target["measure"] in RISING else slope < 0
    if not improves:
        return None
    exponent = (target["value"] - start) / slope
    return math.inf if exponent > 60 else 2**exponent


def table(content: dict[str, Any], plot: Path) -> str:
    """Markdown with ``plot`` (from ``draw``): the milestones, the gains with each doubling, and the targets."""
    milestones = content["milestones"]
    lines = [
        f"Mean over {len(content['pictures'])} pictures; bits are estimated from likelihoods.\n",
        embed(plot, ALT, CAPTION),
    ]
    for measure in MEASURES:
        lines += [
            f"\n## {TITLES[measure]}\n",
            "| hours | steps | " + " | ".join(f"{bpp} bpp" for bpp in RATES) + " |",
            "|---" * (len(RATES) + 2) + "|",
        ]
        for milestone in milestones:
            cells = [_cell(at(milestone["points"], measure, bpp), measure) for bpp in RATES]
            lines.append(f"| {milestone['hours']:.1f} | {milestone['steps']} | " + " | ".join(cells) + " |")
        fits = [line(milestones, measure, bpp) for bpp in RATES]
        slopes = ["–" if fit is None else f"{fit[1]:+.{DIGITS.get(measure, 3)}f}" for fit in fits]
        lines.append("| with each doubling | | " + " | ".join(slopes) + " |")
    if content["targets"]:
        lines += ["\n## Targets\n", "| measure | bpp | target | last milestone | hours on the line |", "|---" * 5 + "|"]
    for target in content["targets"]:
        measure, bpp = target["measure"], target["bpp"]
        now = _cell(at(milestones[-1]["points"], measure, bpp), measure)
        needed = _hours(hours_to(milestones, target))
        lines.append(f"| {TITLES[measure]} | {bpp} | {_cell(target['value'], measure)} | {now} | {needed} |")
    lines.append("\n– : the milestone's curve does not reach that rate.")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, measure: str) -> str:
    return "–" if value is None else f"{value:.{DIGITS.get(measure, 3)}f}"


def _hours(needed: float | None) -> str:
    if needed is None:
        return "the line does not lead there"
    return "more than can be trained" if math.isinf(needed) else f"{needed:,.0f}"


def draw(path: Path) -> None:
    """Write the table (.md) and the plots (.svg, .png) beside the JSON at ``path``."""
    content = json.loads(path.read_text())
    path.with_suffix(".md").write_text(table(content, path.with_suffix(".svg")))
    milestones: list[dict[str, Any]] = content["milestones"]
    figure, axes = open_pyplot().subplots(1, len(MEASURES), figsize=(15, 4.6), layout="constrained")
    for axis, measure in zip(axes, MEASURES):
        for bpp, colour in zip(RATES, COLOURS):
            pairs = [(m["hours"], at(m["points"], measure, bpp)) for m in milestones]
            reached = [(hours, value) for hours, value in pairs if value is not None]
            axis.plot([h for h, _ in reached], [v for _, v in reached], "o-", color=colour, label=f"{bpp} bpp")
            fit = line(milestones, measure, bpp)
            if fit is not None:
                ends = np.array([reached[-min(LAST, len(reached))][0], 4 * reached[-1][0]])
                axis.plot(ends, fit[0] + fit[1] * np.log2(ends), "--", color=colour, linewidth=1)
        axis.set(title=TITLES[measure], xlabel="hours of training")
        log_scale(axis, "x")
        tidy(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    path = Path(*arguments[:1] or (DEFAULT,))
    draw(path)
    print(json.dumps({"milestones": str(path)}))


if __name__ == "__main__":
    main()
