"""A bundle at the limits of the format, for golden frames: 4 channels of y, one of z, 32 rate points, extreme tables.

Its y tables have one entry, two entries of the most unequal weights, and 16,384 entries; some offsets are far from
zero. Its graphs use element-wise operations only, on few-bit dyadic numbers, so they are exact on any machine, and some
of their means are negative zeros. It has no decoder: it is about latents.
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

CHANNELS, HYPER_CHANNELS, RATES = 4, 1, 32
DEFINES = ["tables.npz", "hyper_synthesis.onnx", *(f"context_{i}.onnx" for i in range(4))]
TOTAL = 1 << 24
Row = tuple[int, list[int]]  # (first value, frequencies)


def write_extreme_bundle(folder: Path) -> Path:
    """Write the bundle into ``folder`` (made if missing) and return its path. Always the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_encoder_graphs(folder)
    _write_hyper_synthesis(folder)
    for index in range(4):
        _write_context(folder, index)
    _write_tables(folder)
    names = sorted(file.name for file in folder.iterdir() if file.name != "bundle.json")
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(DEFINES))
    manifest = {
        "format": 1,
        "name": "extreme",
        "latent_channels": CHANNELS,
        "hyper_channels": HYPER_CHANNELS,
        "rates": [{"name": f"r{rate}", "bpp": 0.01 * (rate + 1)} for rate in range(RATES)],
        "default_rate": 0,
        "defines_bitstream": DEFINES,
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest()[:6],
        "files": files,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


def y_rows() -> list[Row]:
    """The 64 tables of y."""
    even = TOTAL // 2
    special: list[Row] = [
        (0, [TOTAL]),  # certain: always 0
        (3, [TOTAL]),  # certain: always 3
        (0, [1, TOTAL - 1]),
        (-1, [even, even]),
        (-8192, [1024] * 16384),
        (-3, [TOTAL - 6, 1, 1, 1, 1, 1, 1]),
    ]
    return special + [(-reach, _triangle(reach)) for reach in range(len(special), 64)]


def z_rows() -> list[Row]:
    """The table of z for each of the 32 rate points."""
    kinds: list[Row] = [(0, [TOTAL]), (-20, _triangle(20)), (8, [TOTAL]), (-8192, [1024] * 16384)]
    return [kinds[rate % 4] for rate in range(RATES)]


def _triangle(reach: int) -> list[int]:
    """2 * reach + 1 weights, falling to both sides; the middle takes what is left of 2**24."""
    side = [TOTAL // (reach + 1) ** 2 * (k + 1) for k in range(reach)]
    return [*side, TOTAL - 2 * sum(side), *side[::-1]]


def _write_tables(folder: Path) -> None:
    y, z = y_rows(), z_rows()
    gains = np.repeat(2.0 ** (np.arange(RATES)[:, None] % 5 - 2), CHANNELS, axis=1).astype(np.float32)
    ints: dict[str, NDArray[np.int32]] = {}
    for name, rows in (("y", y), ("z", z)):
        shape = (RATES, HYPER_CHANNELS) if name == "z" else (len(rows),)
        ints[f"{name}_lengths"] = np.array([len(freqs) for _, freqs in rows], np.int32).reshape(shape)
        ints[f"{name}_offsets"] = np.array([first for first, _ in rows], np.int32).reshape(shape)
        ints[f"{name}_freqs"] = np.array([freq for _, freqs in rows for freq in freqs], np.int32)
    medians = np.array([0.25], np.float32)
    floats = {"z_medians": medians, "gains": gains, "inverse_gains": 1 / gains}
    np.savez_compressed(folder / "tables.npz", **ints, **floats)


def _write_encoder_graphs(folder: Path) -> None:
    nodes = [
        h.make_node("AveragePool", ["image"], ["blocks"], kernel_shape=[32, 32], strides=[32, 32]),
        h.make_node("Slice", ["blocks", "zero", "one", "one"], ["red"]),
        h.make_node("Concat", ["blocks", "red"], ["y"], axis=1),
    ]
    limits = {"zero": np.array([0]), "one": np.array([1])}
    _save(folder, "analysis", nodes, [_tensor("image", T.FLOAT, 3)], [_tensor("y", T.FLOAT, CHANNELS)], **limits)
    nodes = [
        h.make_node("AveragePool", ["y"], ["blocks"], kernel_shape=[4, 4], strides=[4, 4]),
        h.make_node("Slice", ["blocks", "zero", "one", "one"], ["z"]),
    ]
    z = _tensor("z", T.FLOAT, HYPER_CHANNELS)
    _save(folder, "hyper_analysis", nodes, [_tensor("y", T.FLOAT, CHANNELS)], [z], **limits)


def _write_hyper_synthesis(folder: Path) -> None:
    """base = (z + 1/4) times 1/4, -1/2, 3/4, -1 for the four channels, each element 4 x 4 times."""
    nodes = [
        h.make_node("Cast", ["z_symbols"], ["z_float"], to=T.FLOAT),
        h.make_node("Add", ["z_float", "median"], ["z_hat"]),
        h.make_node("Mul", ["z_hat", "slopes"], ["coarse"]),
        h.make_node("Resize", ["coarse", "", "scales"], ["base"], mode="nearest"),
    ]
    constants = {
        "median": np.array(0.25, np.float32),
        "slopes": np.array([0.25, -0.5, 0.75, -1], np.float32)[None, :, None, None],
        "scales": np.array([1, 1, 4, 4], np.float32),
    }
    symbols, base = _tensor("z_symbols", T.INT32, HYPER_CHANNELS), _tensor("base", T.FLOAT, CHANNELS)
    _save(folder, "hyper_synthesis", nodes, [symbols], [base], **constants)


def _write_context(folder: Path, index: int) -> None:
    """Channel c: mean = round(4 base[c + 1]) / 16, index = floor(|base[c + 2]|) - 1, at most 63."""
    nodes = [
        *_rolled("base", "next", 1),
        *_rolled("base", "second", 2),
        h.make_node("Mul", ["next", "four"], ["scaled"]),
        h.make_node("Round", ["scaled"], ["rounded"]),
        h.make_node("Div", ["rounded", "sixteen"], ["means"]),
        h.make_node("Abs", ["second"], ["size"]),
        h.make_node("Floor", ["size"], ["whole"]),
        h.make_node("Sub", ["whole", "unit"], ["lower"]),
        h.make_node("Min", ["lower", "last"], ["clipped"]),
        h.make_node("Cast", ["clipped"], ["indexes"], to=T.INT8),
    ]
    constants = {
        "four": np.array(4, np.float32),
        "sixteen": np.array(16, np.float32),
        "unit": np.array(1, np.float32),
        "last": np.array(63, np.float32),
        "zero": np.array([0]),
        "axis": np.array([1]),
        "end": np.array([CHANNELS]),
        "by_1": np.array([1]),
        "by_2": np.array([2]),
    }
    outputs = [_tensor("means", T.FLOAT, CHANNELS), _tensor("indexes", T.INT8, CHANNELS)]
    _save(folder, f"context_{index}", nodes, [_tensor("base", T.FLOAT, CHANNELS)], outputs, **constants)


def _rolled(source: str, target: str, by: int) -> list[Any]:
    return [
        h.make_node("Slice", [source, f"by_{by}", "end", "axis"], [f"{target}_front"]),
        h.make_node("Slice", [source, "zero", f"by_{by}", "axis"], [f"{target}_back"]),
        h.make_node("Concat", [f"{target}_front", f"{target}_back"], [target], axis=1),
    ]


def _save(folder: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> None:
    weights = [numpy_helper.from_array(value, constant) for constant, value in constants.items()]
    graph = h.make_graph(nodes, name, inputs, outputs, weights)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9, producer_name="extreme")
    onnx.checker.check_model(model)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def _tensor(name: str, dtype: int, channels: int) -> Any:
    return h.make_tensor_value_info(name, dtype, ["n", channels, f"{name}_h", f"{name}_w"])
