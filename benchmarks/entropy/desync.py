"""Counts the frames that are lost when two machines compute the entropy model differently, in integers and float32.

    aeic bench desync --profile se [--frames 200]

Crops of photographs in many sizes are encoded by the edge (ONNX Runtime) and their latents decoded by the cloud path
and by other implementations of the same model: the integer definition in its form for GPUs (float32 products of whole
numbers), and, for the float32 entropy model of the research code, PyTorch instead of ONNX Runtime. The weights are
generated from the names of the tensors. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel
from aeic.errors import BitstreamError
from aeic.latent_codec import LatentCodec
from aeic.pixels import load_picture
from aeic.quantise import check_value
from aeic_nets.codec import Codec
from aeic_nets.integer.export import export_entropy
from aeic_nets.official.golden_weights import golden_picture
from aeic_train.export.onnx_graphs import ContextGraph, HyperSynthesisGraph
from aeic_train.export.tables import hyper_medians
from benchmarks.golden_bundle import golden_codec, write_golden_bundle
from edge_encoder.encoding.encoder import Encoder


class GpuForm(EntropyModel):
    """The integer model in its form for GPUs, loaded from another folder and run on the CPU."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        super().__init__(bundle, 1)
        names = ("hyper_synthesis", *(f"context_{i}" for i in range(4)))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in names
        }

    def _run(self, name: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._sessions[name].run(None, inputs)
        return found


class TorchForm(EntropyModel):
    """The float32 model in PyTorch, as a decoder on another runtime would compute it."""

    def __init__(self, bundle: Bundle, codec: Codec) -> None:
        super().__init__(bundle, 1)
        self._graphs: dict[str, torch.nn.Module] = {f"context_{i}": ContextGraph(codec, i) for i in range(4)}
        self._graphs["hyper_synthesis"] = HyperSynthesisGraph(codec)

    def _run(self, name: str, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
        (value,) = inputs.values()
        with torch.inference_mode():
            found = self._graphs[name](torch.from_numpy(value))
        return [part.numpy() for part in (found if isinstance(found, tuple) else (found,))]


def crops(pictures: Path, frames: int) -> Iterator[NDArray[np.uint8]]:
    """``frames`` crops of the photographs in a folder, with sides of 96 to 288 pixels; the same crops every time."""
    photographs = [load_picture(p) for p in sorted(pictures.iterdir()) if p.suffix in (".jpg", ".png", ".webp")]
    rng = np.random.default_rng(0)
    for number in range(frames):
        rgb = photographs[number % len(photographs)]
        height, width = (int(rng.integers(96, min(288, side))) for side in rgb.shape[:2])
        top, left = int(rng.integers(rgb.shape[0] - height)), int(rng.integers(rgb.shape[1] - width))
        yield np.ascontiguousarray(rgb[top : top + height, left : left + width])


def check_of_symbols(z: Any, y: Any, y_hat: NDArray[np.float32], *rest: Any) -> int:
    """The check value without y_hat, because the y_hat of the float32 model may differ in its last bits."""
    return check_value(z, y, np.zeros(0, np.float32), *rest)


def lenient(kind: str) -> AbstractContextManager[Any]:
    return mock.patch("aeic.latent_codec.check_value", check_of_symbols) if kind == "float32" else nullcontext()


def with_model(bundle: Bundle, model: EntropyModel) -> LatentCodec:
    codec = LatentCodec(bundle, threads=1)
    codec._model = model
    return codec


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="aeic bench desync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=("se", "me"), default="se")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--pictures", type=Path, default=Path("examples"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    codec = golden_codec(options.profile)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exact = write_golden_bundle(codec, folder / "exact")
        plain = write_golden_bundle(codec, folder / "float", exact=False)
        latents = [codec.g_a(golden_picture(256, 384, phase)) for phase in (0.0, 3.0)]
        export_entropy(codec, latents, folder / "gpu", hyper_medians(codec), target="gpu")
        edges = {"integers": Encoder.from_bundle(exact.path, 1), "float32": Encoder.from_bundle(plain.path, 1)}
        clouds = {
            ("integers", "cloud path"): LatentCodec(Bundle.load(exact.path), threads=2),
            ("integers", "form for GPUs"): with_model(exact, GpuForm(exact, folder / "gpu")),
            ("float32", "cloud path"): LatentCodec(Bundle.load(plain.path), threads=2),
            ("float32", "PyTorch"): with_model(plain, TorchForm(plain, codec)),
        }
        lost = dict.fromkeys(clouds, 0)
        for rgb in crops(options.pictures, options.frames):
            frames = {}
            for kind, edge in edges.items():
                with lenient(kind):
                    frames[kind] = edge.encode(rgb).data
            for (kind, way), decoder in clouds.items():
                with lenient(kind):
                    try:
                        decoder.decode(frames[kind])
                    except BitstreamError:
                        lost[kind, way] += 1
    for (kind, way), count in lost.items():
        print(f"{kind:9} edge by ONNX Runtime, decoded by {way:14} {count:4} of {options.frames} lost")
    table = {kind: {way: count for (k, way), count in lost.items() if k == kind} for kind in edges}
    ok = not any(table["integers"].values())
    seconds = round(time.perf_counter() - begin, 1)
    print(json.dumps({"bench": "desync", "frames": options.frames, "lost": table, "ok": ok, "seconds": seconds}))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
