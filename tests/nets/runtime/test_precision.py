"""The published sizes on a CPU: bfloat16 where it pays, and the cloud takes torch by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aeic.bundle import default_bundle_path
from aeic_nets.runtime import precision
from aeic_nets.runtime.torch_backend import TorchGenerator
from cloud_decoder.inference.devices import choose_device

CPU = torch.device("cpu")


@pytest.fixture
def without_graph(tmp_path: Path) -> Path:
    """nano as a bundle that only torch can decode."""
    for name in ("bundle.json", "weights.safetensors"):
        shutil.copy(default_bundle_path() / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("gain", "dtype"), [(3.0, torch.bfloat16), (0.5, torch.float32)])
def test_the_dtype_is_what_was_measured(
    gain: float, dtype: torch.dtype, without_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    generator = TorchGenerator(without_graph)
    assert generator.dtype == precision.best_dtype(CPU) == dtype
    y_hat = np.random.default_rng(0).standard_normal((1, 128, 4, 4)).astype(np.float32)
    wanted = TorchGenerator(without_graph, dtype=torch.float32)(y_hat)
    assert np.abs(generator(y_hat) - wanted).mean() < (0.03 if dtype == torch.bfloat16 else 1e-6)
    generator.warm_up(1)
    assert generator.dtype == dtype


def test_a_bundle_with_a_graph_stays_in_float32() -> None:
    assert TorchGenerator(default_bundle_path()).dtype == torch.float32


def test_the_gain_is_measured() -> None:
    assert 0.01 < precision.bfloat16_gain() < 100


def test_without_a_graph_the_cloud_takes_torch() -> None:
    assert choose_device("auto", has_graph=False) in ("cpu", "cuda")
    assert choose_device("onnx", has_graph=False) == "onnx"
