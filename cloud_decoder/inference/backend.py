"""The interface from latents to pictures, and the errors of running out of memory that its implementations raise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aeic.pixels import from_tensor
from aeic.runtime.device_check import lacks_memory

COUNTS = ("recomputed", "entropy_device", "entropy_cpu", "entropy_checked", "entropy_mismatches")
"""What backends count: pictures computed again in float32, frames by where they were entropy-decoded, frames that were
checked on the CPU, and differences from it."""


@dataclass(frozen=True)
class EntropyDecoded:
    """A frame after entropy decoding: ``y_hat`` (M, h, w) float32 with the gain undone, and the digest of before."""

    y_hat: NDArray[np.float32]
    digest: str


class GeneratorBackend(Protocol):
    """The synthesis of one bundle: everything after entropy decoding. All calls come from one thread.

    An implementation that derives from this class only has to define :meth:`__call__`.
    """

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """y_hat (N, M, h, w) float32, gain undone -> pictures (N, 3, 32 h, 32 w) float32, about [-1, 1]."""
        ...

    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The same as (N, 32 h, 32 w, 3) uint8. On a GPU the conversion there makes the transfer four times smaller."""
        images = self(y_hat)
        refuse_infinite(images)
        return np.stack([from_tensor(image) for image in images])

    def start(self, y_hat: NDArray[np.float32], *, whole: bool) -> Callable[[], NDArray[Any]]:
        """Begin a batch: :meth:`pictures` if ``whole``, else a call. Returns what waits for its result.

        Where :attr:`overlaps`, another batch may begin before, and the result is valid until the next one but one does.
        """
        result: NDArray[Any] = self.pictures(y_hat) if whole else self(y_hat)
        return lambda: result

    @property
    def overlaps(self) -> bool:
        """Whether a batch may begin before the result of the one before is taken."""
        return False

    def warm_up(self, max_batch: int, max_pixels: int | None = None) -> int | None:
        """Prepare for batches of up to ``max_batch`` pictures and ``max_pixels``.

        Returns the pixels of the largest batch that the device's memory takes; None if that is not known.
        """
        return None

    @property
    def usable(self) -> bool:
        """False once the device has failed in a way that every later call of this process would meet."""
        return True

    def take_counts(self) -> dict[str, int]:
        """Events since the last call, by the names in :data:`COUNTS`."""
        return {}

    @property
    def runtime(self) -> str:
        """The library that computes and what it multiplies in, for people: ``onnxruntime float32``."""
        return ""

    @property
    def problem(self) -> str:
        """Why no batch could begin now; empty if one could."""
        return ""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the last batch by part of the network, where they are measured."""
        return {}

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of device memory by kind (``allocated``, ``reserved``) after the last batch; empty on a CPU."""
        return {}

    def release(self) -> None:
        """Return what is kept for the next call to the system. Called after a while without any call."""
        return None

    def close(self) -> None:
        """Release processes and memory. No call may follow."""
        return None


def refuse_infinite(images: NDArray[np.float32]) -> None:
    """``FloatingPointError`` for pictures with values that are not finite: they would otherwise be grey or black."""
    if not np.isfinite(images).all():
        raise FloatingPointError("the synthesis gave values that are not finite")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy, torch or ONNX Runtime raised ``error`` because the device's memory did not suffice."""
    return type(error).__name__ == "OutOfMemoryError" or lacks_memory(error)


def out_of_memory_message(error: BaseException, shape: Sequence[int], device: str) -> str:
    """The message for an error that :func:`is_out_of_memory`, caused by latents of ``shape`` (N, M, h, w).

    The text of a ``MemoryError`` is kept: it names what did not fit and, where memory was planned (memory_plan.py), the
    size that would. The texts of torch and ONNX Runtime are about allocators and addresses, and are replaced.
    """
    if isinstance(error, MemoryError) and str(error):
        return str(error)
    what = f"latents of {' x '.join(map(str, shape))}" if shape else "the first run"
    return f"{what}: {device} does not have the memory for it ({type(error).__name__}); send smaller pictures"


def release_memory(device: str) -> None:
    """Return cached blocks to the device after it ran out of memory. Call it outside of the exception's handler."""
    if device.startswith("cuda"):
        from aeic_nets.runtime.cuda_graphs import empty_cache  # with torch, which a cloud without a GPU may lack

        empty_cache()
