"""What the torch backend asks of one CUDA device: its capability, streams, graphs, events and memory.

Everything that depends on the device is in :class:`CudaDevice`, so that a test can put one on the CPU in its place.
None of it has been run on a GPU yet (docs/gpu.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from aeic_nets.runtime.cuda_graphs import RECORDING, CudaRecorder, Recorder, empty_cache
from aeic_nets.runtime.pinned_output import Copier, CudaCopier


class CudaDevice:
    """One CUDA device. Its context, streams, events and graphs are those of ``device``, not of the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, such as (8, 9) for an RTX 4090."""
        return torch.cuda.get_device_capability(self.device)

    def current(self) -> AbstractContextManager[Any]:
        """A context in which this is the current device of the calling thread."""
        return torch.cuda.device(self.device)

    def side_stream(self) -> Callable[[], AbstractContextManager[Any]]:
        """A separate stream, to be entered by the one thread that uses it beside the thread of the synthesis."""
        stream = torch.cuda.Stream(self.device)
        return lambda: torch.cuda.stream(stream)

    def recorder(self) -> Recorder:
        """What records CUDA graphs on this device, all in one pool of memory."""
        return CudaRecorder(self.device)

    def copier(self) -> Copier:
        """What copies to page-locked memory of the host."""
        return CudaCopier(self.device)

    def mark(self) -> Any:
        """A moment in the device's work, for :meth:`seconds_between`. Costs no waiting."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds_between(self, first: Any, second: Any) -> float:
        """Seconds from one mark to another, once the device has reached both."""
        return float(first.elapsed_time(second)) / 1000

    def synchronise(self) -> None:
        """Wait for the device. Raises the error of a device that has failed, at every call."""
        with RECORDING:
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Return cached blocks of memory to the device."""
        with self.current():
            empty_cache()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that torch holds: ``allocated`` by tensors, and ``reserved`` from the device."""
        allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return {"allocated": allocated, "reserved": reserved}


class Clock:
    """Seconds between marks: by CUDA events, or by the time of day if there is no GPU."""

    def __init__(self, gpu: CudaDevice | None) -> None:
        self._gpu = gpu
        self._marks: list[tuple[str, Any]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        """What was done since the mark before is called ``name``."""
        self._marks.append((name, self._gpu.mark() if self._gpu else time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """By name, each since the mark before. The device must have finished."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._gpu:
            return {name: self._gpu.seconds_between(before, now) for (_, before), (name, now) in pairs}
        return {name: now - before for (_, before), (name, now) in pairs}
