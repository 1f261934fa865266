"""Which generator runs on which device: ONNX Runtime and OpenVINO on CPUs, torch on CPUs and GPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aeic.runtime.processor import multiplies_bfloat16
from aeic_service.errors import ServiceError
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.inference.fastest_backend import FastestGenerator, installed
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.inference.openvino_backend import OpenVinoGenerator

DEVICES = ("auto", "onnx", "openvino", "fastest", "cpu", "cuda")


def choose_device(wanted: str, has_graph: bool = True) -> str:
    """``onnx``, ``openvino``, ``fastest``, ``cpu`` or ``cuda`` for the device in the settings.

    ``auto`` is ``cuda`` where there is a working one. Without a card it is ``fastest`` where the processor multiplies
    bfloat16 and a runtime that can is installed, else ``onnx``; a bundle without synthesis.onnx, such as those of the
    published sizes, runs on torch (``cpu``). torch is imported only where a driver is present. ``ValueError`` for an
    unknown device lists the known ones.
    """
    if wanted not in DEVICES and not wanted.startswith("cuda:"):
        raise ValueError(f"unknown device {wanted!r}: choose one of {', '.join(DEVICES)}")
    if wanted != "auto":
        return wanted
    if _has_card():
        return "cuda"
    if not has_graph:
        return "cpu"
    return "fastest" if multiplies_bfloat16() and installed() else "onnx"


def _has_card() -> bool:
    if not Path("/proc/driver/nvidia/version").exists() or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def build_generator(bundle: Path, device: str, threads: int) -> GeneratorBackend:
    """The generator of the bundle in a folder, on a device that :func:`choose_device` returned."""
    if device == "onnx":
        return OnnxGenerator(bundle, threads)
    if device == "openvino":
        return OpenVinoGenerator(bundle, threads)
    if device == "fastest":
        return FastestGenerator(bundle, threads, build_generator)
    try:
        from aeic_nets.runtime.torch_backend import TorchGenerator
    except ImportError as error:
        raise ServiceError(
            f"device {device} needs torch ({error}): pip install 'aeic[cloud]', or take device onnx"
        ) from error
    generator: GeneratorBackend = TorchGenerator(bundle, device, threads)
    return generator
