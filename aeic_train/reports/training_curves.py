"""Draws a training log: rate and picture quality by stage, and the variance of the latents against the bits.

    python -m aeic_train.reports.training_curves models/aeic-se-nano/training_log.jsonl --out docs/results

`make results` runs it.

training.svg and .png: bpp, PSNR and feature loss of every rate point by hours of training. latents.svg and .png: the
variance of the latents against bpp, where the log holds it. training.md: both at the end of every stage. All values are
from training crops and slightly below those of whole files.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aeic_train.reports.plot_style import COLOURS, embed, log_scale, open_pyplot, save_figure, tidy

Line = dict[str, Any]
LAST = 5
"""Number of log lines that the values at the end of a stage are averaged over, because single batches are noisy."""


TRAINING = (
    "Rate, quality and feature loss on training crops. Bold lines are running means over 250 steps, vertical lines the "
    "beginnings of stages."
)
LATENTS = "Variance of the latents y, gain applied, against the bits: a point for each line of the log and rate point."


def read(log: Path) -> list[Line]:
    """The lines of a log.jsonl without repeated steps; ``ValueError`` if there are none."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{log} holds no line yet: train some steps first")
    return lasting(lines)


def lasting(lines: list[Line]) -> list[Line]:
    """``lines`` without the steps that were repeated after an interruption."""
    kept: list[Line] = []
    for line in reversed(lines):
        if not kept or line["total"] < kept[-1]["total"]:
            kept.append(line)
    return kept[::-1]


def rates(lines: Sequence[Line]) -> list[str]:
    """The rate points in the log."""
    return sorted({name[4:] for line in lines for name in line if name.startswith("bpp_")}, key=int)


def stages(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def value(line: Line, measure: str, rate: str) -> float | None:
    """``measure`` of a rate point in one line. In older logs, PSNR and features are means over all rate points."""
    if measure == "psnr":
        mse = line.get(f"mse_{rate}")
        return line["psnr"] if mse is None else 10 * math.log10(4 / mse)
    if measure == "variance":
        logarithm = line.get(f"log_variance_{rate}")
        return None if logarithm is None else math.exp(logarithm)
    found: float | None = line.get(f"{measure}_{rate}", line.get(measure) if measure == "features" else None)
    return found


def draw_training(lines: list[Line], target: Path) -> None:
    """Draw rate, PSNR and feature loss over hours of training, with a line for each rate point: ``target``.svg and
    .png."""
    figure, axes = open_pyplot().subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    wanted = {"bpp": "bpp of training crops", "psnr": "PSNR of training crops, dB", "features": "feature loss"}
    for axis, (measure, label) in zip(axes, wanted.items()):
        for number, rate in enumerate(rates(lines)):
            of_rate = [line for line in lines if f"bpp_{rate}" in line]
            points = [(line["hours"], found) for line in of_rate if (found := value(line, measure, rate)) is not None]
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(*zip(*points), color=colour, alpha=0.25, linewidth=0.7)
            axis.plot(*zip(*_smooth(points)), color=colour, label=f"r{rate}", linewidth=1.4)
        for number, stage in enumerate(stages(lines)):
            begin = next(line["hours"] for line in lines if line["stage"] == stage)
            axis.axvline(begin, color="0.8", linewidth=0.8, zorder=0)
            if axis is axes[0]:
                place = (begin, 0.82 if number % 2 else 0.99)  # the labels of short stages would overlap
                axis.annotate(f" {stage}", place, xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize=7)
        axis.set(title=label, xlabel="hours")
        if measure == "bpp":
            log_scale(axis, "y")
        tidy(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, target)


def draw_latents(lines: list[Line], target: Path) -> bool:
    """Draw the variance of y (gain applied) against bpp, with a point for each log line and rate point. False if the
    log does not have it."""
    known = [line for line in lines if any(name.startswith("log_variance_") for name in line)]
    if not known:
        return False
    figure, axis = open_pyplot().subplots(figsize=(7, 5), layout="constrained")
    for number, rate in enumerate(rates(known)):
        points = [(line[f"bpp_{rate}"], value(line, "variance", rate)) for line in known if f"bpp_{rate}" in line]
        points = [(bpp, variance) for bpp, variance in points if variance is not None]
        if points:
            axis.scatter(*zip(*points), s=9, color=COLOURS[number % len(COLOURS)], label=f"r{rate}", alpha=0.7)
    axis.set(xlabel="bpp of training crops", ylabel="variance of y")
    log_scale(axis, "x")
    log_scale(axis, "y")
    axis.set_title("Latent variance against bpp: every 50 steps of training")
    tidy(axis)
    axis.legend(frameon=False)
    save_figure(figure, target)
    return True


def table(lines: list[Line]) -> str:
    """Markdown with bpp, PSNR, feature loss and latent variance of each rate point at the end of every stage."""
    text = [embed(Path("training.svg"), "bpp, PSNR and feature loss of every rate point over hours", TRAINING)]
    if any(name.startswith("log_variance_") for line in lines for name in line):
        text.append(embed(Path("latents.svg"), "Variance of the latents against bpp, by rate point", LATENTS))
    text += ["At the end of every stage, of training crops: means over the last 250 steps. `variance` is that of y."]
    head = ("stage", "steps so far", "hours", "rate", "bpp", "PSNR", "features", "variance")
    text += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for stage in stages(lines):
        last = [line for line in lines if line["stage"] == stage][-LAST:]
        for rate in rates(last):
            cells = [_mean([value(line, m, rate) for line in last]) for m in ("bpp", "psnr", "features", "variance")]
            numbers = [f"{c:.{d}f}" if c is not None else "–" for c, d in zip(cells, (4, 2, 2, 3))]
            text.append(
                f"| {stage} | {last[-1]['total']} | {last[-1]['hours']:.2f} | r{rate} | {' | '.join(numbers)} |"
            )
    return "\n".join(text) + "\n"


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running means over LAST lines."""
    hours, values = np.array(points).T
    return [(h, float(values[max(0, i - LAST + 1) : i + 1].mean())) for i, h in enumerate(hours)]


def draw(log: Path, out: Path) -> None:
    """Write all plots and tables of this module to ``out``."""
    lines = read(log)
    draw_training(lines, out / "training")
    draw_latents(lines, out / "latents")
    (out / "training.md").write_text(table(lines))


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m aeic_train.reports.training_curves", description=__doc__, formatter_class=form
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(argv)
    draw(options.log, options.out)


if __name__ == "__main__":
    main()
