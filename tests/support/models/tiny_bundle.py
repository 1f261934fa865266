"""A complete bundle of some 100 kB with random weights, in the form of the real one: what tests use instead of a model.

It averages blocks of 32 x 32 pixels, mixes the three colours into eight latents and, on the way back, un-mixes them:
so a decoded picture is a blurred version of the original, and every file, shape and dtype is that of a trained bundle.
Its entropy graphs compute with few-bit dyadic numbers and are exact anywhere. Needs numpy and onnx only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from aeic.tables import gaussian_rows, rows_from_pmf

CHANNELS, HYPER_CHANNELS, RATES = 8, 4, 2
DEFINES = ["tables.npz", "hyper_synthesis.onnx", *(f"context_{i}.onnx" for i in range(4)), "synthesis.onnx"]


def write_tiny_bundle(folder: str | Path, seed: int = 0) -> Path:
    """Write the bundle of ``seed`` into ``folder`` (made if missing) and return its path. Same seed, same bytes."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(CHANNELS, 3)).astype(np.float32) * 30
    medians = _dyadic(rng.uniform(-0.5, 0.5, HYPER_CHANNELS), 4)
    _write_analysis(path, mix)
    _write_hyper(path, rng, medians)
    for index in range(4):
        _write_context(path, index, rng)
    _write_synthesis(path, mix)
    _write_tables(path, rng, medians)
    (path / "model_card.md").write_text("# tiny\n\nRandom weights, for tests.\n")
    (path / "weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    _write_manifest(path)
    return path


def _dyadic(values: NDArray[np.float64], steps: int = 64) -> NDArray[np.float32]:
    """Multiples of 1/steps: the entropy graphs' sums are exact in float32, so that any processor gives the same."""
    return (np.rint(values * steps) / steps).astype(np.float32)


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: NDArray[Any]) -> None:
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = h.make_graph(nodes, path.stem, inputs, outputs, weights)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9, producer_name="tiny")
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _tensor(name: str, dtype: int, channels: int, height: str = "h", width: str = "w") -> Any:
    return h.make_tensor_value_info(name, dtype, ["n", channels, height, width])


def _write_analysis(path: Path, mix: NDArray[np.float32]) -> None:
    nodes = [
        h.make_node("AveragePool", ["image"], ["blocks"], kernel_shape=[32, 32], strides=[32, 32]),
        h.make_node("Conv", ["blocks", "mix"], ["y"]),
    ]
    image, y = _tensor("image", T.FLOAT, 3, "H", "W"), _tensor("y", T.FLOAT, CHANNELS)
    _save(path / "analysis.onnx", nodes, [image], [y], mix=mix[:, :, None, None])


def _write_hyper(path: Path, rng: np.random.Generator, medians: NDArray[np.float32]) -> None:
    down = rng.normal(size=(HYPER_CHANNELS, CHANNELS, 1, 1)).astype(np.float32) / 4
    nodes = [
        h.make_node("AveragePool", ["y"], ["blocks"], kernel_shape=[4, 4], strides=[4, 4]),
        h.make_node("Conv", ["blocks", "down"], ["z"]),
    ]
    y, z = _tensor("y", T.FLOAT, CHANNELS), _tensor("z", T.FLOAT, HYPER_CHANNELS, "hz", "wz")
    _save(path / "hyper_analysis.onnx", nodes, [y], [z], down=down)
    nodes = [
        h.make_node("Cast", ["z_symbols"], ["z_float"], to=T.FLOAT),
        h.make_node("Add", ["z_float", "medians"], ["z_hat"]),
        h.make_node("Conv", ["z_hat", "up"], ["coarse"]),
        h.make_node("Resize", ["coarse", "", "scales"], ["base"], mode="nearest"),
    ]
    symbols, base = _tensor("z_symbols", T.INT32, HYPER_CHANNELS, "hz", "wz"), _tensor("base", T.FLOAT, CHANNELS)
    up = _dyadic(np.linalg.pinv(down[:, :, 0, 0].astype(np.float64)), 16)
    scales = np.array([1, 1, 4, 4], np.float32)
    constants = {"up": up[:, :, None, None], "medians": medians[None, :, None, None], "scales": scales}
    _save(path / "hyper_synthesis.onnx", nodes, [symbols], [base], **constants)


