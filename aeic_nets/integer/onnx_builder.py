"""Writing ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, UINT8, INT8 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT8
INT16, INT32, INT64 = TensorProto.INT16, TensorProto.INT32, TensorProto.INT64
MICROSOFT = "com.microsoft"


class Graph:
    """A graph under construction. Tensors are named by strings; equal constants are stored once.

    A ``readable`` graph puts ``scope`` before the names of nodes and constants. The graphs of the shipped model do not:
    their bytes define its fingerprint.
    """

    def __init__(self, readable: bool = False, opset: int = 20) -> None:
        self.readable, self.opset = readable, opset
        self.scope = ""
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Any] = {}

    def constant(self, value: ArrayLike, dtype: Any) -> str:
        array: NDArray[Any] = np.ascontiguousarray(np.array(value, dtype))
        key = (array.dtype.str, np.shape(value), array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(
                array.reshape(np.shape(value)), self._name(f"c{len(self._constants)}")
            )
        name: str = self._constants[key].name
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        number = len(self._nodes)
        names = [f"t{number}" if outputs == 1 else f"t{number}_{k}" for k in range(outputs)]
        label = self._name(f"{kind}{number}")
        self._nodes.append(helper.make_node(kind, list(inputs), names, label, domain=domain, **attributes))
        return names

    def _name(self, name: str) -> str:
        return f"{self.scope}/{name}" if self.readable and self.scope else name

    def times(self, x: str, factor: ArrayLike) -> str:
        """x times a float constant (a power of two: exact); nothing if it is 1."""
        return x if np.all(np.asarray(factor) == 1) else self.op("Mul", x, self.constant(factor, np.float32))

    def gelu(self, x: str) -> str:
        """GELU by the error function: ONNX Runtime's own operator where the opset has none."""
        return self.op("Gelu", x, domain="" if self.opset >= 20 else MICROSOFT)

    def model(self, inputs: Sequence[Any], outputs: dict[str, tuple[str, Any]], title: str) -> bytes:
        """The finished model. ``outputs``: name -> (tensor, value info). Same calls, same bytes."""
        for name, (tensor, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [tensor], [name], f"output_{name}"))
        infos = [info for _, info in outputs.values()]
        graph = helper.make_graph(self._nodes, title, list(inputs), infos, list(self._constants.values()))
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="aeic")
        onnx.checker.check_model(made)
        data: bytes = made.SerializeToString(deterministic=True)
        return data
