"""Rate, distortion and perception of a bundle on a folder: real file bytes, every picture, every rate point.

    aeic bench rd FOLDER --out DIR [--bundle BUNDLE] [--rates 0,4]

Writes pictures.csv (a row a picture and rate), results.json (CompressAI's shape) and the reconstructions' montage, and
prints a table; the last line is one JSON object with "rates": the means of each rate point. Resumable: rows that
pictures.csv already holds for this bundle are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.pixels import from_tensor, load_picture, pad_picture, to_tensor
from aeic_train.metrics import Judges, frechet, summary

Picture = NDArray[np.uint8]
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
COLUMNS = (
    "codec",
    "rate",
    "picture",
    "width",
    "height",
    "bytes",
    "bpp",
    "psnr",
    "ms_ssim",
    "st_lpips",
    "efflite_lpips",
    "efflite_dists",
    "encode_seconds",
    "decode_seconds",
)


class Pair:
    """A bundle's encoder and decoder in one process, on ONNX Runtime: picture to bytes and back."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self.bundle, self.codec = bundle, LatentCodec(bundle, threads)
        self._analysis, self._synthesis = bundle.session("analysis", threads), bundle.session("synthesis", threads)

    def encode(self, picture: Picture, rate: int) -> bytes:
        height, width = picture.shape[:2]
        (y,) = self._analysis.run(None, {"image": to_tensor(pad_picture(picture))})
        return self.codec.encode(y[0], rate, width, height)

    def decode(self, data: bytes) -> Picture:
        latents = self.codec.decode(data)
        (image,) = self._synthesis.run(None, {"y_hat": latents.y_hat[None]})
        return from_tensor(image[0])[: latents.frame.height, : latents.frame.width]


def evaluate(pair: Pair, paths: list[Path], rates: list[int], out: Path) -> list[dict[str, object]]:
    """One row a picture and rate, appended to ``out``/pictures.csv as it goes."""
    judges = Judges()
    table = out / "pictures.csv"
    done: dict[tuple[str, str, str], dict[str, object]] = {}
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                done[row["codec"], row["rate"], row["picture"]] = _numbers(row)
    codec = f"{pair.bundle.name}-{pair.bundle.fingerprint}"
    rows = []
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for rate in rates:
            for number, path in enumerate(paths):
                key = (codec, str(rate), path.name)
                if key not in done:
                    picture = load_picture(path)
                    started = time.perf_counter()
                    data = pair.encode(picture, rate)
                    encoded = time.perf_counter()
                    reconstruction = pair.decode(data)
                    decoded = time.perf_counter()
                    height, width = picture.shape[:2]
                    done[key] = {
                        **{"codec": codec, "rate": rate, "picture": path.name, "width": width, "height": height},
                        **{"bytes": len(data), "bpp": 8 * len(data) / (width * height)},
                        **judges(picture, reconstruction),
                        **{"encode_seconds": encoded - started, "decode_seconds": decoded - encoded},
                    }
                    writer.writerow(done[key])
                    file.flush()
                rows.append(done[key])
                if sys.stderr.isatty():
                    print(f"\rrate {rate}: {number + 1}/{len(paths)} ", end="", file=sys.stderr)
    return rows


def frechet_distance(pair: Pair, paths: list[Path], rate: int) -> float:
    """``efflite_fd``: Frechet distance of pooled features of all tiles, originals against reconstructions."""
    judges = Judges()
    originals, reconstructions = [], []
    for path in paths:
        picture = load_picture(path)
        originals.append(judges.pooled(picture))
        reconstructions.append(judges.pooled(pair.decode(pair.encode(picture, rate))))
    return frechet(np.concatenate(originals), np.concatenate(reconstructions))


def _numbers(row: dict[str, str]) -> dict[str, object]:
    texts = {"codec", "picture"}
    whole = {"rate", "width", "height", "bytes"}
    return {k: v if k in texts else int(v) if k in whole else float(v) for k, v in row.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="aeic bench rd", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", "-m", type=Path, help="default: the one in models/")
    parser.add_argument("--rates", help="rate numbers with commas; default: all")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument(
        "--frechet", action="store_true", help="also the Frechet distance: a second pass over the folder"
    )
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(argv)
    bundle = Bundle.load(options.bundle)
    rates = [int(r) for r in options.rates.split(",")] if options.rates else [r.number for r in bundle.rates]
    paths = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in SUFFIXES)[: options.limit]
    if not paths:
        parser.error(f"no pictures in {options.folder}")
    options.out.mkdir(parents=True, exist_ok=True)
    pair = Pair(bundle, options.threads)
    rows = evaluate(pair, paths, rates, options.out)
    print(
        f"{'rate':>4} {'bpp':>8} {'bytes':>7} {'PSNR':>6} {'MS-SSIM':>8}"
        f" {'ST-LPIPS':>9} {'eff.LPIPS':>9} {'eff.DISTS':>9}"
    )
    means = []
    for rate in rates:
        of_rate = [row for row in rows if row["rate"] == rate]
        mean = summary(of_rate) | {"bytes": float(np.mean([row["bytes"] for row in of_rate]))}  # type: ignore[arg-type]
        if options.frechet:
            mean["efflite_fd"] = frechet_distance(pair, paths, rate)
        means.append({"rate": rate, **{name: round(value, 5) for name, value in mean.items()}})
        print(
            f"{rate:>4} {mean['bpp']:8.4f} {mean['bytes']:7.0f} {mean['psnr']:6.2f} {mean['ms_ssim']:8.4f}"
            f" {mean['st_lpips']:9.4f} {mean['efflite_lpips']:9.4f} {mean['efflite_dists']:9.4f}"
        )
    shape = {"bpp": "bpp", "psnr-rgb": "psnr", "ms-ssim-rgb": "ms_ssim", "st-lpips": "st_lpips"}
    results = {name: [mean[key] for mean in means] for name, key in shape.items()}
    description = f"{len(paths)} pictures of {options.folder.name}"
    document = {"name": f"{bundle.name}-{bundle.fingerprint}", "description": description, "results": results}
    (options.out / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({"codec": document["name"], "pictures": len(paths), "rates": means}))


if __name__ == "__main__":
    main()
