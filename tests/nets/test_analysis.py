"""g_a rewritten for speed gives g_a's numbers, in torch, in ONNX Runtime and, in its own precision, in OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aeic import openvino_session
from aeic.bundle import Bundle
from aeic_nets.analysis import fast_analysis
from aeic_nets.codec import Analysis
from edge_encoder.analysis import Analysis as EdgeAnalysis
from edge_encoder.provider import open_session
from tests.official.small import SMALL


def test_the_rewritten_network_is_the_same() -> None:
    torch.manual_seed(0)
    g_a = Analysis(SMALL).eval()
    for parameter in g_a.parameters():  # norms with their own scale and shift
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.rand(2, 3, 128, 192) * 2 - 1
    with torch.no_grad():
        wanted = g_a(x)
        torch.testing.assert_close(fast_analysis(g_a)(x), wanted, atol=2e-5 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.skipif(not openvino_session.AVAILABLE, reason="OpenVINO is not installed")
def test_openvino_analyses_as_onnx_runtime_does() -> None:
    bundle = Bundle.load(verify=False)
    rgb = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    wanted = EdgeAnalysis(bundle, provider="cpu", threads=1)(rgb)
    analysis = EdgeAnalysis(bundle, provider="openvino", threads=1)
    assert analysis.provider == openvino_session.PROVIDER
    np.testing.assert_allclose(analysis(rgb), wanted, atol=0.05 * np.abs(wanted).max())
    session = openvino_session.OpenVinoSession(bundle.path / "analysis.onnx", 1, precision="float32")
    (y,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 64, 64), np.float32)})
    assert y.shape == (1, bundle.channels, 2, 2)


def test_openvino_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_session, "AVAILABLE", False)
    with pytest.raises(Exception, match=r"aeic\[openvino\]"):
        open_session(Path(Bundle.load(verify=False).path) / "analysis.onnx", "openvino", 1)
