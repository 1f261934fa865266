"""Which generator runs on which device: ONNX Runtime on CPUs without torch, torch on CPUs and GPUs."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aeic.bundle import Bundle
from aeic.runtime.driver import nvidia_driver
from aeic_service.errors import ServiceError
from cloud_decoder.inference.backend import GeneratorBackend

if TYPE_CHECKING:
    from aeic_nets.runtime.device_entropy import DeviceEntropy

log = logging.getLogger(__name__)

DEVICES = ("auto", "onnx", "cpu", "cuda")


def choose_device(wanted: str, has_graph: bool = True) -> str:
    """``onnx``, ``cpu`` or ``cuda`` for the device in the settings. ``ValueError`` lists the known ones.

    ``auto`` is ``cuda`` where there is a working one, else ``onnx``, or ``cpu`` (torch) for a bundle without
    synthesis.onnx, such as those of the published sizes. torch is imported only where a driver is present.
    """
    if wanted not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", wanted):
        raise ValueError(f"unknown device {wanted!r}: choose one of {', '.join(DEVICES)}, or cuda:N")
    if wanted != "auto":
        return wanted
    without_card = "onnx" if has_graph else "cpu"
    if not nvidia_driver() or importlib.util.find_spec("torch") is None:
        return without_card
    import torch

    return "cuda" if torch.cuda.is_available() else without_card


def choose_devices(wanted: str, has_graph: bool = True) -> list[str]:
    """:func:`choose_device` for each device of a list separated by commas: one decoder process each."""
    return [choose_device(part.strip(), has_graph) for part in wanted.split(",")]


def build_entropy(bundle: Bundle, device: str, threads: int, check_every: int) -> DeviceEntropy | None:
    """Entropy decoding by torch on ``device``, on the CPU for ``onnx``; None where the bundle or torch is missing."""
    try:
        from aeic_nets.runtime import device_entropy
    except ImportError as error:
        log.warning("entropy decoding stays on the CPU's graphs: torch is missing (%s)", error)
        return None
    return device_entropy.build(bundle, "cpu" if device == "onnx" else device, threads, check_every)


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
