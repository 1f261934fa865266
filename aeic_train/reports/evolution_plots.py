"""Draws how rate and picture evolve over a training, from the JSON of ``aeic bench evolution``.

    python -m aeic_train.reports.evolution_plots [docs/results/evolution/evolution.json]

`make results` runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from aeic_train.reports.plot_style import COLOURS, embed, log_scale, open_pyplot, save_figure, tidy
from aeic_train.reports.rd_plots import TITLES

TABLED = ("bpp", "variance", "psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_fd")
DIGITS = {"bpp": 4, "psnr": 2, "efflite_fd": 0}
ALT = "bpp and ST-LPIPS over the steps, and both against each other"
CAPTION = "Every snapshot of the run. The colour is that of its stage."
DEFAULT = Path("docs/results/evolution/evolution.json")


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON to a second file and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(path)


def draw(path: Path) -> None:
    """Write the table (.md) and the plots (.svg, .png) beside the JSON at ``path``."""
    content = json.loads(path.read_text())
    path.with_suffix(".md").write_text(table(content, path.with_suffix(".svg")))
    points: list[dict[str, Any]] = content["points"]
    stages = list(dict.fromkeys(point["stage"] for point in points))
    figure, axes = open_pyplot().subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for axis, (measure, title) in zip(axes, {"bpp": "bpp (estimated)", "st_lpips": TITLES["st_lpips"]}.items()):
        for stage, colour in zip(stages, COLOURS):
            some = [point for point in points if point["stage"] == stage]
            axis.plot(*_series(some, "total", measure), "o-", color=colour, label=stage)
        axis.set(title=title, xlabel="steps")
        if measure == "bpp":
            log_scale(axis, "y")
        tidy(axis)
    plane = axes[2]
    plane.plot(*_series(points, "bpp", "st_lpips"), color="0.7", linewidth=1, zorder=1)
    for stage, colour in zip(stages, COLOURS):
        some = [point for point in points if point["stage"] == stage]
        plane.plot(*_series(some, "bpp", "st_lpips"), "o", color=colour, label=stage)
    for point in (points[0], points[-1]):
        plane.annotate(f" step {point['total']}", (point["bpp"], point["st_lpips"]), fontsize=8)
    plane.set(title="rate and quality, step by step", xlabel="bpp (estimated)", ylabel="ST-LPIPS")
    tidy(plane)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _series(points: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    return [point[x] for point in points], [point[y] for point in points]


def table(content: dict[str, Any], plot: Path) -> str:
    """Markdown with ``plot`` (from ``draw``) and a row for each snapshot."""
    points = content["points"]
    shown = [measure for measure in TABLED if any(measure in point for point in points)]
    lines = [
        f"Rate point {content['rate']}, mean over {len(content['pictures'])} pictures; bits are estimated from "
        "likelihoods. `variance` is that of y on training crops.\n",
        embed(plot, ALT, CAPTION),
        "| step | stage | " + " | ".join(shown) + " |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for point in points:
        cells = [f"{point[m]:.{DIGITS.get(m, 3)}f}" if m in point else "–" for m in shown]
        lines.append(f"| {point['total']} | {point['stage']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    path = Path(*arguments[:1] or (DEFAULT,))
    draw(path)
    print(json.dumps({"evolution": str(path)}))


if __name__ == "__main__":
    main()
