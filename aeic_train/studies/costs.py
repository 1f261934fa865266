"""Measures the cost of coding: times of several codecs on one picture, and multiply-adds beside the published table.

    aeic bench costs [PICTURE] [--codecs vvc=53,avif-half=8] [--out docs/results]

The codecs run in turn, on one thread if their settings allow it. Times are the median of --reps after one warm-up. CPU
seconds count this process and its children, so other work on the machine affects mainly the wall time. The default
settings give about as many bytes as our default rate on the default picture, if the codec can go that low.

The command writes costs.json to --out, and from it costs.md, costs.svg and costs.png (as ``make results`` does). The
last line is JSON: encode and decode seconds by codec.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aeic import profiles
from aeic.bundle import Bundle
from aeic.pixels import load_picture
from aeic_nets.official.complexity import count
from aeic_train.codecs.base import Codec, CodecUnavailable
from aeic_train.codecs.baselines import build
from aeic_train.codecs.ours import OurCodec
from aeic_train.reports.plot_style import codec_colours, embed, log_scale, open_pyplot, save_figure, tidy

T = TypeVar("T")
PUBLISHED: dict[str, tuple[float | None, float, float | None, float]] = {
    "ELIC": (33.38, 346.03, 33.38, 590.823),
    "EVC-Small": (11.64, 71.12, 11.96, 71.416),
    "PerCo": (None, 2666.47, None, 1e4),
    "DiffEIC": (73.85, 2253.69, None, 1e4),
    "DLF": (437.35, 1915.35, 561.63, 4160.99),
    "StableCodec": (102.23, 2537.51, 985.27, 6201.66),
}
"""Encoding and decoding, millions of parameters and thousands of multiply-adds a pixel, as AEIC's authors print them
(None: over a billion; 1e4: over ten thousand)."""
ALT = "Two panels with a point for each codec, encoding against decoding: multiply-adds a pixel, and milliseconds"
CAPTION = (
    "Encoding across, decoding upwards; both axes are logarithmic. Left: multiply-adds of learned codecs, where 10,000 "
    "stands for more than 10,000. Right: measured times of the codecs in the first table."
)
BESIDE = {"DiffEIC": (-6, 0, "right"), "AEIC-SE-nano (this model)": (-4, -14, "left")}
"""Offset of a label in points, and its alignment, where the place right of the point is taken by another one."""
COUNTED = {"me": "AEIC-ME", "se": "AEIC-SE", "nano-me": "AEIC-ME-nano", "nano": "AEIC-SE-nano (this model)"}


def timed(work: Callable[[], T], reps: int) -> tuple[T, float, float]:
    """The result of ``work``, and the medians of its wall and CPU seconds, children included."""
    result, walls, processors = work(), [], []
    for _ in range(reps):
        wall, processor = time.perf_counter(), _cpu_seconds()
        result = work()
        walls.append(time.perf_counter() - wall)
        processors.append(_cpu_seconds() - processor)
    return result, statistics.median(walls), statistics.median(processors)


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def measure(codec: Codec, setting: Any, picture: Any, reps: int) -> dict[str, Any]:
    """Bytes and seconds of one codec at one setting."""
    height, width = picture.shape[:2]
    data, encode, encode_cpu = timed(lambda: codec.encode(picture, setting), reps)
    _, decode, decode_cpu = timed(lambda: codec.decode(data, width, height), reps)
    seconds = {"encode": encode, "encode_cpu": encode_cpu, "decode": decode, "decode_cpu": decode_cpu}
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return {
        "codec": codec.name,
        "setting": setting,
        "bytes": len(data),
        "bpp": 8 * len(data) / height / width,
        **rounded,
    }


def complexity(size: tuple[int, int] = (512, 768)) -> dict[str, tuple[float | None, float, float | None, float]]:
    """PUBLISHED, and our profiles counted by the same rules (aeic bench complexity)."""
    found = dict(PUBLISHED)
    for profile, name in COUNTED.items():
        counted = count(profiles.profile(profile), *size)
        figures = (counted[key] for key in ("encode_params", "encode_macs", "decode_params", "decode_macs"))
        found[name] = tuple(round(figure, 2) for figure in figures)
    return found


def table(costs: dict[str, Any]) -> str:
    """Markdown of costs.json."""
    width, height = costs["size"]
    ours, *others = costs["times"]
    text = [f"## Time on one {width}x{height} photograph, {costs['threads']} thread\n"]
    text += [embed(Path("costs.svg"), ALT, CAPTION)]
    text += ["Milliseconds, wall (CPU, of all threads and children); and how many times ours.\n"]
    text += ["| codec | setting | bytes | encode | decode | encode x | decode x |", "|---" * 7 + "|"]
    for row in (ours, *others):
        times = [f"{1e3 * row[k]:.0f} ({1e3 * row[f'{k}_cpu']:.0f})" for k in ("encode", "decode")]
        ratios = [f"{row[k] / ours[k]:.2f}" for k in ("encode", "decode")]
        cells = (row["codec"], str(row["setting"]), str(row["bytes"]), *times, *ratios)
        text.append("| " + " | ".join(cells) + " |")
    text += ["\n## Complexity\n", "Millions of parameters, thousands of multiply-adds a pixel, at 768x512. AEIC's are"]
    text += ["counted here by the published table's rules, the others are the paper's figures.\n"]
    text += ["| method | encode M | encode K/px | decode M | decode K/px |", "|---" * 5 + "|"]
    for name, figures in costs["complexity"].items():
        cells = [">1000" if figure is None else ">10^4" if figure == 1e4 else f"{figure:.2f}" for figure in figures]
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def draw(costs: dict[str, Any], target: Path) -> None:
    """Two panels: encode against decode, in multiply-adds and in seconds. ``target``.svg and .png."""
    figure, axes = open_pyplot().subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    networks = {name: (figures[1], figures[3]) for name, figures in costs["complexity"].items()}
    codecs = {row["codec"]: (1e3 * row["encode"], 1e3 * row["decode"]) for row in costs["times"]}
    titles = ("Thousands of multiply-adds a pixel", f"Milliseconds, {costs['size'][0]}x{costs['size'][1]}, one thread")
    for axis, points, title in zip(axes, (networks, codecs), titles):
        colours = codec_colours(name for name in points if not name.lower().startswith("aeic"))
        for name, (encode, decode) in points.items():
            ours = "nano" in name and "ME" not in name
            axis.scatter(encode, decode, s=70 if ours else 30, color=colours.get(name, "black"))
            right, up, side = BESIDE.get(name, (7, 0, "left"))
            beside = {"xytext": (right, up), "textcoords": "offset points", "va": "center", "ha": side}
            axis.annotate(name, (encode, decode), fontsize=8, weight="bold" if ours else "normal", **beside)
        unit = title.partition(",")[0].lower()
        axis.set(xscale="log", yscale="log", xlabel=f"encode, {unit}", ylabel=f"decode, {unit}", title=title)
        axis.margins(0.2)
        log_scale(axis, "x")
        log_scale(axis, "y")
        tidy(axis)
    save_figure(figure, target)


def write(out: Path) -> None:
    """costs.md, .svg and .png from ``out``/costs.json."""
    costs = json.loads((out / "costs.json").read_text())
    (out / "costs.md").write_text(table(costs))
    draw(costs, out / "costs")


def _settings(text: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (part.partition("=") for part in text.split(",") if part)}


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench costs", description=__doc__, formatter_class=form)
    parser.add_argument("picture", type=Path, nargs="?", default=Path("examples/owl.jpg"))
    parser.add_argument("--codecs", type=_settings, default="vvc=53,avif-half=8,heic-half=9,webp-half=0")
    parser.add_argument("--bundle", "-m", type=Path, help="default: the one in models/")
    parser.add_argument("--threads", type=int, default=1, help="of our own codec; 0: all")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/costs"))
    parser.add_argument("--draw", action="store_true", help="only draw what OUT/costs.json holds")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.draw:
        write(options.out)
        return
    picture, bundle = load_picture(options.picture), Bundle.load(options.bundle)
    rows = [measure(OurCodec(bundle, options.threads), bundle.default_rate, picture, options.reps)]
    for name, setting in options.codecs.items():
        try:
            rows.append(measure(build(name), setting, picture, options.reps))
        except CodecUnavailable as error:
            print(f"left out: {error}", file=sys.stderr)
    size = [picture.shape[1], picture.shape[0]]
    costs = {"size": size, "threads": options.threads, "times": rows, "complexity": complexity()}
    (options.out / "costs.json").write_text(json.dumps(costs, indent=1) + "\n")
    write(options.out)
    print((options.out / "costs.md").read_text())
    seconds = {row["codec"]: [row["encode"], row["decode"]] for row in rows}
    print(json.dumps({"bench": "costs", "size": size, "seconds": seconds}))


if __name__ == "__main__":
    main()
