"""Draws the plots and tables of docs/results from the figures committed there: ``make results``.

    python -m aeic_train.reports.rd_plots [--results docs/results]

Every WHO_SET.json in the folder (what ``aeic bench rd`` writes as results.json; one codec or a list, CompressAI's own
files too) belongs to the set of pictures SET. published_SET.json has figures that others published, each with its
source. For each set: SET.svg and SET.png, rate against distortion and perception; SET.md, every codec at equal bits and
the BD-rates of AEIC. If ours is missing, the others are drawn alone. No codec runs, and no weights are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeic_train.evaluation import rd_curves
from aeic_train.reports.plot_style import codec_colours, embed, open_pyplot, save_figure, tidy

OURS = "aeic"
"""How the names of AEIC's curves begin, in any case: our own measurements and the published ones."""
TITLES = {
    "st_lpips": "ST-LPIPS (AlexNet), lower is better",
    "efflite_lpips": "efflite_lpips, lower is better",
    "efflite_fd": "efflite_fd, lower is better",
    "psnr": "PSNR in dB, higher is better",
    "ms_ssim": "MS-SSIM, higher is better",
    "efflite_dists": "efflite_dists, lower is better",
    "lpips": "LPIPS (AlexNet), lower is better",
    "dists": "DISTS, lower is better",
    "fid": "FID, lower is better",
    "kid": "KID, lower is better",
    "musiq": "MUSIQ, higher is better",
    "clipiqa": "CLIP-IQA, higher is better",
}
TABLED = ("st_lpips", "efflite_lpips", "lpips", "dists", "psnr", "ms_ssim", "efflite_fd", "fid", "kid")
"""Metrics that have a table of values at equal bits."""
DIGITS = {"psnr": 2, "efflite_fd": 0, "fid": 2, "kid": 5}
RATES = (0.015, 0.02, 0.03, 0.04, 0.05)
LOW_RATES = (0.005, 0.01, 0.015, 0.02, 0.03)
"""bpp of the tables of sets whose curves begin below 0.01 bpp."""
LOW_TICKS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""bpp at which the plots of such sets have ticks."""
WIDEST = 0.1
"""bpp at which the plots end. This codec's rates are below."""
Curves = dict[str, list[rd_curves.Point]]


