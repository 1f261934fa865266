"""Checks a GPU: where graphs run, whether known answers are right, and the time of alternating sizes.

    python -m benchmarks.gpu.known_answers [--provider cuda|tensorrt|cpu]

1. Analysis, in float32 and in half precision, against the CPU: within 2 % of the largest value.
2. The entropy model in the form for GPUs against the integer form on the CPU: equal to the last bit, at every size.
3. Which provider each graph and each of its nodes got, and how long two alternating sizes take against one that stays.

Exit 0 only if all hold and the provider was really used; one that is missing is named with the reason, and the CPU
takes its place. The services need none of this: they test the analysis at their start. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from aeic.pixels import from_tensor, to_tensor
from aeic.quantise import hyper_size
from aeic.runtime import cuda
from aeic_nets.integer.export import export_entropy
from aeic_nets.official.golden_weights import golden_picture
from aeic_train.export.tables import hyper_medians
from benchmarks.golden_bundle import golden_codec, write_golden_bundle
from edge_encoder.encoding.execution_provider import takes_bytes

SIZES = ((512, 768), (1088, 1920), (256, 192))
TOLERANCE = 0.02

Feeds = dict[str, NDArray[Any]]


def open_on(path: Path, wanted: str) -> tuple[onnxruntime.InferenceSession, str]:
    """The session on ``wanted`` and what it really runs on; on the CPU, with the reason printed, where that fails."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    cpu = onnxruntime.InferenceSession(str(path), options, providers=[cuda.CPU])
    if wanted == "cpu":
        return cpu, cuda.CPU
    first = cuda.TENSORRT if wanted == "tensorrt" else cuda.CUDA
    if first not in onnxruntime.get_available_providers():
        print(f"{path.name}: this build of ONNX Runtime has no {first}, the CPU takes its place")
        return cpu, cuda.CPU
    cuda.prepare()
    cache, picture = path.parent / "engines", cpu.get_inputs()[0].name
    lists = cuda.providers(wanted, path, picture, cache, channels_last=takes_bytes(cpu))
    session = onnxruntime.InferenceSession(str(path), options, providers=lists)
    session.disable_fallback()
    got = session.get_providers()[0]
    if got != first:
        print(f"{path.name}: ONNX Runtime gave {got} instead of {first}; see its log")
    return session, got


