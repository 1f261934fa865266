"""Draws the plots and tables of docs/results from the figures committed there: ``make results``.

    python -m aeic_train.reports.rd_plots [--results docs/results]

Every WHO_SET.json in the folder (what ``aeic bench rd`` writes as results.json; one codec or a list, CompressAI's own
files too) belongs to the set of pictures SET. For each set: SET.svg and SET.png, rate against distortion and
perception; SET.md, every codec at equal bits and the BD-rates of ours. If ours is missing, the baselines are drawn
alone. No codec runs, and no weights are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from aeic_train.evaluation import rd_curves
from aeic_train.reports.plot_style import COLOURS, open_pyplot, save_figure, tidy

OURS = "aeic"
TITLES = {
    "st_lpips": "ST-LPIPS (AlexNet), lower is better",
    "efflite_lpips": "efflite_lpips, lower is better",
    "efflite_fd": "efflite_fd, lower is better",
    "psnr": "PSNR in dB, higher is better",
    "ms_ssim": "MS-SSIM, higher is better",
    "efflite_dists": "efflite_dists, lower is better",
}
RATES = (0.015, 0.02, 0.03, 0.04, 0.05)
WIDEST = 0.1
"""bpp at which the plots end. This codec's rates are below."""
Curves = dict[str, list[rd_curves.Point]]


def load(folder: Path) -> dict[str, tuple[str, Curves]]:
    """For each set of pictures, its description and the curves by codec, ours first."""
    found: dict[str, Curves] = defaultdict(dict)
    described: dict[str, str] = {}
    for path in sorted(folder.glob("*_*.json")):
        content = json.loads(path.read_text())
        name = path.stem.partition("_")[2]
        for document in content if isinstance(content, list) else [content]:
            if not isinstance(document, dict) or "bpp" not in document.get("results", {}):
                continue  # another kind of file
            found[name][document["name"]] = rd_curves.curve_of(document)
            described.setdefault(name, document.get("description", ""))
    return {
        name: (described[name], dict(sorted(by_codec.items(), key=lambda item: not item[0].startswith(OURS))))
        for name, by_codec in found.items()
    }


def draw(title: str, by_codec: Curves, target: Path) -> None:
    """Draw six panels over log bpp to ``target``.svg and .png."""
    plt = open_pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.6), layout="constrained")
    baselines = [name for name in by_codec if not name.startswith(OURS)]
    for axis, (measure, label) in zip(axes.flat, TITLES.items()):
        seen = []
        for name, points in by_codec.items():
            inside = sorted((p["bpp"], p[measure]) for p in points if measure in p and p["bpp"] <= WIDEST)
            if not inside:
                continue
            seen += [value for _, value in inside]
            style: dict[str, Any] = {"color": "black", "linewidth": 2.6, "marker": "o", "zorder": 3}
            if name in baselines:
                number = baselines.index(name)
                half = name.endswith("-half")
                style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.6, "marker": "s" if half else "."}
                style |= {"linestyle": "--" if half else "-", "markersize": 4}
            axis.plot(*zip(*inside), label=name, **style)
        axis.set(xscale="log", title=label, xlabel="bpp (whole file)")
        axis.set_xticks((*RATES, 0.07, WIDEST), [f"{rate:g}" for rate in (*RATES, 0.07, WIDEST)])
        axis.minorticks_off()
        tidy(axis)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(title)
    save_figure(figure, target)


def table(description: str, by_codec: Curves) -> str:
    """Markdown with every codec at equal bits, then the BD-rates of ours against each baseline."""
    text = [f"{description[:1].upper()}{description[1:]}.\n"]
    for measure in ("st_lpips", "efflite_lpips", "psnr", "ms_ssim", "efflite_fd"):
        text += [f"## {TITLES[measure]}\n", "| codec | " + " | ".join(f"{rate:g} bpp" for rate in RATES) + " |"]
        text += ["|---|" + "---|" * len(RATES)]
        digits = {"psnr": 2, "efflite_fd": 0}.get(measure, 3)
        for name, points in by_codec.items():
            values = [rd_curves.at(points, measure, rate) for rate in RATES]
            if any(value is not None for value in values):
                cells = ["–" if value is None else f"{value:.{digits}f}" for value in values]
                text.append(f"| {name} | " + " | ".join(cells) + " |")
        text.append("")
    text.append("– : the codec's curve does not reach that rate.\n")
    for ours in [name for name in by_codec if name.startswith(OURS)]:
        text += [f"## BD-rate of {ours}, percent (negative: fewer bits)\n"]
        text += ["| against | " + " | ".join(rd_curves.COMPARED) + " |", "|---|" + "---|" * len(rd_curves.COMPARED)]
        for baseline in [name for name in by_codec if name != ours]:
            values = [rd_curves.bd_rate(by_codec[baseline], by_codec[ours], measure) for measure in rd_curves.COMPARED]
            text.append(f"| {baseline} | " + " | ".join("–" if v is None else f"{v:+.1f}" for v in values) + " |")
        text.append("")
    return "\n".join(text)


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="make results", description=__doc__, formatter_class=form)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args(argv)
    try:
        sets = load(options.results)
        if not sets:
            raise ValueError(f"no WHO_SET.json in {options.results}: run aeic bench rd and copy results.json there")
        for name, (description, by_codec) in sets.items():
            draw(description, by_codec, options.results / name)
            (options.results / f"{name}.md").write_text(table(description, by_codec))
            print(f"{options.results / name}.svg .png .md: {', '.join(by_codec)}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"make results: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print(json.dumps({name: list(by_codec) for name, (_, by_codec) in sets.items()}))


if __name__ == "__main__":
    main()
