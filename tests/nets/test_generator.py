"""The torch generator and the bundle's ONNX graph make the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from aeic.errors import BundleError
from aeic.profiles import NANO
from aeic_nets.generator import TorchGenerator
from aeic_nets.graphs import write_graph
from aeic_nets.network import AEIC
from aeic_train.export import SynthesisGraph, load_average, write_weights


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    write_weights(AEIC(NANO), folder / "weights.safetensors")
    model, _ = load_average(NANO, None, folder / "weights.safetensors")
    example = torch.zeros(2, NANO.latent_channels, 4, 6)
    write_graph(SynthesisGraph(model), example, folder / "synthesis.onnx", "y_hat", ["image"], half=True)
    (folder / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    return folder


def test_torch_and_onnx_agree(bundle: Path) -> None:
    y_hat = np.random.default_rng(0).standard_normal((2, NANO.latent_channels, 4, 2)).astype(np.float32)
    session = onnxruntime.InferenceSession(bundle / "synthesis.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"y_hat": y_hat})
    pictures = TorchGenerator(bundle)(y_hat)
    assert pictures.shape == (2, 3, 128, 64)
    np.testing.assert_allclose(pictures, expected, atol=2e-4)


def test_missing_weights_are_named(bundle: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unet.conv_in.bias": torch.zeros(64)}, tmp_path / "weights.safetensors")
    (tmp_path / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    with pytest.raises(BundleError, match="lacks"):
        TorchGenerator(tmp_path)
