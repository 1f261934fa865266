"""Compares speed and bits of the integer entropy step with float32 in ONNX Runtime and in PyTorch, in one run.

    aeic bench entropy                                    # nano and full-size SE, random weights, 768x512
    aeic bench entropy --weights models/aeic-se-nano/weights.safetensors --pictures examples

The step is what the encoder does between y and the symbols: hyper synthesis and the four context passes with rounding,
masks and skipping. The three take turns, so that other work on the machine slows all of them. Medians are compared.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from aeic.pixels import load_picture, pad_picture, to_tensor
from aeic.profiles import HYPER_STRIDE, LATENT_STRIDE, profile
from aeic_nets.codec import Codec
from aeic_nets.integer.calibrate import calibrate
from aeic_nets.integer.export import export_entropy
from aeic_nets.integer.training import price
from benchmarks.entropy.float_model import FloatStep, write_float_graph


def session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def speed(codec: Codec, width: int, height: int, threads: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of the three, the speed-up of the integer step, and the fastest round of each."""
    h, w = height // LATENT_STRIDE, width // LATENT_STRIDE
    torch.manual_seed(0)
    y = 2 * torch.randn(1, codec.profile.latent_channels, h, w)
    sides = -(-h // HYPER_STRIDE), -(-w // HYPER_STRIDE)
    z = torch.randint(-2, 3, (1, codec.profile.hyper_channels, *sides), dtype=torch.int32)
    step = FloatStep(codec).eval()
    feeds = {"y": y.numpy(), "z_symbols": z.numpy()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_entropy(codec, [y], folder)
        write_float_graph(codec, h, w, folder / "float.onnx")
        exact, plain = (session(folder / f"{kind}.onnx", threads) for kind in ("entropy", "float"))

    def eager() -> None:
        with torch.inference_mode():
            step(y, z)

    runs: dict[str, Callable[[], Any]] = {
        "exact_ms": lambda: exact.run(None, feeds),
        "onnxruntime_float32_ms": lambda: plain.run(None, feeds),
        "torch_float32_ms": eager,
    }
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for number in range(rounds + 2):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 2:  # two to warm up
                times[kind].append(1e3 * (time.perf_counter() - start))
    result = {kind: round(statistics.median(values), 2) for kind, values in times.items()}
    for kind in ("onnxruntime", "torch"):
        result[f"times_faster_than_{kind}"] = round(result[f"{kind}_float32_ms"] / result["exact_ms"], 2)
    result |= {f"fastest_{kind}": round(min(values), 2) for kind, values in times.items()}
    return result


def latents_of(codec: Codec, pictures: Path, limit: int) -> list[tuple[Tensor, int]]:
    """(y, rate) of the pictures in a folder, which take the rate points in turn."""
    files = sorted(f for f in pictures.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))[:limit]
    pairs = []
    for number, file in enumerate(files):
        rgb = load_picture(file)
        if max(rgb.shape) > 1024:
            rgb = np.ascontiguousarray(rgb[:768, :1024])
        with torch.inference_mode():
            y = codec.g_a(torch.from_numpy(to_tensor(pad_picture(rgb)))).clone()
        pairs.append((y, number % codec.profile.rates))
    return pairs


def load_codec(name: str, weights: Path | None) -> Codec:
    torch.manual_seed(0)
    codec = Codec(profile(name)).eval()
    if weights is not None:
        if weights.suffix == ".pt":  # a training state
            tensors = torch.load(weights, weights_only=True, map_location="cpu")["average"]
        else:
            from safetensors.torch import load_file

            tensors = load_file(weights)
        part = {key.removeprefix("codec."): value.float() for key, value in tensors.items() if key.startswith("codec.")}
        codec.load_state_dict({k: v for k, v in part.items() if "_cdf" not in k and "_offset" not in k}, strict=False)
    return codec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", default="nano,se", help="whose speed to measure, by comma")
    parser.add_argument("--weights", type=Path, help="nano's weights.safetensors (or state.pt): measures the price too")
    parser.add_argument("--pictures", type=Path, default=Path("examples"), help="folder of pictures for the price")
    parser.add_argument("--limit", type=int, default=24, help="how many pictures at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"picture": [768, 512], "threads": options.threads, "speed": {}}
    print(f"{'profile':8} {'exact':>9} {'ORT f32':>9} {'torch f32':>9}   times faster (ORT, torch)", flush=True)
    for name in filter(None, options.profiles.split(",")):
        found = speed(load_codec(name, None), 768, 512, options.threads, options.rounds)
        report["speed"][name] = found
        line = "{:8} {:6.1f} ms {:6.1f} ms {:6.1f} ms   {:.2f}, {:.2f}   fastest rounds {:.1f}, {:.1f}, {:.1f} ms"
        print(line.format(name, *found.values()), flush=True)
    if options.weights:
        codec = load_codec("nano", options.weights)
        pairs = latents_of(codec, options.pictures, options.limit)
        with torch.inference_mode():
            sites = calibrate(codec, [y * codec.gains(rate)[0] for y, rate in pairs])
        report["price"] = {key: round(value, 4) for key, value in price(codec, pairs, sites).items()}
        line = "price on {} pictures: {:.0f} bits a frame in float, {:.0f} exact, {:+.2f} %"
        print(line.format(len(pairs), *list(report["price"].values())[:3]))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
