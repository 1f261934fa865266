"""Draws the results of an ablation as a table and plots, from its committed JSON: ``make results``.

    python -m aeic_train.reports.ablation_plots [FOLDER]    # docs/results/ablations: NAME.json to NAME.md, .svg, .png

NAME.json holds "about" (what was trained and how) and "arms" (a list in CompressAI's shape, the first one the anchor).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aeic_train.evaluation import rd_curves
from aeic_train.reports.plot_style import COLOURS, open_pyplot, save_figure, tidy
from aeic_train.reports.rd_plots import TITLES

SHOWN = ("st_lpips", "efflite_lpips", "psnr")
TICKS = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08)
Points = dict[str, list[rd_curves.Point]]


def gains(points: Points) -> dict[str, dict[str, float | None]]:
    """BD-rates of every other arm against the first, in percent. None if the two have no common range of quality."""
    first, *others = points
    return {
        arm: {m: _rounded(rd_curves.bd_rate(points[first], points[arm], m)) for m in measures(points)} for arm in others
    }


def measures(points: Points) -> list[str]:
    """The metrics that every point has. The first ablations have no efflite_fd."""
    return [m for m in rd_curves.COMPARED if all(m in point for curve in points.values() for point in curve)]


def write(name: str, about: str, points: Points, folder: Path) -> None:
    """Write NAME.json to ``folder``, with its table and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    arms = [rd_curves.document(arm, "estimated from likelihoods", curve) for arm, curve in points.items()]
    (folder / f"{name}.json").write_text(json.dumps({"about": about, "arms": arms}, indent=1) + "\n")
    draw(folder / f"{name}.json")


def draw(path: Path) -> None:
    """Write the table (.md) and the curves (.svg, .png) beside the JSON at ``path``."""
    content = json.loads(path.read_text())
    points = {arm["name"]: rd_curves.curve_of(arm) for arm in content["arms"]}
    path.with_suffix(".md").write_text(table(content["about"], points))
    plt = open_pyplot()
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(15, 4.6), layout="constrained")
    for axis, measure in zip(axes, SHOWN):
        for (arm, curve), colour in zip(points.items(), COLOURS):
            axis.plot(*zip(*sorted((p["bpp"], p[measure]) for p in curve)), "o-", color=colour, label=arm)
        axis.set(xscale="log", title=TITLES[measure], xlabel="bpp (estimated)")
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
        tidy(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def table(about: str, points: Points) -> str:
    """Markdown with the BD-rates against the first arm, then every point."""
    against = gains(points)
    shown = measures(points)
    lines = [f"{about}\n", f"## BD-rate against {next(iter(points))!r}, percent (negative: fewer bits)\n"]
    lines += ["| arm | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for arm, row in against.items():
        lines.append(f"| {arm} | " + " | ".join("–" if row[m] is None else f"{row[m]:+.1f}" for m in shown) + " |")
    lines += ["\n– : the two curves share no quality.\n", "## Points\n"]
    lines += ["| arm | bpp | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for arm, curve in points.items():
        for point in curve:
            lines.append(f"| {arm} | {point['bpp']:.4f} | " + " | ".join(f"{point[m]:.3f}" for m in shown) + " |")
    return "\n".join(lines) + "\n"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    paths = sorted(Path(*arguments[:1] or ("docs/results/ablations",)).glob("*.json"))
    for path in paths:
        draw(path)
    print(json.dumps({"ablations": [path.stem for path in paths]}))


if __name__ == "__main__":
    main()
