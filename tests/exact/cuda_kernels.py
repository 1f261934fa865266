"""Which nodes of an ONNX graph ONNX Runtime runs on CUDA, known without a GPU.

A kernel serves an operator of a given version, not of an opset: the kernel of Pad that begins with version 18 and names
no last version does not serve Pad of version 19, which a graph of opset 20 has. ONNX Runtime then runs the node on the
CPU and copies its tensors there and back. The table holds the operators that our graphs use, and is from ONNX Runtime's
page "Supported Operators and Data Types" (https://github.com/microsoft/onnxruntime, commit 001d12d).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto

from aeic_nets.integer.onnx_builder import MICROSOFT

OPEN = None
_ALL: set[int] = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32,
    TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL,
}  # fmt: skip
_REAL: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_NUMBERS = _ALL - {TensorProto.BOOL}
_WIDE = _REAL | {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64}

Versions = tuple[tuple[int, int | None], ...]
KERNELS: dict[str, tuple[Versions, set[int]]] = {
    "Add": (((7, 12), (13, 13), (14, OPEN)), _NUMBERS),
    "Cast": (((6, 8), (9, 12), (13, 18), (19, 20), (21, 22), (23, OPEN)), _ALL),
    "Clip": (((6, 10), (11, 11), (12, 12), (13, OPEN)), _REAL | {TensorProto.INT64, TensorProto.INT8}),
    "Concat": (((4, 10), (11, 12), (13, OPEN)), _ALL),
    "ConstantOfShape": (((9, OPEN),), _ALL),
    "Conv": (((1, 10), (11, 21), (22, OPEN)), _REAL),
    "DepthToSpace": (((1, 10), (11, 12), (13, OPEN)), _REAL),
    "Div": (((7, 12), (13, 13), (14, OPEN)), _NUMBERS),
    "Floor": (((6, 12), (13, OPEN)), _REAL),
    "Gather": (((1, 10), (11, 12), (13, OPEN)), _ALL),
    "Gelu": (((20, OPEN),), _REAL),
    "Identity": (((1, 12), (13, 13), (14, 18), (19, OPEN)), _ALL),
    "MatMul": (((1, 8), (9, 12), (13, OPEN)), _REAL),
    "Max": (((6, 11), (12, 12), (13, OPEN)), _WIDE),
    "Min": (((6, 11), (12, 12), (13, OPEN)), _WIDE),
    "Mul": (((7, 12), (13, 13), (14, OPEN)), _NUMBERS),
    "Neg": (((6, 12), (13, OPEN)), _REAL | {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}),
    "Pad": (((2, 10), (11, 12), (13, 17), (18, OPEN)), _REAL | {TensorProto.BOOL}),
    "ReduceSum": (((1, 12), (13, OPEN)), _REAL | {TensorProto.INT32, TensorProto.INT64}),
    "Reshape": (((1, 4), (5, 12), (13, 13), (14, 18), (19, 20), (21, 22), (23, OPEN)), _ALL),
    "Round": (((11, OPEN),), _REAL),
    "Shape": (((1, 12), (13, 14), (15, 18), (19, 20), (21, 22), (23, OPEN)), _ALL),
    "Slice": (((1, 9), (10, 10), (11, 12), (13, OPEN)), _ALL),
    "Split": (((2, 10), (11, 12), (13, 17), (18, OPEN)), _ALL),
    "Sqrt": (((6, 12), (13, OPEN)), _REAL),
    "Sub": (((7, 12), (13, 13), (14, OPEN)), _NUMBERS),
    "Transpose": (((1, 12), (13, 20), (21, 22), (23, OPEN)), _ALL),
    "Unsqueeze": (((1, 10), (11, 12), (13, 20), (21, 22), (23, OPEN)), _ALL),
    f"{MICROSOFT}.Gelu": (((1, OPEN),), _REAL),
}
"""By operator: the first and last version that each CUDA kernel serves, and the types of its data."""


def left_to_the_cpu(model: onnx.ModelProto) -> list[str]:
    """Descriptions of the nodes of ``model`` that have no CUDA kernel; empty where all have one.

    Types come from shape inference; the type of a tensor that it does not find is not checked.
    """
    opsets = {one.domain: one.version for one in model.opset_import}
    types = _types(model)
    missing = []
    for node in model.graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        version = 1 if node.domain else onnx.defs.get_schema(node.op_type, opsets[""], "").since_version
        if name not in KERNELS:
            missing.append(f"{name} {version} ({node.name}): no CUDA kernel is known")
            continue
        versions, allowed = KERNELS[name]
        if not _serves(versions, version):
            missing.append(f"{name} {version} ({node.name}): the CUDA kernels are for {_text(versions)}")
        elif (kind := types.get(_data(node))) not in {None, *allowed}:
            missing.append(f"{name} {version} ({node.name}): no CUDA kernel for {TensorProto.DataType.Name(kind)}")
    return missing


def _serves(versions: Versions, version: int) -> bool:
    # As ONNX Runtime's KernelRegistry does it: a kernel without a last version serves its first version only.
    return any(first == version or (last is not None and first <= version <= last) for first, last in versions)


def _data(node: onnx.NodeProto) -> str:
    """The tensor whose type selects the kernel."""
    name: str = node.output[0] if node.op_type == "ConstantOfShape" else node.input[0]
    return name


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.output, *graph.value_info)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _text(versions: Versions) -> str:
    return ", ".join(f"{first}" if last is None else f"{first} to {last}" for first, last in versions)
