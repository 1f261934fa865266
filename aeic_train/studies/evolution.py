"""Shows how rate and picture evolve over a training, from the snapshots of a run.

    aeic train --recipe aeic_train/recipes/nano_me_evolution.toml --init SE.safetensors --photographs DIR \\
        --validation DIR --run runs/me --snapshots 50
    aeic bench evolution runs/me --validation DIR --out out/evolution

This is the experiment behind the paper's figure on implicit bitrate pruning: the first stage trains at a relaxed rate,
the second one lowers the rate of the latents that the first has learned. Each snapshot is evaluated on the validation
pictures at a rate point that all stages train; bits are estimated from likelihoods. The command writes to OUT:

    evolution.json            bpp and every metric of each snapshot
    evolution.md, .svg, .png  the same as a table, and as curves over the steps and in the plane of rate and quality
    evolution_strip.jpg       originals and their reconstructions at some of the snapshots

Snapshots that evolution.json already has are not evaluated again. The last line is JSON: the first and last point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from aeic.errors import AeicError, InputError
from aeic_train.data.photographs import Photographs
from aeic_train.evaluation import likelihood_estimate
from aeic_train.evaluation.metrics import MetricSuite
from aeic_train.reports import evolution_plots, training_curves
from aeic_train.training import snapshots

STRIP_COLUMNS = 6
"""The most snapshots in the strip."""
STRIP_ROWS = 3
SIDE = 256
"""Side in pixels of a picture in the strip."""
LABEL = 18
"""Height in pixels of the line of text above the pictures."""


def common_rate(paths: list[Path], wanted: int | None) -> int:
    """The rate point to evaluate: ``wanted``, or the highest one that every stage trains."""
    common = set.intersection(*(set(snapshots.place_of(path).rates) for path in paths))
    if wanted is not None and wanted not in common:
        raise InputError(f"--rate {wanted}: the stages have in common {sorted(common) or 'no rate point'}")
    if not common:
        raise InputError("the stages of this run have no rate point in common: give a run whose stages share one")
    return max(common) if wanted is None else wanted


def evenly(paths: list[Path], count: int) -> list[Path]:
    """At most ``count`` of ``paths``, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in dict.fromkeys(places.tolist())]


def strip(columns: list[tuple[str, list[NDArray[np.uint8]]]]) -> Image.Image:
    """A grid: in each column a label above pictures (SIDE, SIDE, 3)."""
    rows = len(columns[0][1])
    image = Image.new("RGB", (SIDE * len(columns), LABEL + SIDE * rows), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for number, (label, pictures) in enumerate(columns):
        draw.text((number * SIDE + 4, 2), label, "black", font)
        for row, picture in enumerate(pictures):
            image.paste(Image.fromarray(picture), (number * SIDE, LABEL + row * SIDE))
    return image


def centre(picture: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The centre of a picture, (SIDE, SIDE, 3); None if it is smaller."""
    top, left = (picture.shape[0] - SIDE) // 2, (picture.shape[1] - SIDE) // 2
    return None if min(top, left) < 0 else np.array(picture[top : top + SIDE, left : left + SIDE])


def variances(run: Path, rate: int) -> dict[int, float]:
    """The variance of y by step, as far as the run's log has it."""
    lines = training_curves.read(run / "log.jsonl")
    found = {line["total"]: training_curves.value(line, "variance", str(rate)) for line in lines}
    return {total: variance for total, variance in found.items() if variance is not None}


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench evolution", description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="folder of a run that was trained with --snapshots")
    parser.add_argument("--validation", type=Path, required=True, help="folder of pictures to evaluate on")
    parser.add_argument("--rate", type=int, help="rate point; by default the highest one that every stage trains")
    parser.add_argument("--pictures", type=int, default=12, help="number of pictures, evenly spaced in the folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/evolution"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (AeicError, OSError, ValueError) as error:
        print(f"aeic bench evolution: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def _run(options: argparse.Namespace) -> None:
    paths = snapshots.find(options.run)
    rate = common_rate(paths, options.rate)
    names, pictures = Photographs(options.validation, options.out / "cache").evenly(options.pictures)
    shown = [crop for picture in pictures if (crop := centre(picture)) is not None][:STRIP_ROWS]
    of = {"rate": rate, "pictures": names}
    target = options.out / "evolution.json"
    known = _known(target, of)
    variance = variances(options.run, rate)
    chosen = evenly(paths, STRIP_COLUMNS)
    columns: list[tuple[str, list[NDArray[np.uint8]]]] = [("original", shown)]
    points: list[dict[str, Any]] = []
    metric_suite = MetricSuite()
    for number, path in enumerate(paths, 1):
        place, digest = snapshots.place_of(path), _digest(path)
        point = known.get(digest)
        if point is None or path in chosen:
            model = snapshots.load(path)
            torch.manual_seed(0)
            if point is None:
                point = likelihood_estimate.point(model, pictures, rate, metric_suite)
            if path in chosen and shown:
                results = [likelihood_estimate.reconstruct(model, crop, rate)[0] for crop in shown]
                columns.append((f"step {place.total} ({place.stage}), {point['bpp']:.4f} bpp", results))
        place_and_digest = {"total": place.total, "stage": place.stage, "snapshot": digest}
        more = {"variance": variance[place.total]} if place.total in variance else {}
        points.append({**point, **place_and_digest, **more})
        print(f"{number} of {len(paths)}: step {place.total}, {place.stage}, {point['bpp']:.4f} bpp", flush=True)
        evolution_plots.write(target, of | {"points": points})
    if shown:
        strip(columns).save(options.out / "evolution_strip.jpg", quality=90)
    evolution_plots.draw(target)
    print(target.with_suffix(".md").read_text())
    print(json.dumps({"bench": "evolution", "rate": rate, "first": points[0], "last": points[-1]}))


def _known(target: Path, of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The points that an earlier call wrote for the same pictures and rate, by the digest of their snapshot."""
    if not target.exists():
        return {}
    content = json.loads(target.read_text())
    if {name: content[name] for name in of} != of:
        return {}
    return {point["snapshot"]: point for point in content["points"]}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


if __name__ == "__main__":
    main()