@dataclass
class PictureSet:
    """The curves on one set of pictures, AEIC's first, and where the published ones are from."""

    description: str = ""
    curves: Curves = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Codecs by source."""

    @property
    def rates(self) -> tuple[float, ...]:
        lowest = min((point["bpp"] for curve in self.curves.values() for point in curve), default=1.0)
        return LOW_RATES if lowest < LOW_RATES[1] else RATES


def is_ours(name: str) -> bool:
    return name.lower().startswith(OURS)


def load(folder: Path) -> dict[str, PictureSet]:
    """The sets of pictures in ``folder`` by name."""
    found: dict[str, PictureSet] = defaultdict(PictureSet)
    for path in sorted(folder.glob("*_*.json")):
        content = json.loads(path.read_text())
        name = path.stem.partition("_")[2]
        for document in content if isinstance(content, list) else [content]:
            if not isinstance(document, dict) or "bpp" not in document.get("results", {}):
                continue  # another kind of file
            of_set = found[name]
            of_set.curves[document["name"]] = rd_curves.curve_of(document)
            of_set.description = of_set.description or document.get("description", "")
            if source := document.get("source"):
                of_set.sources.setdefault(source, []).append(document["name"])
    for of_set in found.values():
        of_set.curves = dict(sorted(of_set.curves.items(), key=lambda item: not is_ours(item[0])))
    return dict(found)


def draw(of_set: PictureSet, target: Path) -> None:
    """Draw a panel for each metric over log bpp to ``target``.svg and .png."""
    plt = open_pyplot()
    measures = rd_curves.present(of_set.curves.values(), [*TITLES])
    columns = 2 if len(measures) == 4 else 3
    rows = max(1, -(-len(measures) // columns))
    size = (5 * columns, 0.4 + 4.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    ours = [name for name in of_set.curves if is_ours(name)]
    others = [name for name in of_set.curves if not is_ours(name)]
    colours = codec_colours(others)
    ticks = LOW_TICKS if of_set.rates is LOW_RATES else (*of_set.rates, 0.07, WIDEST)
    for axis, measure in zip(axes.flat, measures):
        for name, points in of_set.curves.items():
            inside = sorted((p["bpp"], p[measure]) for p in points if measure in p and p["bpp"] <= WIDEST)
            if not inside:
                continue
            style: dict[str, Any] = {"color": "black", "linewidth": 2.6, "marker": "o", "zorder": 3}
            if name in others:
                half = name.endswith("-half")
                style = {"color": colours[name], "linewidth": 1.6, "marker": "s" if half else "."}
                style |= {"linestyle": "--" if half else "-", "markersize": 4}
            elif ours.index(name):
                style |= {"linestyle": ("--", ":", "-.")[(ours.index(name) - 1) % 3]}
            axis.plot(*zip(*inside), label=name, **style)
        axis.set(xscale="log", title=TITLES[measure], xlabel="bpp (whole file)")
        axis.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axis.minorticks_off()
        tidy(axis)
    for axis in axes.flat[len(measures) :]:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(of_set.description)
    save_figure(figure, target)


def table(of_set: PictureSet, plot: Path) -> str:
    """Markdown with ``plot`` (from ``draw``), every codec at equal bits, the BD-rates of AEIC against each other codec,
    and the sources."""
    by_codec = of_set.curves
    text = [f"{of_set.description[:1].upper()}{of_set.description[1:]}.\n", _plot(of_set, plot)]
    for measure in rd_curves.present(by_codec.values(), TABLED):
        text += [f"## {TITLES[measure]}\n", "| codec | " + " | ".join(f"{rate:g} bpp" for rate in of_set.rates) + " |"]
        text += ["|---|" + "---|" * len(of_set.rates)]
        for name, points in by_codec.items():
            values = [rd_curves.at(points, measure, rate) for rate in of_set.rates]
            if any(value is not None for value in values):
                cells = ["–" if value is None else f"{value:.{DIGITS.get(measure, 3)}f}" for value in values]
                text.append(f"| {name} | " + " | ".join(cells) + " |")
        text.append("")
    text.append("– : the codec's curve does not reach that rate.\n")
    for ours in [name for name in by_codec if is_ours(name)]:
        text += [*bd_rates(by_codec, ours), ""]
    if of_set.sources:
        text += ["## Sources\n"]
        text += [f"- {', '.join(names)}: {source}" for source, names in of_set.sources.items()] + [""]
    return "\n".join(text)


def _plot(of_set: PictureSet, plot: Path) -> str:
    measures = rd_curves.present(of_set.curves.values(), [*TITLES])
    alt = f"Curves of {', '.join(of_set.curves)} over bpp: {'; '.join(TITLES[m] for m in measures)}"
    caption = "Each metric over the bits per pixel of the whole file, on a logarithmic axis."
    if any(name.endswith("-half") for name in of_set.curves):
        caption += " `-half`: coded at half the width and height, and enlarged afterwards."
    return embed(plot.with_suffix(".svg"), alt, caption)


def bd_rates(by_codec: Curves, test: str) -> list[str]:
    """Lines of Markdown with the BD-rates of ``test`` against every other codec."""
    measures = rd_curves.present(by_codec.values(), rd_curves.COMPARED)
    text = [f"## BD-rate of {test}, percent (negative: fewer bits)\n"]
    text += ["| against | " + " | ".join(measures) + " |", "|---|" + "---|" * len(measures)]
    for anchor in [name for name in by_codec if name != test]:
        values = [rd_curves.bd_rate(by_codec[anchor], by_codec[test], measure) for measure in measures]
        text.append(f"| {anchor} | " + " | ".join("–" if v is None else f"{v:+.1f}" for v in values) + " |")
    return text


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="make results", description=__doc__, formatter_class=form)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args(argv)
    try:
        sets = load(options.results)
        if not sets:
            raise ValueError(f"no WHO_SET.json in {options.results}: run aeic bench rd and copy results.json there")
        for name, of_set in sets.items():
            draw(of_set, options.results / name)
            (options.results / f"{name}.md").write_text(table(of_set, options.results / name))
            print(f"{options.results / name}.svg .png .md: {', '.join(of_set.curves)}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"make results: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print(json.dumps({name: list(of_set.curves) for name, of_set in sets.items()}))


if __name__ == "__main__":
    main()
