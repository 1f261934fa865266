"""Latents to pictures: one small interface, two makers. ONNX Runtime on CPUs needs no torch; torch runs on GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aeic.pixels import from_tensor
from aeic_service.errors import ServiceError

DEVICES = ("auto", "onnx", "cpu", "cuda")


class Generator(Protocol):
    """The synthesis of one bundle, everything after entropy decoding. One thread calls it, always the same.

    It may have more, which is asked for by name: ``pictures(y_hat)`` as :func:`pictures_of` gives them,
    ``warm_up(max_batch)``, ``parts`` and ``memory`` as :class:`.decoder.Decoder` has, ``close()``.
    """

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """y_hat (N, M, h, w) float32, gain undone -> pictures (N, 3, 32 h, 32 w) float32, about [-1, 1]."""
        ...


def pictures_of(generator: Generator, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures (N, 32 h, 32 w, 3) uint8: made on the device where it can, which spares a CPU most of the hand-over."""
    made = getattr(generator, "pictures", None)
    if made is not None:
        return np.asarray(made(y_hat), np.uint8)
    return np.stack([from_tensor(np.nan_to_num(image)) for image in generator(y_hat)])


def choose_device(wanted: str, has_graph: bool = True) -> str:
    """``onnx``, ``cpu`` or ``cuda`` for what the settings ask. ``ValueError`` lists the known ones.

    ``auto`` is ``cuda`` where there is a working one, else ``onnx``, or ``cpu`` (torch) for a bundle without
    synthesis.onnx, as those of the published sizes are; torch is imported only where a driver is present.
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


def build_generator(bundle: Path, device: str, threads: int) -> Generator:
    """The generator of the bundle in that folder, on a device that :func:`choose_device` returned."""
    if device == "onnx":
        from cloud_decoder.inference.onnx_backend import OnnxGenerator

        return OnnxGenerator(bundle, threads)
    try:
        from aeic_nets.runtime.torch_backend import TorchGenerator
    except ImportError as error:
        raise ServiceError(
            f"device {device} needs torch ({error}): pip install 'aeic[cloud]', or take device onnx"
        ) from error
    made: Generator = TorchGenerator(bundle, device, threads)
    return made


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device's memory did not suffice, in numpy's, torch's or ONNX Runtime's words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in ("failed to allocate memory", "out of memory", "bad_alloc"))


def memory_words(error: BaseException, shape: Sequence[int], device: str) -> str:
    """What to tell of an error that :func:`is_out_of_memory`, met with latents of ``shape`` (N, M, h, w).

    A ``MemoryError`` says what did not fit, and where memory was planned (memory_plan.py) which size would; torch and
    ONNX Runtime speak of allocators and addresses, which help nobody who asked for a picture.
    """
    if isinstance(error, MemoryError) and str(error):
        return str(error)
    what = f"latents of {' x '.join(map(str, shape))}" if shape else "the first run"
    return f"{what}: {device} has not the memory for it ({type(error).__name__}); send smaller pictures"


def release_memory(device: str) -> None:
    """Give cached blocks back to the device after it ran out; call with no exception in flight."""
    if device.startswith("cuda"):
        torch: Any = importlib.import_module("torch")
        torch.cuda.empty_cache()
