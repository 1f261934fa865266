"""A CPU that stands for a GPU: it has a capability, records graphs by calling, and fails as a test wants."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aeic_nets.runtime.cuda_device import CudaDevice
from aeic_nets.runtime.cuda_graphs import Recorder
from aeic_nets.runtime.pinned_output import Copier


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


class FakeCopier:
    """Copies as a GPU does: later than it is asked to. A copy happens when it is waited for, with those before it.

    ``sources`` that are dropped before are lost, as memory that the GPU gives to another tensor would be.
    """

    def __init__(self, most: int = 1 << 40) -> None:
        self.most, self.copied = most, 0
        self.sizes: list[int] = []
        self._queue: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def buffer(self, size: int) -> Tensor:
        if size > self.most:
            raise RuntimeError("CUDA error: out of memory")
        self.sizes.append(size)
        return torch.full((size,), 171, dtype=torch.uint8)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        self._queue.append((weakref.ref(source), target))
        return partial(self.finish, self.copied + len(self._queue))

    def finish(self, number: int = 1 << 40) -> None:
        """Make the first ``number`` copies: all, as a GPU does while the host is busy with something else."""
        while self._queue and self.copied < number:
            source, target = self._queue.pop(0)
            values = source()
            with torch.inference_mode():  # as the tensors of the generator
                target.fill_(13) if values is None else target.copy_(values)
            self.copied += 1


class FakeCudaDevice(CudaDevice):
    """See the module. ``failed`` is a GPU whose every further call fails."""

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.device = torch.device("cpu")
        self.given, self.recording, self.copying = capability, FakeRecorder(), FakeCopier()
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

    def copier(self) -> Copier:
        return self.copying

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
