"""No node of the graphs for GPUs is left to the CPU, by ONNX Runtime's list of CUDA kernels."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from aeic.passes import PASS_COUNT
from aeic_nets.integer import export
from aeic_nets.integer.model import IntegerModel
from tests.exact.cuda_kernels import left_to_the_cpu
from tests.support.roots import ROOT

BUNDLE = ROOT / "models" / "aeic-se-nano"
GRAPHS = ["entropy", "hyper_synthesis", *(f"context_{index}" for index in range(PASS_COUNT))]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    export.write_graphs(IntegerModel.load(BUNDLE / "integer.npz"), folder, "gpu")
    return folder


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_of_the_entropy_model_has_a_cuda_kernel(graphs: Path, name: str) -> None:
    model = onnx.load(graphs / f"{name}.onnx")
    assert left_to_the_cpu(model) == []


def test_so_has_every_node_of_the_analysis() -> None:
    assert left_to_the_cpu(onnx.load(BUNDLE / "analysis.onnx")) == []


def test_depthwise_convolutions_are_few_nodes(graphs: Path) -> None:
    """A chain of products and sums, one for each tap, had 3,332 nodes."""
    assert len(onnx.load(graphs / "entropy.onnx").graph.node) < 2500


def test_a_later_opset_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The planted fault: the opset that these graphs had at first."""
    monkeypatch.setitem(export.OPSETS, "gpu", 20)
    export.write_graphs(IntegerModel.load(BUNDLE / "integer.npz"), tmp_path, "gpu")
    found = left_to_the_cpu(onnx.load(tmp_path / "context_0.onnx"))
    assert {line.split()[0] for line in found} == {"Pad", "ConstantOfShape"}


def test_a_type_without_a_kernel_is_caught() -> None:
    """The graphs for CPUs pad bytes, which no CUDA kernel does, and use operators that have none at all."""
    found = left_to_the_cpu(onnx.load(BUNDLE / "context_0.onnx"))
    assert any(line.startswith("com.microsoft.QLinearConv") for line in found)
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, [1]) for name in "xy")
    pads = helper.make_tensor("pads", TensorProto.INT64, [2], [1, 1])
    graph = helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"])], "bytes", [x], [y], [pads])
    assert "UINT8" in left_to_the_cpu(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))[0]
