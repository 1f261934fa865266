"""Draws the results of an ablation as tables and plots, from its committed JSON: ``make results``.

    python -m aeic_train.reports.ablation_plots [FOLDER]    # docs/results/ablations: NAME.json to NAME.md, .svg, .png

NAME.json holds "about" (what was trained and how), "claims" (the order of the paper) and "arms": a list in CompressAI's
shape with one entry for each run, the first arm being the anchor. The runs of an arm differ in "seed". Arms are
compared seed by seed, and tables have means and standard deviations over the seeds.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aeic_train.evaluation import rd_curves
from aeic_train.reports.plot_style import COLOURS, embed, open_pyplot, save_figure, tidy
from aeic_train.reports.rd_plots import TITLES

SHOWN = ("st_lpips", "efflite_lpips", "psnr")
TICKS = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08)


@dataclass(frozen=True)
class Run:
    """The curve of one training, and what it took. The teacher has no seed."""

    curve: list[rd_curves.Point]
    seed: int | None = None
    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Claim:
    """An order that the paper states: ``better`` needs fewer bits than ``worse`` at equal quality."""

    better: str
    worse: str
    measures: tuple[str, ...]


Runs = dict[str, list[Run]]
"""The runs of each arm, the anchor first."""
Gain = dict[str, Any]
"""BD-rates of an arm in percent: "mean", "deviation" (None for a single run) and "runs" (None where two curves share no
quality)."""


def gains(runs: Runs) -> dict[str, dict[str, Gain]]:
    """BD-rates of every other arm against the first, by measure."""
    first, *others = runs
    return {arm: {m: gain(runs[first], runs[arm], m) for m in measures(runs)} for arm in others}


def gain(anchor: list[Run], test: list[Run], measure: str) -> Gain:
    """BD-rates of ``test`` against ``anchor``, seed by seed. An arm with a single run is compared with all of the
    other's."""
    values = [rd_curves.bd_rate(a.curve, b.curve, measure) for a, b in _pairs(anchor, test)]
    known = [value for value in values if value is not None]
    return {
        "mean": round(statistics.mean(known), 2) if known else None,
        "deviation": round(statistics.stdev(known), 2) if len(known) > 1 else None,
        "runs": [None if value is None else round(value, 2) for value in values],
    }


def _pairs(a: list[Run], b: list[Run]) -> list[tuple[Run, Run]]:
    if len(a) == 1 or len(b) == 1:
        return [(x, y) for x in a for y in b]
    by_seed = {run.seed: run for run in b}
    return [(run, by_seed[run.seed]) for run in a if run.seed in by_seed]


def measures(runs: Runs) -> list[str]:
    """The metrics that every point has. The first ablations have no efflite_fd."""
    points = [point for of_arm in runs.values() for run in of_arm for point in run.curve]
    return [m for m in rd_curves.COMPARED if all(m in point for point in points)]