def _write_context(path: Path, index: int, rng: np.random.Generator) -> None:
    """Means and indexes are 3 x 3 convolutions; the indexes are floored and clipped to -1..63, so some are skipped."""
    average = np.eye(CHANNELS)[:, :, None, None] / 8 + rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 128
    spread = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / 32
    nodes = [
        h.make_node("Conv", ["base", "average"], ["raw_means"], pads=[1, 1, 1, 1]),
        h.make_node("Mul", ["raw_means", "sixteen"], ["scaled"]),  # means on a grid of 1/16, so that y_hat is exact
        h.make_node("Round", ["scaled"], ["rounded"]),
        h.make_node("Div", ["rounded", "sixteen"], ["means"]),
        h.make_node("Conv", ["base", "spread", "bias"], ["raw_indexes"], pads=[1, 1, 1, 1]),
        h.make_node("Floor", ["raw_indexes"], ["floored"]),
        h.make_node("Clip", ["floored", "low", "high"], ["clipped"]),
        h.make_node("Cast", ["clipped"], ["indexes"], to=T.INT8),
    ]
    base, means, indexes = (
        _tensor("base", T.FLOAT, CHANNELS),
        _tensor("means", T.FLOAT, CHANNELS),
        _tensor("indexes", T.INT8, CHANNELS),
    )
    constants = {
        "average": _dyadic(average),
        "spread": _dyadic(spread),
        "bias": _dyadic(np.linspace(-5, 38, CHANNELS)),
        "sixteen": np.array(16, np.float32),
        "low": np.array(-1, np.float32),
        "high": np.array(63, np.float32),
    }
    _save(path / f"context_{index}.onnx", nodes, [base], [means, indexes], **constants)


def _write_synthesis(path: Path, mix: NDArray[np.float32]) -> None:
    nodes = [
        h.make_node("Conv", ["y_hat", "unmix"], ["blocks"]),
        h.make_node("Clip", ["blocks", "low", "high"], ["colours"]),
        h.make_node("Resize", ["colours", "", "scales"], ["image"], mode="linear"),
    ]
    y_hat, image = _tensor("y_hat", T.FLOAT, CHANNELS), _tensor("image", T.FLOAT, 3, "H", "W")
    constants = {
        "unmix": np.linalg.pinv(mix.astype(np.float64)).astype(np.float32)[:, :, None, None],
        "low": np.array(-1, np.float32),
        "high": np.array(1, np.float32),
        "scales": np.array([1, 1, 32, 32], np.float32),
    }
    _save(path / "synthesis.onnx", nodes, [y_hat], [image], **constants)


def _write_tables(path: Path, rng: np.random.Generator, medians: NDArray[np.float32]) -> None:
    y_lengths, y_offsets, y_freqs = gaussian_rows()
    reaches = rng.integers(5, 24, RATES * HYPER_CHANNELS)
    pmfs = [np.exp(-np.abs(np.arange(-reach, reach + 1)) / 3.0) for reach in reaches]
    z_lengths, z_offsets, z_freqs = rows_from_pmf(pmfs, [-int(reach) for reach in reaches])
    gains = np.array([[0.5], [2.0]], np.float32) * np.ones((RATES, CHANNELS), np.float32)
    np.savez_compressed(
        path / "tables.npz",
        y_lengths=y_lengths,
        y_offsets=y_offsets,
        y_freqs=y_freqs,
        z_lengths=z_lengths.reshape(RATES, HYPER_CHANNELS),
        z_offsets=z_offsets.reshape(RATES, HYPER_CHANNELS),
        z_freqs=z_freqs,
        z_medians=medians,
        gains=gains,
        inverse_gains=1 / gains,
    )


def _write_manifest(path: Path) -> None:
    names = sorted(file.name for file in path.iterdir() if file.name != "bundle.json")
    files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(DEFINES))
    manifest = {
        "format": 1,
        "name": "tiny",
        "profile": "tiny",
        "latent_channels": CHANNELS,
        "hyper_channels": HYPER_CHANNELS,
        "rates": [{"name": "r1", "bpp": 0.05}, {"name": "r2", "bpp": 0.1}],
        "default_rate": 0,
        "defines_bitstream": DEFINES,
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest()[:6],
        "files": files,
        "card": {"note": "random weights, for tests"},
    }
    (path / "bundle.json").write_text(json.dumps(manifest, indent=1) + "\n")
