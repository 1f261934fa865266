"""g_a rewritten for speed gives g_a's numbers, in torch, in ONNX Runtime and, in its own precision, in OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from aeic.bundle import Bundle
from aeic.runtime import openvino
from aeic_nets.codec import Analysis
from aeic_nets.fast_analysis import HalfAnalysis, fast_analysis
from aeic_nets.onnx_export import write_graph
from aeic_train.export import gpu_graphs
from edge_encoder.encoding.analysis import Analysis as EdgeAnalysis
from edge_encoder.encoding.execution_provider import open_session
from tests.support.models.official_model import SMALL


def test_the_rewritten_network_is_the_same() -> None:
    torch.manual_seed(0)
    g_a = Analysis(SMALL).eval()
    for parameter in g_a.parameters():  # norms with their own scale and shift
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.rand(2, 3, 128, 192) * 2 - 1
    with torch.no_grad():
        wanted = g_a(x)
        torch.testing.assert_close(fast_analysis(g_a)(x), wanted, atol=2e-5 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.skipif(not openvino.AVAILABLE, reason="OpenVINO is not installed")
def test_openvino_analyses_as_onnx_runtime_does() -> None:
    bundle = Bundle.load(verify=False)
    rgb = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    wanted = EdgeAnalysis(bundle, provider="cpu", threads=1)(rgb)
    analysis = EdgeAnalysis(bundle, provider="openvino", threads=1)
    assert analysis.provider == openvino.PROVIDER
    np.testing.assert_allclose(analysis(rgb), wanted, atol=0.05 * np.abs(wanted).max())
    session = openvino.OpenVinoSession(bundle.path / "analysis.onnx", 1, precision="float32")
    (y,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 64, 64), np.float32)})
    assert y.shape == (1, bundle.channels, 2, 2)


def test_openvino_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "AVAILABLE", False)
    with pytest.raises(Exception, match=r"\.\[openvino\]"):
        open_session(Path(Bundle.load(verify=False).path) / "analysis.onnx", "openvino", 1)


def test_the_float16_form_keeps_its_norms_in_float32(tmp_path: Path) -> None:
    """Squares of activations beyond 256 would leave its range."""
    torch.manual_seed(0)
    g_a = Analysis(SMALL).eval()
    for name, parameter in g_a.named_parameters():
        parameter.data *= 8 if name.endswith("body.0.weight") else 1
    write_graph(fast_analysis(g_a), torch.zeros(2, 3, 128, 192), tmp_path / "analysis.onnx", "image", ["y"])
    graph = onnx.load(tmp_path / "analysis.onnx").graph
    blocked = [node.op_type for node in graph.node if node.name in gpu_graphs._deviations(graph)]
    assert blocked == ["Mul", "Conv", "Add", "Sqrt"] * 5
    x = torch.rand(1, 3, 128, 192) * 2 - 1
    with torch.no_grad():
        wanted, found = g_a(x), HalfAnalysis(g_a)(x)
    assert (wanted - found).abs().max() < 0.02 * wanted.abs().max()
