"""Which generator runs on which device: ONNX Runtime on CPUs without torch, torch on CPUs and GPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aeic_service.errors import ServiceError
from cloud_decoder.inference.backend import GeneratorBackend

DEVICES = ("auto", "onnx", "cpu", "cuda")


def choose_device(wanted: str, has_graph: bool = True) -> str:
    """``onnx``, ``cpu`` or ``cuda`` for the device in the settings. ``ValueError`` lists the known ones.

    ``auto`` is ``cuda`` where there is a working one, else ``onnx``, or ``cpu`` (torch) for a bundle without
    synthesis.onnx, such as those of the published sizes. torch is imported only where a driver is present.
    """
    if wanted not in DEVICES and not wanted.startswith("cuda:"):
        raise ValueError(f"unknown device {wanted!r}: choose one of {', '.join(DEVICES)}")
    if wanted != "auto":
        return wanted
    without_card = "onnx" if has_graph else "cpu"
    if not Path("/proc/driver/nvidia/version").exists() or importlib.util.find_spec("torch") is None:
        return without_card
    import torch

    return "cuda" if torch.cuda.is_available() else without_card


def build_generator(bundle: Path, device: str, threads: int) -> GeneratorBackend:
    """The generator of the bundle in a folder, on a device that :func:`choose_device` returned."""
    if device == "onnx":
        from cloud_decoder.inference.onnx_backend import OnnxGenerator

        return OnnxGenerator(bundle, threads)
    try:
        from aeic_nets.runtime.torch_backend import TorchGenerator
    except ImportError as error:
        raise ServiceError(
            f"device {device} needs torch ({error}): pip install 'aeic[cloud]', or take device onnx"
        ) from error
    generator: GeneratorBackend = TorchGenerator(bundle, device, threads)
    return generator
