"""The torch generator and the bundle's ONNX graph make the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from aeic.errors import BundleError
from aeic.pixels import from_tensor
from aeic.profiles import NANO
from aeic_nets.network import AEIC
from aeic_nets.onnx_export import write_graph
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_train.export.bundle import load_average, write_weights
from aeic_train.export.onnx_graphs import SynthesisGraph


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
    levels = TorchGenerator(bundle).pictures(y_hat)
    assert levels.dtype == np.uint8 and levels.shape == (2, 128, 64, 3)
    assert all((from_tensor(image) == level).all() for image, level in zip(pictures, levels, strict=True))


@pytest.mark.parametrize("half_is_faster", [True, False])
def test_the_cpu_chooses_its_dtype_by_measurement(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, half_is_faster: bool
) -> None:
    y_hat = np.random.default_rng(0).standard_normal((1, NANO.latent_channels, 4, 2)).astype(np.float32)
    generator = TorchGenerator(bundle)
    expected = generator(y_hat)
    measure = generator._measure

    def measured(sample: np.ndarray) -> tuple[np.ndarray, float]:
        seconds = {torch.float32: 1.0, torch.bfloat16: 0.5 if half_is_faster else 0.95}[generator.dtype]
        return measure(sample)[0], seconds

    monkeypatch.setattr(generator, "_measure", measured)
    monkeypatch.setattr(
        "aeic_nets.runtime.torch_backend.HALF_PSNR", 10.0
    )  # random weights amplify what training would not
    generator.warm_up(4)
    assert generator.dtype == (torch.bfloat16 if half_is_faster else torch.float32)
    again = generator(y_hat)
    assert set(generator.parts) == {"g_s", "unet", "vae"} and generator.memory == {}
    if half_is_faster:
        assert again.dtype == np.float32 and np.isfinite(again).all()
    else:
        np.testing.assert_array_equal(again, expected)


def test_missing_weights_are_named(bundle: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"unet.conv_in.bias": torch.zeros(64)}, tmp_path / "weights.safetensors")
    (tmp_path / "bundle.json").write_text(json.dumps({"profile": "nano"}))
    with pytest.raises(BundleError, match="lacks"):
        TorchGenerator(tmp_path)