def placement(path: Path, wanted: str, scratch: Path) -> dict[str, int]:
    """How many nodes of the graph run on each provider, by ONNX Runtime's own profile of one run.

    Nodes that compute shapes belong on the CPU, and are counted apart.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / f"profile-{path.stem}")
    first = {"cuda": cuda.CUDA, "tensorrt": cuda.TENSORRT}.get(wanted)
    cpu = onnxruntime.InferenceSession(str(path), options, providers=[cuda.CPU])
    session = cpu
    if first in onnxruntime.get_available_providers():
        cuda.prepare()
        lists = cuda.providers(wanted, path, cpu.get_inputs()[0].name, path.parent / "engines")
        session = onnxruntime.InferenceSession(str(path), options, providers=lists)
    rng = np.random.default_rng(0)
    sides = {"h": 4, "w": 4, "hz": 1, "wz": 1}
    feeds: Feeds = {}
    for given in session.get_inputs():
        shape = [
            side if isinstance(side, int) else sides.get(side, 1 if index == 0 else 128)
            for index, side in enumerate(given.shape)
        ]
        kind = np.int32 if "int32" in given.type else np.float32
        feeds[given.name] = rng.integers(-2, 3, shape).astype(kind)
    session.run(None, feeds)
    counts: Counter[str] = Counter({"shapes on the CPU": 0})
    for event in json.loads(Path(session.end_profiling()).read_text()):
        facts = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            provider = facts["provider"]
            kinds = {kind for one in facts.get("output_type_shape", []) for kind in one}
            counts["shapes on the CPU" if provider == cuda.CPU and kinds == {"int64"} else provider] += 1
    return dict(counts)


def alternating(
    session: onnxruntime.InferenceSession, one: Feeds, other: Feeds, rounds: int = 6
) -> tuple[float, float]:
    """Milliseconds of ``one`` when it stays, and when it takes turns with ``other``."""
    times: list[list[float]] = [[], []]
    for kind in (0, 1):
        for _ in range(rounds):
            if kind:
                session.run(None, other)
            begin = time.perf_counter()
            session.run(None, one)
            times[kind].append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times[0])), float(np.median(times[1]))


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("se", "me"), default="se")
    parser.add_argument("--provider", choices=("cuda", "tensorrt", "cpu"), default="cuda")
    parser.add_argument("--sizes", default=",".join(f"{w}x{h}" for h, w in SIZES), help="WIDTHxHEIGHT, with commas")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    sides = (size.split("x") for size in options.sizes.split(","))
    sizes = [(int(height), int(width)) for width, height in sides]
    pictures = {size: from_tensor(golden_picture(*size, 1.0).numpy()[0]) for size in sizes}
    codec = golden_codec(options.profile)
    report: dict[str, Any] = {"bench": "gpu known answers", "provider": options.provider, "checks": {}}

    def note(name: str, ok: bool, **facts: Any) -> None:
        report["checks"][name] = {"ok": bool(ok)} | facts
        print(f"{name:38} {'ok' if ok else 'FAILED':7} {facts}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = write_golden_bundle(codec, folder / "cpu")
        latents = [codec.g_a(golden_picture(256, 384, phase)) for phase in (0.0, 3.0)]
        export_entropy(codec, latents, folder / "gpu", hyper_medians(codec), target="gpu")
        exact = bundle.session("analysis")
        wanted = {size: exact.run(None, {"image": to_tensor(rgb)})[0] for size, rgb in pictures.items()}
        for graph in ("analysis.onnx", "analysis_half.onnx"):
            session, got = open_on(bundle.path / graph, options.provider)
            given: dict[tuple[int, int], Feeds] = {
                size: {"pixels": rgb[None]} if takes_bytes(session) else {"image": to_tensor(rgb)}
                for size, rgb in pictures.items()
            }
            for height, width in sizes:
                y = wanted[height, width]
                error = float(np.abs(session.run(None, given[height, width])[0] - y).max() / np.abs(y).max())
                note(f"{graph} {width}x{height}", error <= TOLERANCE, error=round(error, 5), provider=got)
            stays, turns = alternating(session, given[sizes[0]], given[sizes[-1]])
            note(f"{graph} alternating sizes", True, stays_ms=round(stays, 1), alternating_ms=round(turns, 1))
        session, got = open_on(folder / "gpu" / "entropy.onnx", "cuda" if options.provider != "cpu" else "cpu")
        for file in (bundle.path / "analysis.onnx", folder / "gpu" / "entropy.onnx"):
            placed = placement(file, options.provider, folder)
            left = sum(count for name, count in placed.items() if name == cuda.CPU)
            shapes = placed.pop("shapes on the CPU")
            note(f"nodes of {file.name}", options.provider == "cpu" or not left, shapes_on_cpu=shapes, **placed)
        exact = bundle.session("entropy")
        rng = np.random.default_rng(0)
        for (height, width), y in wanted.items():
            hyper = (1, bundle.hyper_channels, *hyper_size(*y.shape[2:]))
            feeds = {"y": y, "z_symbols": rng.integers(-3, 4, hyper).astype(np.int32)}
            pairs = zip(exact.run(None, feeds), session.run(None, feeds), strict=True)
            different = sum(int((one != other).sum()) for one, other in pairs)
            note(f"entropy model {width}x{height}", different == 0, different=different, provider=got)
        note(f"{options.provider} was used", options.provider == "cpu" or got != cuda.CPU, provider=got)
    report["ok"] = all(check["ok"] for check in report["checks"].values())
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