def write(name: str, about: str, runs: Runs, folder: Path, claims: Iterable[Claim] = ()) -> None:
    """Write NAME.json to ``folder``, with its table and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    arms = []
    for arm, of_arm in runs.items():
        for run in of_arm:
            more = {k: v for k, v in asdict(run).items() if k != "curve" and v is not None}
            arms.append(rd_curves.document(arm, "estimated from likelihoods", run.curve, **more))
    content = {"about": about, "claims": [asdict(claim) for claim in claims], "arms": arms}
    target = folder / f"{name}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(target)
    draw(target)


def read(path: Path) -> tuple[str, Runs, list[Claim]]:
    """The text, the runs of each arm and the claims in a NAME.json."""
    content = json.loads(path.read_text())
    runs: Runs = {}
    for arm in content["arms"]:
        run = Run(rd_curves.curve_of(arm), arm.get("seed"), arm.get("steps"), arm.get("minutes"))
        runs.setdefault(arm["name"], []).append(run)
    claims = [Claim(c["better"], c["worse"], tuple(c["measures"])) for c in content.get("claims", ())]
    return content["about"], runs, claims


def draw(path: Path) -> None:
    """Write the tables (.md) and the curves (.svg, .png) beside the JSON at ``path``."""
    about, runs, claims = read(path)
    path.with_suffix(".md").write_text(table(about, runs, path.with_suffix(".svg"), claims))
    figure, axes = open_pyplot().subplots(1, len(SHOWN), figsize=(15, 4.6), layout="constrained")
    for axis, measure in zip(axes, SHOWN):
        for (arm, of_arm), colour in zip(runs.items(), COLOURS):
            if len(of_arm) > 1:
                for run in of_arm:
                    axis.plot(*_line(run.curve, measure), color=colour, alpha=0.3, linewidth=0.7)
            rows = _columns(of_arm, ("bpp", measure))
            bpp, bpp_deviation, value, deviation = zip(*((*row["bpp"], *row[measure]) for row in rows))
            bars = {"xerr": bpp_deviation, "yerr": deviation} if len(of_arm) > 1 else {}
            axis.errorbar(bpp, value, fmt="o-", color=colour, label=arm, capsize=2, elinewidth=1, **bars)
        axis.set(xscale="log", title=TITLES[measure], xlabel="bpp (estimated)")
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        tidy(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _line(curve: list[rd_curves.Point], measure: str) -> tuple[list[float], list[float]]:
    ordered = sorted(curve, key=lambda point: point["bpp"])
    return [point["bpp"] for point in ordered], [point[measure] for point in ordered]


def _columns(runs: list[Run], names: Sequence[str]) -> list[dict[str, tuple[float, float]]]:
    """Mean and standard deviation (0 for one run) over the runs, for each point of the curves in order of bpp."""
    curves = [sorted(run.curve, key=lambda point: point["bpp"]) for run in runs]
    rows = []
    for points in zip(*curves, strict=True):
        values = {name: [point[name] for point in points] for name in names}
        rows.append({n: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for n, v in values.items()})
    return rows


def table(about: str, runs: Runs, plot: Path, claims: Sequence[Claim] = ()) -> str:
    """Markdown: what was trained, ``plot`` (from ``draw``), the BD-rates against the first arm, the order of the paper,
    then every point. The pages call an arm a variant."""
    shown = measures(runs)
    several = any(len(of_arm) > 1 for of_arm in runs.values())
    lines = [f"{about}\n", *_compute(runs)]
    if several:
        lines.append("A figure after ± is the standard deviation over the seeds. Variants are compared seed by seed.\n")
    else:
        lines.append("Each variant is a single run, so there are no error bars.\n")
    lines += [embed(plot, f"Curves of {', '.join(runs)}: {'; '.join(TITLES[m] for m in SHOWN)}", _caption(several))]
    anchor = next(iter(runs))
    lines += [f"## BD-rate against `{anchor}`, percent (negative: fewer bits)\n", *_head(["variant", *shown])]
    for arm, row in gains(runs).items():
        lines.append(f"| {arm} | " + " | ".join(_gain(row[m]) for m in shown) + " |")
    lines.append("\n– : the two curves share no quality.\n")
    lines += _order(runs, claims, shown)
    lines += ["## Points\n", *_head(["variant", "bpp", *shown])]
    for arm, of_arm in runs.items():
        for row in _columns(of_arm, ("bpp", *shown)):
            cells = [_cell(row["bpp"], 4, len(of_arm)), *(_cell(row[m], 3, len(of_arm)) for m in shown)]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _caption(several: bool) -> str:
    text = "Metrics over estimated bits per pixel, on a logarithmic axis."
    more = " Bars: standard deviations over the seeds in both directions. Faint lines: single runs."
    return text + more if several else text


def _head(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |", "|---" * len(cells) + "|"]


def _compute(runs: Runs) -> list[str]:
    """The steps, seeds and minutes of every arm. The teacher has none."""
    rows = []
    for arm, of_arm in runs.items():
        known = [run for run in of_arm if run.steps is not None and run.minutes is not None]
        if known:
            seeds = ", ".join(str(run.seed) for run in known)
            steps = "/".join(str(steps) for steps in sorted({run.steps for run in known if run.steps}))
            rows.append(f"| {arm} | {seeds} | {steps} | {sum(run.minutes or 0 for run in known):.1f} |")
    return [*_head(["variant", "seeds", "steps of a run", "minutes of training, all runs"]), *rows, ""] if rows else []


def _order(runs: Runs, claims: Sequence[Claim], shown: list[str]) -> list[str]:
    """For each claim of the paper, in how many runs it holds."""
    rows = []
    for claim in claims:
        if claim.better in runs and claim.worse in runs:
            cells = [_verdict(runs, claim, m) if m in claim.measures else "" for m in shown]
            rows.append(f"| {claim.better} before {claim.worse} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    text = (
        "In how many of the runs the variant that is better in the paper needs fewer bits at equal quality. Where two "
        "curves share no quality, they are compared at equal bits, or by both if one has fewer bits and better quality."
    )
    return ["## Order of the paper\n", text + "\n", *_head(["paper", *shown]), *rows, ""]


def _verdict(runs: Runs, claim: Claim, measure: str) -> str:
    pairs = _pairs(runs[claim.worse], runs[claim.better])
    found = [holds for worse, better in pairs if (holds := is_better(better.curve, worse.curve, measure)) is not None]
    if not found:
        return "–"
    word = "yes" if all(found) else "no" if not any(found) else "unclear"
    return f"{word}, {sum(found)} of {len(found)}"


def is_better(curve: list[rd_curves.Point], than: list[rd_curves.Point], measure: str) -> bool | None:
    """Whether ``curve`` needs fewer bits at equal quality or, where the two share no quality, is better at equal bits.

    Where they share no bits either, the curve with fewer bits is better if all of its points are. Otherwise None.
    """
    rate = rd_curves.bd_rate(than, curve, measure)
    if rate is not None:
        return rate < 0
    low, high = (pick(end(p["bpp"] for p in c) for c in (curve, than)) for pick, end in ((max, min), (min, max)))
    if low > high:
        cheap, dear = sorted((curve, than), key=lambda c: c[0]["bpp"])
        sign = 1 if measure in rd_curves.RISING else -1
        dominates = min(sign * point[measure] for point in cheap) > max(sign * point[measure] for point in dear)
        return cheap is curve if dominates else None
    values = [rd_curves.at(c, measure, math.sqrt(low * high)) for c in (curve, than)]
    if values[0] is None or values[1] is None:
        return None
    return (values[0] > values[1]) == (measure in rd_curves.RISING)


def _gain(found: Gain) -> str:
    values = [value for value in found["runs"] if value is not None]
    if not values:
        return "–"
    text = f"{found['mean']:+.1f}" + (f" ± {found['deviation']:.1f}" if found["deviation"] is not None else "")
    return text if len(values) == len(found["runs"]) else f"{text} ({len(values)} of {len(found['runs'])})"


def _cell(found: tuple[float, float], digits: int, count: int) -> str:
    mean, deviation = found
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if count > 1 else f"{mean:.{digits}f}"


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    paths = sorted(Path(*arguments[:1] or ("docs/results/ablations",)).glob("*.json"))
    paths = [path for path in paths if not path.stem.endswith("-set")]
    for path in paths:
        draw(path)
    print(json.dumps({"ablations": [path.stem for path in paths]}))


if __name__ == "__main__":
    main()
