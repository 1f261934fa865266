"""Checks that every executor of the entropy model gives equal results, and times decoding several frames together.

    aeic bench exact                         # nano, SE and ME, ten million elements each
    aeic bench exact --profiles nano --elements 1000000 --json

Three executors take the same latents: the int8 graphs of a bundle, the float graphs for GPUs on ONNX Runtime's CPU
provider, and the torch interpreter in batches of one to eight. Symbols, table indexes and y_hat are compared bit by
bit, for latents of small to extreme amplitudes. Then the graphs decode eight frames one by one and by ``decode_many``.
nano has the shipped weights; the weights of SE and ME are generated from the names of their tensors. The exit status is
1 if anything differs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.profiles import LATENT_STRIDE, profile
from aeic.quantise import hyper_size
from aeic_nets.integer.export import Target, entropy_graph
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import TorchEntropyModel
from benchmarks.golden_bundle import golden_codec, write_golden_bundle

PARTS = ("symbols", "indexes", "y_hat")
AMPLITUDES = (0.3, 2.0, 9.0, 400.0)
BATCHES = range(1, 9)


def bundle_of(name: str, folder: Path) -> Bundle:
    """The shipped bundle for nano; for the published sizes, a bundle with golden weights, written to ``folder``."""
    if name == "nano":
        return Bundle.load()
    return write_golden_bundle(golden_codec(name), folder / name)


def compare(model: IntegerModel, elements: int, device: str, seed: int) -> dict[str, Any]:
    """The number of differences over at least ``elements`` latents of random sizes and amplitudes."""
    graphs = {target: _session(model, target) for target in ("cpu", "gpu")}
    torch_model, rng = TorchEntropyModel(model, device), np.random.default_rng(seed)
    channels, hyper_channels = model.sizes.latent_channels, model.sizes.hyper_channels
    found: dict[str, Any] = {"elements": 0, "coded": 0, "different": {}}
    different: dict[str, int] = {f"{who} {part}": 0 for who in ("gpu graph", "torch") for part in PARTS}
    number = 0
    while found["elements"] < elements:
        batch, amplitude = BATCHES[number % len(BATCHES)], AMPLITUDES[number % len(AMPLITUDES)]
        number += 1
        height, width = (2 * int(side) for side in rng.integers(1, 13, 2))
        y = (amplitude * rng.standard_normal((batch, channels, height, width))).astype(np.float32)
        z = rng.integers(-9, 10, (batch, hyper_channels, *hyper_size(height, width))).astype(np.int32)
        together = torch_model.quantise(y, z)
        for row in range(batch):
            feeds = {"y": y[row : row + 1], "z_symbols": z[row : row + 1]}
            expected: list[NDArray[Any]] = graphs["cpu"].run(None, feeds)
            by_gpu_graph: list[NDArray[Any]] = graphs["gpu"].run(None, feeds)
            by_torch: list[NDArray[Any]] = list(together)
            for part, want, gpu, ours in zip(PARTS, expected, by_gpu_graph, by_torch, strict=True):
                different[f"gpu graph {part}"] += int((gpu[0] != want[0]).sum())
                different[f"torch {part}"] += int((ours[row] != want[0]).sum())
            found["coded"] += int((expected[1] >= 0).sum())
        found["elements"] += y.size
        print(f"\r{found['elements']:,} of {elements:,} elements", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found | {"different": different, "equal": not any(different.values())}


def decode_together(bundle: Bundle, width: int, height: int, rounds: int) -> dict[str, float]:
    """Seconds that the bundle's graphs take for eight frames one by one and together, as medians of paired rounds."""
    codec, rng = LatentCodec(bundle), np.random.default_rng(0)
    shape = (bundle.channels, height // LATENT_STRIDE, width // LATENT_STRIDE)
    frames = [codec.encode(rng.standard_normal(shape).astype(np.float32), 0, width, height) for _ in range(8)]
    single, together = [], []
    for _ in range(rounds):
        single.append(_seconds(lambda: [codec.decode(frame) for frame in frames]))
        together.append(_seconds(lambda: codec.decode_many(frames)))
    ratios = [b / a for a, b in zip(single, together, strict=True)]
    return {
        "single_seconds": round(statistics.median(single), 4),
        "together_seconds": round(statistics.median(together), 4),
        "ratio": round(statistics.median(ratios), 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="aeic bench exact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", default="nano,se,me")
    parser.add_argument("--elements", type=int, default=10_000_000, help="latents compared for each profile")
    parser.add_argument("--device", default="cpu", help="where the torch interpreter runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds of eight decodes at 768x512; 0 for none")
    parser.add_argument("--json", action="store_true", help="the JSON line only")
    options = parser.parse_args(argv)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for wanted in options.profiles.split(","):
            profile(wanted)
            bundle = bundle_of(wanted, Path(name))
            path = bundle.auxiliary("integer.npz")
            assert path is not None, "the bundle has no integer.npz: export it again"
            result = compare(IntegerModel.load(path), options.elements, options.device, options.seed)
            if options.rounds:
                result["decode_8"] = decode_together(bundle, 768, 512, options.rounds)
            results[wanted] = result
            if not options.json:
                print(f"{wanted}: {result['elements']} elements, {result['coded']} coded, {result['different']}")
                print(f"{wanted}: eight frames of 768x512 {result.get('decode_8', 'not measured')}", flush=True)
    print(json.dumps({"exact": results, "device": options.device, "torch": torch.__version__}))
    return 0 if all(result["equal"] for result in results.values()) else 1


def _session(model: IntegerModel, target: Target) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch wants the cores in between
    return onnxruntime.InferenceSession(entropy_graph(model, target), options, providers=["CPUExecutionProvider"])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
