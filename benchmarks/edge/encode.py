"""Compares encoding of a full-size profile by our edge path and by plain PyTorch float32, in one run.

    aeic bench encode --profile se [--sizes 768x512,1920x1088] [--threads 2] [--rounds 7]

The plain path runs g_a, h_a, h_s and four context passes in eager PyTorch float32, without entropy coding. Our path
goes from pixels to the bytes of a frame and includes entropy coding, on each available provider of the analysis. All
take turns, so that other work on the machine slows all of them. Medians of wall time and of CPU time are compared. For
an analysis that is not in float32, the share of latents that round differently is printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aeic.pixels import from_tensor, load_picture, pad_picture, to_tensor
from aeic.runtime import openvino
from aeic_nets.codec import Codec
from aeic_nets.official.golden_weights import golden_picture
from benchmarks.entropy.float_model import FloatStep
from benchmarks.golden_bundle import golden_codec, write_golden_bundle
from cloud_decoder.inference.decoder import Decoder
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.encoder import Encoder

GOAL = 3.0
"""Ours must be this many times faster."""


def plain_path(codec: Codec) -> Callable[[NDArray[np.uint8]], None]:
    step = FloatStep(codec).eval()

    def run(rgb: NDArray[np.uint8]) -> None:
        with torch.inference_mode():
            y = codec.g_a(torch.from_numpy(to_tensor(pad_picture(rgb))))
            step(y, codec.hyper(y).round().int())

    return run


def take_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of ``rounds`` after two warm-up rounds: milliseconds of wall time, and of CPU time of all threads."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            clock, busy = time.perf_counter(), time.process_time()
            work()
            if number >= 2:
                times[name].append((time.perf_counter() - clock, time.process_time() - busy))
    return {
        name: {
            kind: round(1e3 * statistics.median(row[k] for row in rows), 1) for k, kind in enumerate(("ms", "cpu_ms"))
        }
        for name, rows in times.items()
    }


def price(encoders: Mapping[ProviderChoice, Encoder], rgb: NDArray[np.uint8]) -> dict[str, float]:
    """By provider: the percentage of y that rounds differently from float32, and the error as a share of y's spread."""
    latents = {name: encoder.analysis(rgb) for name, encoder in encoders.items()}
    wanted = latents["cpu"]
    return {
        name: round(100 * float((np.rint(y) != np.rint(wanted)).mean()), 3)
        for name, y in latents.items()
        if name != "cpu"
    }


def quality(pictures: Path) -> Mapping[ProviderChoice, dict[str, float]]:
    """Mean bytes and PSNR over a folder for each provider of the analysis, with the shipped model."""
    decoder = Decoder.from_bundle(device="onnx")
    result: dict[ProviderChoice, dict[str, float]] = {}
    for name in providers():
        encoder = Encoder.from_bundle(provider=name)
        rows = []
        for path in sorted(p for p in pictures.iterdir() if p.suffix in (".jpg", ".png", ".webp")):
            rgb = load_picture(path)
            data = encoder.encode(rgb).data
            error = decoder.decode([data])[0].astype(float) - rgb
            rows.append((len(data), 10 * np.log10(255**2 / np.square(error).mean())))
        result[name] = dict(zip(("bytes", "psnr_db"), np.round(np.mean(rows, axis=0), 3).tolist(), strict=True))
    return result


def providers() -> list[ProviderChoice]:
    return ["cpu", "openvino"] if openvino.AVAILABLE else ["cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="aeic bench encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=("se", "me"), default="se")
    parser.add_argument("--sizes", default="768x512,1920x1088", help="WIDTHxHEIGHT, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=Path, default=Path("examples"), help="folder for the price in quality")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    codec = golden_codec(options.profile)
    report: dict[str, Any] = {"bench": "encode", "profile": options.profile, "threads": options.threads, "sizes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_golden_bundle(codec, Path(scratch) / "bundle")
        encoders = {name: Encoder.from_bundle(bundle.path, options.threads, provider=name) for name in providers()}
        print(
            f"{'':11} {'PyTorch f32':>14} {'provider':>9} {'ours':>10} {'times':>6} {'cpu time':>9} {'otherwise':>10}"
        )
        for size in options.sizes.split(","):
            width, height = map(int, size.split("x"))
            rgb = from_tensor(golden_picture(height, width, 1.0)[0].numpy())
            plain = plain_path(codec)
            works: dict[str, Callable[[], object]] = {"torch": partial(plain, rgb)}
            works |= {name: partial(encoder.encode, rgb) for name, encoder in encoders.items()}
            found = take_turns(works, options.rounds)
            rounded = price(encoders, rgb)
            row: dict[str, Any] = {"torch": found["torch"], "bytes": len(encoders["cpu"].encode(rgb).data)}
            for name in providers():
                times = {
                    f"times_{kind}": round(found["torch"][kind] / found[name][kind], 2) for kind in ("ms", "cpu_ms")
                }
                row[name] = found[name] | times
                if name in rounded:
                    row[name]["latents_otherwise_percent"] = rounded[name]
                print(
                    f"{size:11} {found['torch']['ms']:11.1f} ms {name:>9} {found[name]['ms']:7.1f} ms"
                    f" {times['times_ms']:6.2f} {times['times_cpu_ms']:9.2f} {rounded.get(name, 0):8.3f} %",
                    flush=True,
                )
            report["sizes"][size] = row
    if options.pictures.is_dir():
        report["quality_of_nano"] = quality(options.pictures)
        for name, found in report["quality_of_nano"].items():
            print(
                f"nano, {options.pictures}, analysed by {name}: {found['bytes']:.1f} bytes, {found['psnr_db']:.3f} dB"
            )
    report["times_faster"] = min(max(row[name]["times_ms"] for name in providers()) for row in report["sizes"].values())
    report["ok"] = report["times_faster"] >= GOAL
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
