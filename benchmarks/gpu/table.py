"""The paper's table of speed on this card, beside the published one: one command, some minutes.

    python -m benchmarks.gpu.table [--profile se] [--bundle DIR] [--device cuda]

Encoding: pixels to the bytes of a frame, the analysis on the card, the exact entropy model there too if the bundle has
entropy_gpu.onnx, and otherwise on the CPU. Decoding: the bytes of a frame to pixels, the decoder on the card in
bfloat16. Frames one after the other and, for frames a second, in batches. Without --bundle the weights are made from
their names: the same work, with entropy_gpu.onnx. The last line is JSON. With --device cpu it runs anywhere, to try the
script; docs/how-to/gpu.md says what has been run on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aeic.pixels import from_tensor
from aeic_nets.official.golden_weights import golden_picture
from benchmarks.golden_bundle import golden_codec, write_golden_bundle
from cloud_decoder.inference.decoder import Decoder
from edge_encoder.encoding import ProviderChoice
from edge_encoder.encoding.encoder import Encoder

PUBLISHED_MS: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "se": {
        "768x512": {"encode": (22.6, 14.0), "decode": (399.6, 104.2)},
        "1920x1088": {"encode": (110.4, 27.9), "decode": (3629.4, 836.2)},
    },
    "me": {
        "768x512": {"encode": (60.3, 37.1), "decode": (433.4, 106.7)},
        "1920x1088": {"encode": (284.0, 58.7), "decode": (3783.1, 845.3)},
    },
}
"""Milliseconds on a GTX 1080 Ti and an RTX 4090 D, by profile and size, as the paper has them."""


def median_ms(work: Callable[[], object], rounds: int, device: str) -> float:
    """After two to warm up; the card is waited for."""
    times = []
    for number in range(rounds + 2):
        begin = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def peak_gigabytes(device: str) -> float | None:
    """The most that torch has held on the card since the last question."""
    if not device.startswith("cuda"):
        return None
    found = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return round(found, 2)


def measure(encoder: Encoder, decoder: Decoder, size: str, options: argparse.Namespace) -> dict[str, Any]:
    width, height = map(int, size.split("x"))
    rgb = from_tensor(golden_picture(height, width, 1.0)[0].numpy())
    frame = encoder.encode(rgb).data
    peak_gigabytes(options.device)
    encode = median_ms(lambda: encoder.encode(rgb), options.rounds, options.device)
    decode = median_ms(lambda: decoder.decode([frame]), options.rounds, options.device)
    peak = peak_gigabytes(options.device)
    batch = median_ms(lambda: decoder.decode([frame] * options.batch), options.rounds, options.device)
    return {
        "encode_ms": round(encode, 1),
        "decode_ms": round(decode, 1),
        "encode_fps": round(1e3 / encode, 1),
        "decode_fps": round(1e3 / decode, 1),
        "decode_batch_fps": round(1e3 * options.batch / batch, 1),
        "peak_gb": peak,
        "peak_batch_gb": peak_gigabytes(options.device),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=sorted(PUBLISHED_MS), default="se")
    parser.add_argument("--sizes", default="768x512,1920x1088", help="WIDTHxHEIGHT, with commas")
    parser.add_argument("--bundle", type=Path, help="a converted checkpoint; default: golden weights, 2 GB of disk")
    parser.add_argument("--device", default="cuda", help="of the decoder: cuda, cuda:1, cpu")
    parser.add_argument("--provider", choices=("cuda", "tensorrt", "openvino", "cpu"), help="of the analysis")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    provider: ProviderChoice = options.provider or ("cpu" if options.device == "cpu" else "cuda")
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    report: dict[str, Any] = {
        "bench": "gpu table",
        "profile": options.profile,
        "card": card,
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.bundle or Path(scratch) / "bundle"
        if not options.bundle:
            write_golden_bundle(golden_codec(options.profile), folder, decoder=True)
        encoder = Encoder.from_bundle(folder, provider=provider)
        decoder = Decoder.from_bundle(folder, device=options.device)
        report["provider"] = encoder.analysis.provider
        print(f"{card}, analysis by {encoder.analysis.provider}\n")
        print(f"{'':11} {'':7} {'ms':>8} {'FPS':>7} {'batched':>8} {'peak GB':>8}   published: 1080 Ti, 4090 D")
        report["sizes"] = {}
        for size in options.sizes.split(","):
            found = report["sizes"][size] = measure(encoder, decoder, size, options)
            for way in ("encode", "decode"):
                known = PUBLISHED_MS[options.profile].get(size, {}).get(way)
                published = f"{known[0]:.1f}, {known[1]:.1f} ms" if known else "-"
                batched = found["decode_batch_fps"] if way == "decode" else ""
                peak = found["peak_gb"] if way == "decode" else ""
                print(
                    f"{size:11} {way:7} {found[f'{way}_ms']:8.1f} {found[f'{way}_fps']:7.1f} {batched!s:>8}"
                    f" {peak!s:>8}   {published}",
                    flush=True,
                )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
