"""A session that captures as ONNX Runtime on CUDA does, on the CPU, and refuses whatever breaks CUDA's terms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from aeic.runtime import cuda
from edge_encoder.encoding.resident_graph import UNCAPTURED

OUTPUTS: dict[str, type[Any]] = {"sum": np.float32, "double": np.float32}


def model() -> bytes:
    """sum = y + z, double = y + y."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "w"])
    z = helper.make_tensor_value_info("z_symbols", TensorProto.INT32, ["n", "w"])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "w"]) for name in OUTPUTS]
    nodes = [
        helper.make_node("Cast", ["z_symbols"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["y", "z"], ["sum"]),
        helper.make_node("Add", ["y", "y"], ["double"]),
    ]
    graph = helper.make_graph(nodes, "sums", [y, z], outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(made.SerializeToString())


def inputs(width: int, value: float = 1) -> dict[str, NDArray[Any]]:
    return {
        "y": np.full((2, width), value, np.float32),
        "z_symbols": np.arange(2 * width, dtype=np.int32).reshape(2, -1),
    }


def right(found: list[NDArray[Any]], given: dict[str, NDArray[Any]]) -> bool:
    y, z = given.values()
    return np.array_equal(found[0], y + z) and np.array_equal(found[1], y + y)


class Binding:
    """Knows the addresses that it binds."""

    def __init__(self, binding: Any) -> None:
        self.real = binding
        self.addresses: list[int] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.addresses.append(value.data_ptr())
        self.real.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.addresses.append(value.data_ptr())
        self.real.bind_ortvalue_output(name, value)

    def synchronize_inputs(self) -> None: ...

    def synchronize_outputs(self) -> None: ...


@dataclass
class Captured:
    addresses: list[int]
    thread: int


class Session:
    """ONNX Runtime on the CPU with CUDA's terms for captures: any breach of them is an AssertionError.

    ``events``: ("capture" | "replay" | "run" | "release" | "shrink", number).
    """

    def __init__(self, capture: bool = True, fails: Callable[[str, int], None] = lambda event, number: None) -> None:
        self._real = onnxruntime.InferenceSession(model(), providers=["CPUExecutionProvider"])
        self._capture, self._fails = capture, fails
        self.graphs: dict[int, Captured] = {}
        self.dropped: set[int] = set()
        self.runs = 0  # without a capture, since the last one
        self.events: list[tuple[str, int]] = []

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding())

    def _event(self, event: str, number: int) -> None:
        self.events.append((event, number))
        self._fails(event, number)

    def run(self, names: None, given: dict[str, NDArray[Any]], options: onnxruntime.RunOptions) -> list[NDArray[Any]]:
        assert number_of(options) == UNCAPTURED, "arrays of the CPU would be captured"
        if options is cuda.shrinking():
            assert not self.graphs, "the memory of a graph goes"
            self._event("shrink", UNCAPTURED)
        else:
            self._event("run", UNCAPTURED)
        outputs: list[NDArray[Any]] = self._real.run(names, given)
        return outputs

    def run_with_iobinding(self, binding: Binding, options: onnxruntime.RunOptions) -> None:
        number, thread = number_of(options), threading.get_ident()
        if number == UNCAPTURED or not self._capture:
            self.runs += 1
            self._event("run", number)
        elif number not in self.graphs:
            assert number not in self.dropped, "a number is used again"
            assert self.runs >= 2, "memory would be allocated during the capture"
            self._event("capture", number)
            self.graphs[number], self.runs = Captured(list(binding.addresses), thread), 0
        else:
            assert self.graphs[number] == Captured(binding.addresses, thread), "replays at other addresses"
            self._event("replay", number)
        self._real.run_with_iobinding(binding.real)

    def release_captured_graph(self, number: int) -> None:
        del self.graphs[number]
        self.dropped.add(number)
        self._event("release", number)


def number_of(options: onnxruntime.RunOptions) -> int:
    return int(options.get_run_config_entry("gpu_graph_id"))
