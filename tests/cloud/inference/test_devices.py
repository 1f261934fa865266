"""Devices on CPUs: OpenVINO, and the fastest of the runtimes that are installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeic.runtime.fastest import Choice, decibels
from cloud_decoder.inference import devices, fastest_backend
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.fastest_backend import FastestGenerator
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from tests.support.frames import MakeFrame
from tests.support.roots import ROOT

NANO = ROOT / "models" / "aeic-se-nano"  # torch needs a profile that it knows


def latents(bundle: Path) -> np.ndarray:
    channels = OnnxGenerator(bundle, 1).channels
    return np.random.default_rng(3).standard_normal((1, channels, 4, 6)).astype(np.float32)


def test_openvino_gives_the_pictures_of_onnx_runtime(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    y_hat = latents(tiny_bundle)
    generator = devices.build_generator(tiny_bundle, "openvino", 1)
    want = devices.build_generator(tiny_bundle, "onnx", 1)(y_hat)
    assert decibels(generator(y_hat), want) > fastest_backend.SAME_PSNR
    assert generator.runtime in ("openvino float32", "openvino bfloat16")


@pytest.mark.parametrize("winner", ["onnx", "openvino", "cpu"])
def test_the_fastest_runtime_is_used_and_named(winner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if winner not in ("onnx", *fastest_backend.installed()):
        pytest.skip(f"{winner} is not installed")
    tried = []

    def choose(candidates: Any, sample: Any, same: Any) -> Choice:
        want = candidates["onnx"]()(sample)
        for name, load in candidates.items():
            assert same(load()(sample), want) is None
            assert same(want + 0.5, want) is not None
            tried.append(name)
        return Choice(winner, dict.fromkeys(tried, 1.0), {})

    monkeypatch.setattr(fastest_backend, "choose", choose)
    generator = FastestGenerator(NANO, 1, devices.build_generator)
    y_hat = latents(NANO)
    before = generator(y_hat)
    generator.warm_up(1)
    assert tried == ["onnx", *fastest_backend.installed()]
    assert generator.runtime.split()[0] == {"onnx": "onnxruntime", "openvino": "openvino", "cpu": "torch"}[winner]
    assert decibels(generator(y_hat), before) > fastest_backend.SAME_PSNR
    assert generator.pictures(y_hat).dtype == np.uint8
    generator.warm_up(1)
    assert len(tried) == 1 + len(fastest_backend.installed())  # a second warm-up measures nothing


def test_auto_measures_only_where_bfloat16_can_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_card", lambda: False)
    monkeypatch.setattr(devices, "installed", lambda: ["openvino"])
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: True)
    assert devices.choose_device("auto") == "fastest"
    assert devices.choose_device("auto", has_graph=False) == "cpu"
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: False)
    assert devices.choose_device("auto") == "onnx"
    assert devices.choose_device("openvino") == "openvino"
    with pytest.raises(ValueError, match="choose one of"):
        devices.choose_device("gpu")


def test_the_choice_of_an_isolated_generator_reaches_the_service(tiny_bundle: Path, make_frame: MakeFrame) -> None:
    decoder = Decoder.from_bundle(tiny_bundle, "fastest", DecoderSettings(threads=1, isolate=True))
    try:
        decoder.warm_up()
        assert decoder.runtime.split()[0] in ("onnxruntime", "openvino", "torch")
        assert decoder.decode([make_frame(1)])[0].dtype == np.uint8
    finally:
        decoder.close()


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_does_not_work_is_an_error_only_where_it_was_asked_for(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a GPU for which this build of torch has no code: torch.cuda.is_available() is true all the same."""
    monkeypatch.setattr(devices, "_has_card", lambda: True)
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: False)
    build = devices.build_generator

    def fails_on_cuda(bundle: Path, device: str, *rest: Any, **options: Any) -> Any:
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return build(bundle, device, *rest, **options)

    monkeypatch.setattr("cloud_decoder.inference.decoder.build_generator", fails_on_cuda)
    if wanted == "cuda":
        with pytest.raises(RuntimeError, match="no kernel image"):
            Decoder.from_bundle(NANO, wanted)
    else:
        assert Decoder.from_bundle(NANO, wanted).device == "onnx"


def test_a_driver_without_a_gpu_for_torch_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(devices, "nvidia_driver", lambda: "/dev/nvidiactl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_has_card", functools.cache(devices._has_card.__wrapped__))
    assert devices.choose_device("cpu") == "cpu" and not caplog.records
    for _ in range(2):
        assert devices.choose_device("auto", has_graph=False) == "cpu"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "aeic doctor" in record.getMessage()
