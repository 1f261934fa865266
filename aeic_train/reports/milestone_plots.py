"""Draws the quality of a training's milestones over its hours, from the JSON of ``aeic bench milestones``.

    python -m aeic_train.reports.milestone_plots [docs/results/milestones/milestones.json]

`make results` runs it.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
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
CAPTION = (
    "A point is a milestone, a line a rate. Dashed: the fit to the last three milestones, up to twice their hours."
)
LAST = 3
"""How many milestones are fitted. The first ones still learned what a picture is."""
DEFAULT = Path("docs/results/milestones/milestones.json")


@dataclass(frozen=True)
class Trend:
    """How a measure follows the hours: a distance is multiplied, and a quality changes by a sum, with each doubling."""

    measure: str
    start: float
    """At one hour; of a distance the binary logarithm."""
    slope: float
    """Change of the same with each doubling of the hours."""

    def value(self, hours: float) -> float:
        """The measure after ``hours``."""
        found = self.start + self.slope * math.log2(hours)
        return found if self.measure in RISING else 2**found

    def hours(self, value: float) -> float | None:
        """The hours at which ``value`` is reached; None if the trend leads away from it, or does not change."""
        if (self.slope if self.measure in RISING else -self.slope) <= 0:
            return None
        wanted = value if self.measure in RISING else math.log2(value)
        exponent = (wanted - self.start) / self.slope
        return math.inf if exponent > 60 else 2.0**exponent

    @property
    def per_doubling(self) -> str:
        """The change with each doubling: percent of a distance, dB of a quality."""
        return f"{self.slope:+.2f}" if self.measure in RISING else f"{100 * (2**self.slope - 1):+.0f} %"


def trend(milestones: list[dict[str, Any]], measure: str, bpp: float) -> Trend | None:
    """The trend of the last milestones by least squares; None if fewer than two of them reach ``bpp``."""
    values = [(m["hours"], at(m["points"], measure, bpp)) for m in milestones]
    pairs = [(hours, value) for hours, value in values if value is not None][-LAST:]
    if len(pairs) < 2:
        return None
    scaled = [value if measure in RISING else math.log2(value) for _, value in pairs]
    slope, start = np.polyfit([math.log2(hours) for hours, _ in pairs], scaled, 1)
    return Trend(measure, float(start), float(slope))


def gains(milestones: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """For each measure and rate, the change with each doubling of the hours."""
    found: dict[str, dict[str, str]] = {}
    for measure in MEASURES:
        trends = {str(bpp): trend(milestones, measure, bpp) for bpp in RATES}
        found[measure] = {bpp: fit.per_doubling for bpp, fit in trends.items() if fit is not None}
    return found


def hours_to(milestones: list[dict[str, Any]], target: dict[str, Any]) -> float | None:
    """The hours at which the trend reaches a target; None if it does not lead there."""
    fit = trend(milestones, target["measure"], target["bpp"])
    return None if fit is None else fit.hours(target["value"])


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
        fits = [trend(milestones, measure, bpp) for bpp in RATES]
        slopes = ["–" if fit is None else fit.per_doubling for fit in fits]
        lines.append("| with each doubling | | " + " | ".join(slopes) + " |")
    if content["targets"]:
        lines += [
            "\n## Targets\n",
            "| measure | bpp | target | last milestone | hours by the trend |",
            "|---" * 5 + "|",
        ]
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
        return "the trend does not lead there"
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
            fit = trend(milestones, measure, bpp)
            if fit is not None:
                hours = np.geomspace(reached[-min(LAST, len(reached))][0], 2 * reached[-1][0], 20)
                axis.plot(hours, [fit.value(one) for one in hours], "--", color=colour, linewidth=1)
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
