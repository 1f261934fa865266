"""Pictures from a GPU to the host through two page-locked buffers in turn, on a stream of their own.

The copy of one batch runs while the next one is computed, and reaches several times the speed of a copy to ordinary
memory. Each batch waits for three things: the copy for the batch's computation, its reader for the copy, and a buffer's
next batch for the copy that is in it. Not yet run on a GPU: the tests drive it with copies that happen when they are
waited for, and not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

BUFFERS = 2


class Copier(Protocol):
    """Page-locked memory of one GPU, and copies to it."""

    def buffer(self, size: int) -> Tensor:
        """(size,) uint8 on the host; RuntimeError if the system gives none."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Begin to copy what the GPU's current stream computes to ``target``; returns what waits for the end."""
        ...


class CudaCopier:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, size: int) -> Tensor:
        """See :class:`Copier`."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """See :class:`Copier`. ``source`` must live until the end of the copy."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        wait: Callable[[], None] = event.synchronize
        return wait


class Fetch:
    """A batch on its way to the host. Call it for the array, which is valid until two more batches have begun."""

    def __init__(self, array: NDArray[Any], source: Tensor | None, wait: Callable[[], None]) -> None:
        self._array, self._source, self._wait = array, source, wait
        self._read = False

    def __call__(self) -> NDArray[Any]:
        """Wait for the copy, once."""
        self._read = True
        self._arrive()
        return self._array

    def give_way(self) -> None:
        """Make way for another batch in the buffer: an array that was not read yet moves to memory of its own."""
        self._arrive()
        if not self._read:
            self._array = self._array.copy()

    def _arrive(self) -> None:
        if self._source is not None:
            self._wait()
            self._source = None  # not before: its memory would be given to another tensor


class PinnedOutput:
    """Two buffers of one GPU. One thread calls it; each buffer grows to the largest batch."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._buffers: list[Tensor | None] = [None] * BUFFERS
        self._held: list[Fetch | None] = [None] * BUFFERS
        self._turn = 0

    def start(self, source: Tensor) -> Fetch:
        """Begin to fetch a contiguous tensor. Where no memory can be page-locked, this waits for a plain copy."""
        turn = self._turn = (self._turn + 1) % BUFFERS
        buffer = self._buffers[turn]
        if (held := self._held[turn]) is not None:
            # First, so that an error of this wait does not come again, and no other batch into what was not read.
            self._held[turn] = self._buffers[turn] = None
            held.give_way()
            self._buffers[turn] = buffer
        size = source.numel() * source.element_size()
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[turn] = None  # the old one goes before there is a new one
            try:
                buffer = self._buffers[turn] = self._copier.buffer(size)
            except RuntimeError as error:
                log.warning("%d bytes cannot be page-locked, pictures are copied without: %s", size, error)
                return Fetch(source.cpu().numpy(), None, lambda: None)
        target = buffer[:size].view(source.dtype).view(source.shape)
        fetch = self._held[turn] = Fetch(target.numpy(), source, self._copier.copy(source, target))
        return fetch


def plain(source: Tensor) -> Callable[[], NDArray[Any]]:
    """The same without buffers: on a CPU, where there is nothing to wait for."""
    array: NDArray[Any] = np.asarray(source.cpu().numpy())
    return lambda: array
