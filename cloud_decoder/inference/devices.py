"""Which generator runs on which device: ONNX Runtime and OpenVINO on CPUs, torch on CPUs and GPUs.

decoder.py calls :func:`choose_device` with ``AEIC_CLOUD_DEVICE``. It builds the generator in a child process
(subprocess_child.py) unless ``AEIC_CLOUD_ISOLATE`` is false.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aeic.bundle import Bundle
from aeic.errors import remedy
from aeic.runtime.driver import nvidia_driver
from aeic.runtime.processor import multiplies_bfloat16
from aeic_service.errors import ServiceError
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.inference.fastest_backend import FastestGenerator, installed
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.inference.openvino_backend import OpenVinoGenerator

if TYPE_CHECKING:
    from aeic_nets.runtime.device_entropy import DeviceEntropy, Kernels

log = logging.getLogger(__name__)

DEVICES = ("auto", "onnx", "openvino", "fastest", "cpu", "cuda")


def choose_device(wanted: str, has_graph: bool = True, *, gpu: bool = True) -> str:
    """``onnx``, ``openvino``, ``fastest``, ``cpu`` or ``cuda`` for the device in the settings.

    ``auto`` is ``cuda`` if it works. Without a GPU it is ``fastest`` if the processor supports
    bfloat16 and a runtime that can is installed, else ``onnx``; a bundle without synthesis.onnx, such as those of the
    published sizes, runs on torch (``cpu``). torch is imported only where a driver is present. ``auto`` takes no GPU
    without ``gpu``. ``ValueError`` for an unknown device lists the known ones.
    """
    if wanted not in DEVICES and not re.fullmatch(r"cuda:\d{1,3}", wanted):
        raise ValueError(f"unknown device {wanted!r}: choose one of {', '.join(DEVICES)}, or cuda:N")
    if wanted != "auto":
        return wanted
    if gpu and _has_card():
        return "cuda"
    if not has_graph:
        return "cpu"
    return "fastest" if multiplies_bfloat16() and installed() else "onnx"


@functools.cache  # every bundle asks; one warning is enough
def _has_card() -> bool:
    sign = nvidia_driver()
    if not sign or importlib.util.find_spec("torch") is None:
        return False
    import torch

    found = torch.cuda.is_available()
    if not found:
        log.warning(
            "pictures are decoded on the CPU: there is an NVIDIA driver (%s), but torch finds no GPU;"
            " `aeic doctor` names the remedy",
            sign,
        )
    return found


def choose_devices(wanted: str, has_graph: bool = True) -> list[str]:
    """:func:`choose_device` for each device of a list separated by commas: one decoder process each."""
    return [choose_device(part.strip(), has_graph) for part in wanted.split(",")]


def build_entropy(
    bundle: Bundle, device: str, threads: int, check_every: int, kernels: Kernels = "torch"
) -> DeviceEntropy | None:
    """Entropy decoding by torch on a GPU, else on the CPU; None if the bundle or torch is missing."""
    try:
        from aeic_nets.runtime import device_entropy
    except ImportError as error:
        log.warning("entropy decoding stays on the CPU's graphs: torch is missing (%s)", error)
        return None
    where = device if device.startswith("cuda") else "cpu"
    return device_entropy.build(bundle, where, threads, check_every, kernels)


def build_generator(bundle: Path, device: str, threads: int, *, official_tiling: bool = False) -> GeneratorBackend:
    """The generator of the bundle in a folder, on a device that :func:`choose_device` returned.

    The device decides which class it is. In torch, the network of every bundle is a ``PictureGenerator``.
    ``ServiceError`` for ``official_tiling`` without torch.
    """
    if official_tiling and device in ("onnx", "openvino", "fastest"):
        raise ServiceError(f"the official tiling needs torch, not {device}: use device cpu or cuda")
    if device == "onnx":
        return OnnxGenerator(bundle, threads)
    if device == "openvino":
        return OpenVinoGenerator(bundle, threads)
    if device == "fastest":
        return FastestGenerator(bundle, threads, build_generator)
    try:
        from aeic_nets.runtime.torch_backend import TorchGenerator
    except ImportError as error:
        raise ServiceError(f"device {device} needs torch ({error}): {remedy('cloud')}, or use device onnx") from error
    generator: GeneratorBackend = TorchGenerator(bundle, device, threads, official_tiling=official_tiling)
    return generator
