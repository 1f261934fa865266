"""Writes the bundle's entropy graphs from an integer model: hyper_synthesis, context_0..3, and entropy with all of
them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from aeic.passes import PASS_COUNT
from aeic.profiles import SCALE_MAX
from aeic_nets.integer import network
from aeic_nets.integer.lower_cpu import CpuLowering
from aeic_nets.integer.lower_gpu import FloatLowering, classes, coded_groups
from aeic_nets.integer.model import IntegerModel, Site
from aeic_nets.integer.onnx_builder import FLOAT, INT8, INT16, INT32, Graph
from aeic_nets.integer.proof import prove
from aeic_nets.integer.scale_index import COARSE, FINE, SWITCH, index_table, symbol_limits

if TYPE_CHECKING:
    from aeic_nets.codec import Codec

Target = Literal["cpu", "gpu"]
OPSETS: dict[Target, int] = {"cpu": 20, "gpu": 18}
"""Every operator of the graphs for GPUs has a CUDA kernel at opset 18. ONNX Runtime has none for Pad of opset 19 and
ConstantOfShape of opset 20, and would run them on the CPU with copies on both sides."""
GPU_ENTROPY = "entropy_gpu.onnx"
"""The entropy graph for GPUs in a bundle: an auxiliary file, which an edge on a GPU runs."""
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def export_entropy(
    codec: Codec,
    calibration: Sequence[Tensor] | dict[str, Site],
    folder: Path,
    medians: NDArray[np.float32] | None = None,
    target: Target = "cpu",
    readable: bool = False,
) -> IntegerModel:
    """Write hyper_synthesis.onnx, context_0..3.onnx and entropy.onnx into ``folder``.

    ``calibration``: sample latents, y with gain (N, M, h, w) each, or the sites that ``enable_quantisation`` returned.
    ``medians`` (Cz,) of z, default 0; the rounded ones, which the bundle's ``z_medians`` must be, are in the result.
    ``readable``: names in the graphs begin with their layer. ``ExactnessError`` if the proof fails; nothing is written
    then.
    """
    # Here, because it needs CompressAI, and write_gpu_entropy is for machines that lack it.
    from aeic_nets.integer.calibrate import calibrate, quantise

    sites = calibration if isinstance(calibration, dict) else calibrate(codec, calibration)
    model = quantise(codec, sites, medians)
    write_graphs(model, folder, target, readable)
    return model


def write_graphs(model: IntegerModel, folder: Path, target: Target = "cpu", readable: bool = False) -> None:
    """Write the files of :func:`export_entropy` for a given model."""
    prove(model)
    files = {
        "hyper_synthesis": hyper_synthesis_graph(model, target, readable),
        "entropy": entropy_graph(model, target, readable),
    }
    files |= {f"context_{index}": context_graph(model, index, target, readable) for index in range(PASS_COUNT)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)


def write_gpu_entropy(model: IntegerModel, folder: Path) -> None:
    """Write the entropy graph for GPUs, float32 weights of four times the size."""
    prove(model)
    (folder / GPU_ENTROPY).write_bytes(entropy_graph(model, "gpu"))


def hyper_synthesis_graph(model: IntegerModel, target: Target, readable: bool = False) -> bytes:
    """z_symbols (N, Cz, hz, wz) int32 to base (N, M, 4hz, 4wz) float32."""
    g = Graph(readable, OPSETS[target])
    base = g.op("Transpose", _hyper(model, g, _lowering(model, g, target)), perm=TO_FIRST)
    sizes = model.sizes
    symbols = _info("z_symbols", INT32, sizes.hyper_channels, "hz", "wz")
    return g.model([symbols], {"base": (base, _info("base", FLOAT, sizes.latent_channels))}, "hyper_synthesis")


def context_graph(model: IntegerModel, index: int, target: Target, readable: bool = False) -> bytes:
    """base (N, M, h, w) float32, even sides, to means of the same shape and dtype, and indexes int8.

    Only the elements that the pass codes are computed. Elsewhere, means are 0 and indexes are -1.
    """
    g = Graph(readable, OPSETS[target])
    channels = model.sizes.latent_channels
    base = g.op("Transpose", "base", perm=TO_LAST)
    tiling = Tiling(g, g.op("Shape", base))
    means, scales = network.context(_lowering(model, g, target), index, base, model.sizes)
    found = g.op("Gather", g.constant(index_table(), np.int8), _cells(g, scales), axis=0)
    shape = g.op("Shape", g.op("Slice", means, *(g.constant([k], np.int64) for k in (0, 1, 1))))
    outputs = {}
    for name, tiles, dtype, rest in (("means", means, FLOAT, np.float32(0)), ("indexes", found, INT8, np.int8(-1))):
        nothing = g.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([rest])))
        grid = [[nothing] * PASS_COUNT for _ in range(PASS_COUNT)]
        tiling.place(grid, index, tiles)
        outputs[name] = (g.op("Transpose", tiling.join(grid), perm=TO_FIRST), _info(name, dtype, channels))
    return g.model([_info("base", FLOAT, channels)], outputs, f"context_{index}")


def entropy_graph(model: IntegerModel, target: Target, readable: bool = False) -> bytes:
    """y (1, M, h, w) float32, even sides, and z_symbols (1, Cz, ceil(h/4), ceil(w/4)) int32 to symbols int16, indexes
    int8 and y_hat float32, each (1, M, h, w): hyper synthesis, four passes, rounding, clipping and skipping."""
    g = Graph(readable, OPSETS[target])
    channels = model.sizes.latent_channels
    lowering = _lowering(model, g, target)
    y = g.op("Transpose", "y", perm=TO_LAST)
    shape = g.op("Shape", y)
    tiling = Tiling(g, shape)
    sides = g.op("Slice", shape, *(g.constant([k], np.int64) for k in (1, 3)))
    start = g.constant([0, 0], np.int64)
    base = g.op("Slice", _hyper(model, g, lowering), start, sides, g.constant([1, 2], np.int64))
    packed_table = g.constant(_packed_table(), np.float32)
    y_grid, base_grid = tiling.cut(y), tiling.cut(base)
    symbols, indexes = ([[""] * PASS_COUNT for _ in range(PASS_COUNT)] for _ in range(2))
    for index in range(PASS_COUNT):
        means, scales = network.context(lowering, index, base, model.sizes)
        packed = g.op("Gather", packed_table, _cells(g, scales), axis=0)
        limit = g.op("Floor", g.times(packed, 2.0**-7))
        y_here = g.op("Concat", *(y_grid[k][group] for k, group in enumerate(coded_groups(index))), axis=1)
        rounded = g.op("Round", g.op("Sub", y_here, means))
        rounded = g.op("Max", g.op("Min", rounded, limit), g.op("Neg", limit))
        tiling.place(symbols, index, rounded)
        tiling.place(indexes, index, g.op("Sub", packed, g.times(limit, 2.0**7)))
        tiling.place(base_grid, index, g.op("Add", rounded, means))
        base = tiling.join(base_grid)
    found = g.op("Sub", tiling.join(indexes), g.constant(1, np.float32))
    outputs = {
        "symbols": (_output(g, tiling.join(symbols), INT16), _info("symbols", INT16, channels)),
        "indexes": (_output(g, found, INT8), _info("indexes", INT8, channels)),
        "y_hat": (g.op("Transpose", base, perm=TO_FIRST), _info("y_hat", FLOAT, channels)),
    }
    inputs = [_info("y", FLOAT, channels), _info("z_symbols", INT32, model.sizes.hyper_channels, "hz", "wz")]
    return g.model(inputs, outputs, "entropy")


class Tiling:
    """Tensors (N, h, w, M) as a grid of 4 x 4 tiles (N, 1, h/2, w/2, M/4): [position class][channel group].

    A pass codes one tile of each class, so nothing needs a mask.
    """

    def __init__(self, g: Graph, shape: str) -> None:
        self._g, self._shape = g, shape
        first, sides, last = g.ops("Split", 3, shape, g.constant([1, 2, 1], np.int64), axis=0)
        rows, columns = g.ops("Split", 2, g.op("Div", sides, g.constant([2, 2], np.int64)), axis=0, num_outputs=2)
        two = g.constant([2], np.int64)
        self._folded = g.op("Concat", first, two, two, rows, columns, last, axis=0)

    def cut(self, x: str) -> list[list[str]]:
        grid = []
        for (part,) in classes(self._g, [x]):
            lifted = self._g.op("Unsqueeze", part, self._g.constant([1], np.int64))
            grid.append(self._g.ops("Split", PASS_COUNT, lifted, axis=-1, num_outputs=PASS_COUNT))
        return grid

    def place(self, grid: list[list[str]], index: int, tiles: str) -> None:
        """Put ``tiles`` (N, 4, h/2, w/2, M/4), the elements that pass ``index`` codes, into the grid."""
        parts = self._g.ops("Split", PASS_COUNT, tiles, axis=1, num_outputs=PASS_COUNT)
        for k, group in enumerate(coded_groups(index)):
            grid[k][group] = parts[k]

    def join(self, grid: list[list[str]]) -> str:
        """The grid as one tensor (N, h, w, M)."""
        g = self._g
        by_class = [g.op("Concat", *groups, axis=-1) for groups in grid]
        folded = g.op("Reshape", g.op("Concat", *by_class, axis=1), self._folded)
        return g.op("Reshape", g.op("Transpose", folded, perm=[0, 3, 1, 4, 2, 5]), self._shape)


def _packed_table() -> NDArray[np.float64]:
    """By cell: 128 * largest symbol + index + 1; 0 where skipped."""
    table = index_table().astype(np.int64)
    return np.where(table < 0, 0, 128 * symbol_limits()[table] + table + 1).astype(np.float64)


def _lowering(model: IntegerModel, graph: Graph, target: Target) -> Any:
    lowering = CpuLowering(model, graph) if target == "cpu" else FloatLowering(model, graph)
    return _Scoped(lowering, graph, {*model.sites, *model.layers}) if graph.readable else lowering


class _Scoped:
    """A lowering that names what it writes by the site or layer of each operation."""

    def __init__(self, lowering: FloatLowering, graph: Graph, known: set[str]) -> None:
        self._lowering, self._graph, self._known = lowering, graph, known

    def __getattr__(self, operation: str) -> Any:
        run = getattr(self._lowering, operation)

        def named(*arguments: Any) -> Any:
            outer = self._graph.scope
            here = [one for one in arguments if isinstance(one, str) and one in self._known]
            self._graph.scope = here[0] if here else outer
            try:
                return run(*arguments)
            finally:
                self._graph.scope = outer

        return named


def _hyper(model: IntegerModel, g: Graph, lowering: Any) -> str:
    last = g.op("Transpose", g.op("Cast", "z_symbols", to=FLOAT), perm=TO_LAST)
    z = g.op("Add", last, g.constant(model.medians, np.float32))
    return network.hyper_synthesis(lowering, z, model.sizes)


def _cells(g: Graph, scales: str) -> str:
    """The same as :func:`scale_index.cells`, int32."""
    low, high = g.constant(0, np.float32), g.constant(SCALE_MAX, np.float32)
    clipped = g.op("Clip", scales, low, high)
    fine = g.op("Floor", g.times(g.op("Min", clipped, g.constant(SWITCH, np.float32)), FINE))
    return g.op("Cast", g.op("Add", fine, g.op("Floor", g.times(clipped, COARSE))), to=INT32)


def _output(g: Graph, x: str, dtype: int) -> str:
    return g.op("Transpose", g.op("Cast", x, to=dtype), perm=TO_FIRST)


def _info(name: str, dtype: int, channels: int, height: str = "h", width: str = "w") -> Any:
    return helper.make_tensor_value_info(name, dtype, ["n", channels, height, width])
