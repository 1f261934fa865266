"""The options for cards, as far as a machine without one can tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aeic.errors import BundleError
from aeic.runtime import cuda


def test_emulated_float32_is_refused_and_tf32_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setenv("CUBLAS_EMULATE_SINGLE_PRECISION", "1")
    with pytest.raises(BundleError, match="unset it"):
        cuda.prepare()
    monkeypatch.setenv("CUBLAS_EMULATE_SINGLE_PRECISION", "0")
    cuda.prepare()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_only_tensorrt_makes_a_folder(tmp_path: Path) -> None:
    for wanted in ("cpu", "cuda"):
        assert cuda.providers(wanted, tmp_path / "no graph", "image", tmp_path)[-1] == cuda.CPU
    assert list(tmp_path.iterdir()) == []


def test_an_engine_belongs_to_one_graph(tmp_path: Path) -> None:
    one, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    options = [cuda.tensorrt_options(path, "image", tmp_path / "aeic" / "tensorrt") for path in (one, other)]
    assert all(Path(option["trt_engine_cache_path"]).is_dir() for option in options)
    assert options[0]["trt_engine_cache_path"] != options[1]["trt_engine_cache_path"]
    assert options[0]["trt_profile_max_shapes"] == "image:1x3x2048x2048"
    by_bytes = cuda.tensorrt_options(one, "pixels", tmp_path, channels_last=True)
    assert by_bytes["trt_profile_min_shapes"] == "pixels:1x64x64x3"
    (first, second, last) = cuda.providers("tensorrt", one, "image", tmp_path)
    assert first[0] == cuda.TENSORRT and second == (cuda.CUDA, cuda.CUDA_OPTIONS) and last == cuda.CPU
    assert cuda.providers("cpu", one, "image", tmp_path) == [cuda.CPU]
