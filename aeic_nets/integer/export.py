"""The bundle's entropy graphs from an integer model: hyper_synthesis, context_0..3, and all of it in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from aeic.passes import PASS_COUNT, pass_mask
from aeic.profiles import SCALE_MAX
from aeic.tables import Rows, gaussian_rows
from aeic_nets.codec import Codec
from aeic_nets.integer import network
from aeic_nets.integer.calibrate import calibrate, quantise
from aeic_nets.integer.graph import FLOAT, INT8, INT16, INT32, Graph
from aeic_nets.integer.indexes import COARSE, FINE, SWITCH, index_table
from aeic_nets.integer.lower_cpu import CpuLowering
from aeic_nets.integer.lower_gpu import FloatLowering
from aeic_nets.integer.model import IntegerModel, Site
from aeic_nets.integer.proof import prove

Target = Literal["cpu", "gpu"]
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def export_entropy(
    codec: Codec,
    calibration: Sequence[Tensor] | dict[str, Site],
    folder: Path,
    medians: NDArray[np.float32] | None = None,
    target: Target = "cpu",
) -> IntegerModel:
    """Write hyper_synthesis.onnx, context_0..3.onnx and entropy.onnx into ``folder``.

    ``calibration``: sample latents, y with gain (N, M, h, w) each, or the sites that ``enable_quantisation`` returned.
    ``medians`` (Cz,) of z, default 0; the rounded ones, which the bundle's ``z_medians`` must be, are in the result.
    ``ExactnessError`` if the proof fails; nothing is written then.
    """
    sites = calibration if isinstance(calibration, dict) else calibrate(codec, calibration)
    model = quantise(codec, sites, medians)
    write_graphs(model, folder, target)
    return model


def write_graphs(model: IntegerModel, folder: Path, target: Target = "cpu") -> None:
    """The files of :func:`export_entropy` for a model at hand."""
    prove(model)
    files = {"hyper_synthesis": hyper_synthesis_graph(model, target), "entropy": entropy_graph(model, target)}
    files |= {f"context_{index}": context_graph(model, index, target) for index in range(PASS_COUNT)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)


def hyper_synthesis_graph(model: IntegerModel, target: Target) -> bytes:
    """z_symbols (N, Cz, hz, wz) int32 to base (N, M, 4hz, 4wz) float32."""
    g = Graph()
    base = g.op("Transpose", _hyper(model, g, _lowering(model, g, target)), perm=TO_FIRST)
    sizes = model.sizes
    symbols = _info("z_symbols", INT32, sizes.hyper_channels, "hz", "wz")
    return g.model([symbols], {"base": (base, _info("base", FLOAT, sizes.latent_channels))}, "hyper_synthesis")


def context_graph(model: IntegerModel, index: int, target: Target) -> bytes:
    """base (N, M, h, w) float32 to means of the same shape and dtype, and indexes int8."""
    g = Graph()
    channels = model.sizes.latent_channels
    base = g.op("Transpose", "base", perm=TO_LAST)
    means, scales = network.context(_lowering(model, g, target), index, base, model.sizes)
    found = g.op("Gather", g.constant(index_table(), np.int8), _cells(g, scales), axis=0)
    outputs = {
        "means": (g.op("Transpose", means, perm=TO_FIRST), _info("means", FLOAT, channels)),
        "indexes": (g.op("Transpose", found, perm=TO_FIRST), _info("indexes", INT8, channels)),
    }
    return g.model([_info("base", FLOAT, channels)], outputs, f"context_{index}")


def entropy_graph(model: IntegerModel, target: Target) -> bytes:
    """y (1, M, h, w) float32, even sides, and z_symbols (1, Cz, ceil(h/4), ceil(w/4)) int32 to symbols int16, indexes
    int8 and y_hat float32, each (1, M, h, w): hyper synthesis, four passes, rounding, clipping and skipping."""
    g = Graph()
    channels, quarter = model.sizes.latent_channels, model.sizes.latent_channels // PASS_COUNT
    lowering = _lowering(model, g, target)
    y = g.op("Transpose", "y", perm=TO_LAST)
    sides = g.op("Slice", g.op("Shape", y), *(g.constant([k], np.int64) for k in (1, 3)))
    start = g.constant([0, 0], np.int64)
    base = g.op("Slice", _hyper(model, g, lowering), start, sides, g.constant([1, 2], np.int64))
    halves = g.op("Div", sides, g.constant([2, 2], np.int64))
    repeats = g.op("Concat", g.constant([1], np.int64), halves, g.constant([1], np.int64), axis=0)
    packed_table = g.constant(_packed_table(), np.float32)
    symbols = indexes = ""
    for index in range(PASS_COUNT):
        tile = pass_mask(index, channels, 2, 2).transpose(1, 2, 0)[None]
        mask = g.op("Tile", g.constant(tile, np.bool_), repeats)
        firsts = [tile[..., k : k + 1] for k in range(0, channels, quarter)]
        groups = [g.op("Tile", g.constant(first, np.bool_), repeats) for first in firsts]
        means, scales = network.context(lowering, index, base, model.sizes)
        # Of each position only the group that is coded here, so that what follows is a quarter of the work.
        y_here, means, scales = (_pick(g, part, groups) for part in (y, means, scales))
        packed = g.op("Gather", packed_table, _cells(g, scales), axis=0)
        limit = g.op("Floor", g.times(packed, 2.0**-7))
        found = g.op("Sub", packed, g.times(limit, 2.0**7))
        rounded = g.op("Round", g.op("Sub", y_here, means))
        rounded = g.op("Max", g.op("Min", rounded, limit), g.op("Neg", limit))
        base = g.op("Where", mask, _repeat(g, g.op("Add", rounded, means)), base)
        zero = g.constant(0, np.float32)
        symbols = g.op("Where", mask, _repeat(g, rounded), symbols or zero)
        indexes = g.op("Where", mask, _repeat(g, found), indexes or zero)
    indexes = g.op("Sub", indexes, g.constant(1, np.float32))
    outputs = {
        "symbols": (_output(g, symbols, INT16), _info("symbols", INT16, channels)),
        "indexes": (_output(g, indexes, INT8), _info("indexes", INT8, channels)),
        "y_hat": (g.op("Transpose", base, perm=TO_FIRST), _info("y_hat", FLOAT, channels)),
    }
    inputs = [_info("y", FLOAT, channels), _info("z_symbols", INT32, model.sizes.hyper_channels, "hz", "wz")]
    return g.model(inputs, outputs, "entropy")


def symbol_limits() -> NDArray[np.float32]:
    """(64,) the largest symbol of each coding table; the tables are symmetric."""
    limits = Rows(*gaussian_rows()).highest
    return limits


def _packed_table() -> NDArray[np.float64]:
    """By cell: 128 * largest symbol + index + 1; 0 where skipped."""
    table = index_table().astype(np.int64)
    return np.where(table < 0, 0, 128 * symbol_limits()[table] + table + 1).astype(np.float64)


def _lowering(model: IntegerModel, graph: Graph, target: Target) -> FloatLowering:
    return CpuLowering(model, graph) if target == "cpu" else FloatLowering(model, graph)


def _hyper(model: IntegerModel, g: Graph, lowering: FloatLowering) -> str:
    last = g.op("Transpose", g.op("Cast", "z_symbols", to=FLOAT), perm=TO_LAST)
    z = g.op("Add", last, g.constant(model.medians, np.float32))
    return network.hyper_synthesis(lowering, z, model.sizes)


def _cells(g: Graph, scales: str) -> str:
    """The same as :func:`indexes.cells`, int32."""
    low, high = g.constant(0, np.float32), g.constant(SCALE_MAX, np.float32)
    clipped = g.op("Clip", scales, low, high)
    fine = g.op("Floor", g.times(g.op("Min", clipped, g.constant(SWITCH, np.float32)), FINE))
    return g.op("Cast", g.op("Add", fine, g.op("Floor", g.times(clipped, COARSE))), to=INT32)


def _pick(g: Graph, x: str, groups: list[str]) -> str:
    """(1, h, w, M) to (1, h, w, M/4): of each position the group of channels whose mask is set there."""
    parts = g.ops("Split", len(groups), x, axis=-1, num_outputs=len(groups))
    picked = parts[-1]
    for mask, part in zip(groups[:-1], parts):
        picked = g.op("Where", mask, part, picked)
    return picked


def _repeat(g: Graph, x: str) -> str:
    return g.op("Concat", *[x] * PASS_COUNT, axis=-1)


def _output(g: Graph, x: str, dtype: int) -> str:
    return g.op("Transpose", g.op("Cast", x, to=dtype), perm=TO_FIRST)


def _info(name: str, dtype: int, channels: int, height: str = "h", width: str = "w") -> Any:
    return helper.make_tensor_value_info(name, dtype, ["n", channels, height, width])
