"""Measures rate, distortion and perception of our codec and its baselines on a folder, with real files.

    aeic bench rd FOLDER --out DIR [--bundle BUNDLE] [--rates 0,4]
    aeic bench rd FOLDER --out DIR --codecs ours,vvc,avif-half,heic-half,jxl-half --bpp 0.015,0.03,0.06
    aeic bench rd FOLDER --out DIR --codecs ours,vvc --known docs/results/baselines_val12.csv --every 3 --limit 12

Ours is measured at its rate points. For the others, a search finds the settings whose mean over the pictures meets
--bpp, and every setting that it tries is a point of the curve. aeic_train/codecs/baselines.py lists the codecs, among
them models of CompressAI's zoo and any program described by a .toml file. The command writes to DIR:

    pictures.csv   a row for each picture, codec and setting; a second run computes only what is missing
    results.json   a list with one entry for each codec in CompressAI's form ("results": {"bpp": [...], ...})
    curves/        the same entries as one file for each codec, which CompressAI's own plotting tool reads
    summary.json   BD-rates of ours against each baseline, and each codec's metrics at equal bits
    features/      pooled features for efflite_fd, fid and kid
    pictures/      with --keep: the decoded pictures

LPIPS, DISTS, MUSIQ, CLIP-IQA, FID and KID are computed if their libraries and weights are installed
(aeic_train/evaluation/perceptual_metrics.py); --perceptual chooses. --known takes rows from an earlier run on the same
pictures, and their distances from the .json beside it. The last line is one JSON object with "rates": the means of each
of our rate points (of the first codec, if ours is not there).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeic.bundle import Bundle
from aeic.errors import AeicError, InputError
from aeic_train.codecs.base import Codec, CodecFailed, CodecUnavailable
from aeic_train.codecs.baselines import build
from aeic_train.codecs.ours import OurCodec
from aeic_train.evaluation import rd_curves
from aeic_train.evaluation.metrics import MetricSuite
from aeic_train.evaluation.perceptual_metrics import PERCEPTUAL_METRICS, SETS, PerceptualMetrics, find
from aeic_train.evaluation.results_files import write_each
from aeic_train.evaluation.results_table import Table, columns_of
from aeic_train.evaluation.runner import Bench, curve

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def compare(curves_by_name: dict[str, list[dict[str, Any]]], targets: Sequence[float]) -> dict[str, Any]:
    """BD-rates (percent) of the first codec against each other codec, and the metrics of all codecs at ``targets``
    bpp."""
    ours, *baselines = curves_by_name
    rates = {
        baseline: {
            measure: None if value is None else round(value, 2)
            for measure in rd_curves.COMPARED
            for value in [rd_curves.bd_rate(curves_by_name[baseline], curves_by_name[ours], measure)]
        }
        for baseline in baselines
    }
    equal = {
        f"{bpp:g}": {
            name: {
                measure: None if value is None else round(value, 5)
                for measure in rd_curves.MEASURES
                for value in [rd_curves.at(points, measure, bpp)]
            }
            for name, points in curves_by_name.items()
        }
        for bpp in targets
    }
    return {"codec": ours, "bd_rates": rates, "at_bpp": equal}


def _known_distances(tables: Sequence[Path], paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Distances of sets by "codec setting" from the JSON beside each table, if it belongs to exactly these pictures."""
    found: dict[str, dict[str, float]] = {}
    for table in tables:
        beside = table.with_name("results.json" if table.name == "pictures.csv" else f"{table.stem}.json")
        for entry in json.loads(beside.read_text()) if beside.exists() else []:
            if entry.get("pictures") != [path.name for path in paths]:
                continue
            for measure in ("efflite_fd", "fid", "kid"):
                for setting, value in zip(entry["settings"], entry["results"].get(rd_curves.key(measure), [])):
                    found.setdefault(f"{entry['name']} {setting}", {})[measure] = value
    return found


HEADS = {
    "psnr": "PSNR",
    "ms_ssim": "MS-SSIM",
    "st_lpips": "ST-LPIPS",
    "encode_seconds": "enc s",
    "decode_seconds": "dec s",
}
HEADS |= {"efflite_lpips": "eff.LPIPS", "efflite_dists": "eff.DISTS", "efflite_fd": "eff.FD"}
HEADS |= {"lpips": "LPIPS", "dists": "DISTS", "fid": "FID", "kid": "KID", "musiq": "MUSIQ", "clipiqa": "CLIP-IQA"}
"""Heads of the columns whose measures are not called so."""


def _print(name: str, points: list[dict[str, Any]]) -> None:
    measures = rd_curves.present([points], rd_curves.MEASURES)
    names = ("bpp", "bytes", *measures, "encode_seconds", "decode_seconds")
    print(f"\n{name}\n{'setting':>8} " + " ".join(f"{HEADS.get(measure, measure):>9}" for measure in names))
    for point in points:
        values = [point.get(measure, math.nan) for measure in names]
        print(f"{point['setting']:>8} " + " ".join(f"{value:9.4g}" for value in values))


