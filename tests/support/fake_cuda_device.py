"""A CPU that stands for a GPU: it has a capability, records graphs by calling, and fails as a test wants."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from aeic_nets.runtime.cuda_device import CudaDevice
from aeic_nets.runtime.cuda_graphs import Recorder


class FakeRecorder:
    """Replays by calling; counts, and refuses shapes of more than ``most`` values."""

    def __init__(self, most: int = 1 << 40) -> None:
        self.most, self.replayed = most, 0
        self.recorded: list[tuple[int, ...]] = []

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
        if example.numel() > self.most:
            raise RuntimeError("CUDA out of memory")
        self.recorded.append(tuple(example.shape))

        def replay(values: Tensor) -> Any:
            self.replayed += 1
            return function(values)

        return replay


class FakeCudaDevice(CudaDevice):
    """See the module. ``failed`` is a GPU whose every further call fails."""

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.device = torch.device("cpu")
        self.given, self.recording = capability, FakeRecorder()
        self.failed = False
        self.entered = self.released = 0

    @property
    def capability(self) -> tuple[int, int]:
        return self.given

    def current(self) -> AbstractContextManager[Any]:
        self.entered += 1
        return nullcontext()

    def recorder(self) -> Recorder:
        return self.recording

    def mark(self) -> float:
        return time.perf_counter()

    def seconds_between(self, first: float, second: float) -> float:
        return second - first

    def synchronise(self) -> None:
        if self.failed:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def release(self) -> None:
        self.released += 1

    @property
    def memory(self) -> dict[str, int]:
        return {"allocated": 1, "reserved": 2}