def _floats(text: str) -> list[float]:
    return sorted(float(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench rd", description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codecs", default="ours", help="with commas; default: ours")
    parser.add_argument("--codec", action="append", default=[], help="one more, whose name may hold commas")
    parser.add_argument("--bpp", type=_floats, default=[0.015, 0.02, 0.03, 0.04, 0.05, 0.06], help="rates to meet")
    parser.add_argument("--bundle", "-m", type=Path, help="default: the one in models/")
    parser.add_argument("--rates", help="our rate numbers with commas; default: all")
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth picture")
    parser.add_argument("--limit", type=int, help="only the first so many pictures (of those)")
    parser.add_argument("--known", type=Path, action="append", default=[], help="pictures.csv of an earlier run")
    parser.add_argument("--keep", action="store_true", help="write the reconstructions as PNG")
    parser.add_argument("--threads", type=int, default=0, help="of our own codec and the metrics; 0: all")
    parser.add_argument(
        "--perceptual", default="auto", help="perceptual metrics, with commas; none; auto: those that are installed"
    )
    # The old name of the same option.
    parser.add_argument("--judges", dest="perceptual", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--download", action="store_true", help="let the libraries of these metrics fetch their weights"
    )
    parser.add_argument("--frechet", action="store_true", help="kept for old command lines: it is always computed")
    options = parser.parse_args(argv)
    try:
        _run(options)
    except (AeicError, OSError) as error:
        print(f"aeic bench rd: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def _codecs(options: argparse.Namespace) -> list[Codec]:
    """The codecs that can be used, ours first. Those that cannot are named on stderr and left out."""
    codecs: list[Codec] = []
    for name in [*filter(None, options.codecs.split(",")), *options.codec]:
        try:
            if name == "ours":
                rates = [int(rate) for rate in options.rates.split(",")] if options.rates else None
                codecs.insert(0, OurCodec(Bundle.load(options.bundle), options.threads, rates))
            else:
                codecs.append(build(name))
        except CodecUnavailable as error:
            print(f"left out: {error}", file=sys.stderr)
    if not codecs:
        raise CodecUnavailable("none of the requested codecs is available on this machine")
    return codecs


def _perceptual(options: argparse.Namespace) -> PerceptualMetrics:
    """What --perceptual asks for. ``auto`` keeps to the columns of a table that exists, and names what is missing."""
    had = columns_of(options.out / "pictures.csv")
    if options.perceptual == "none":
        return PerceptualMetrics()
    if options.perceptual == "auto":
        perceptual, missing = find(PERCEPTUAL_METRICS if had is None else (*had, *SETS), download=options.download)
        if had is not None and (lost := [name for name in had if name not in perceptual.names]):
            raise InputError(f"{options.out} was made with {', '.join(lost)}, which cannot be used now. {missing[0]}")
        for message in missing:
            print(f"left out: {message}", file=sys.stderr)
        return perceptual
    perceptual, missing = find([name for name in options.perceptual.split(",") if name], download=options.download)
    if missing:
        raise InputError(f"--perceptual {missing[0]}")
    return perceptual


def _run(options: argparse.Namespace) -> None:
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if not options.folder.is_dir():
        raise InputError(f"{options.folder} is not a folder of pictures")
    found = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in SUFFIXES)
    paths = found[:: options.every][: options.limit]
    if not paths:
        raise InputError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in {options.folder}")
    codecs = _codecs(options)
    options.out.mkdir(parents=True, exist_ok=True)
    perceptual = _perceptual(options)
    table = Table(options.out / "pictures.csv", options.known, [*perceptual.metrics])
    bench = Bench(paths, options.out, table, MetricSuite(), options.keep, perceptual)
    known = _known_distances([*options.known, bench.table.path], paths)
    by_name: dict[str, list[dict[str, Any]]] = {}
    documents = []
    for codec in codecs:
        searched = not isinstance(codec, OurCodec) and len(codec.settings) > 10
        try:
            points = curve(bench, codec, options.bpp if searched else None, known)
        except CodecFailed as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        by_name[codec.name] = points
        description = f"mean over {len(paths)} pictures of {options.folder.resolve().name}; bpp of the whole file"
        settings = [point["setting"] for point in sorted(points, key=lambda point: point["bpp"])]
        more = {"settings": settings, "pictures": [path.name for path in paths]}
        documents.append(rd_curves.document(codec.name, description, points, **more))
        (options.out / "results.json").write_text(json.dumps(documents, indent=1) + "\n")
    write_each(documents, options.out / "curves")
    if not by_name:
        raise CodecFailed("all codecs failed; see above")
    for name, points in by_name.items():
        _print(name, points)
    comparison = compare(by_name, options.bpp)
    (options.out / "summary.json").write_text(json.dumps(comparison, indent=1) + "\n")
    first = next(iter(by_name))
    if len(by_name) > 1:
        measures = rd_curves.present(by_name.values(), rd_curves.COMPARED)
        print(f"\nBD-rate of {first}, percent (negative: fewer bits)\n{'':>16} " + " ".join(map(_wide, measures)))
        for baseline, values in comparison["bd_rates"].items():
            cells = [_wide("-" if values[m] is None else f"{values[m]:+.1f}") for m in measures]
            print(f"{baseline:>16} " + " ".join(cells))
    rates = [
        {"rate": p["setting"], **{n: round(v, 5) for n, v in p.items() if n != "setting" and math.isfinite(v)}}
        for p in by_name[first]
    ]
    print(json.dumps({"codec": first, "pictures": len(paths), "rates": rates, "bd_rates": comparison["bd_rates"]}))


def _wide(text: str) -> str:
    return f"{text:>13}"


if __name__ == "__main__":
    main()
