"""CUDA graphs by shape: a function's launches are recorded once for each shape that comes again, and replayed as one.

A one-step decoder of small batches spends a good part of its time launching kernels; a graph launches them all at once.
Graphs need fixed shapes and fixed addresses, so each shape (a batch of one bucket) has its own, with its own input.
Recording takes as long as several runs. A shape therefore takes another's place only if it has come more often lately:
many sizes in turn would otherwise record again at nearly every call.
Not yet run on a GPU: the tests drive it with a recorder that stands in for CUDA's.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
MOST_SHAPES = 12
"""Graphs kept for one function: each holds its input and its result."""
AGAIN = 2
"""A shape is recorded when it comes for this time; before, and where recording failed, it runs as it is."""
MEMORY = 512
"""After this many calls the counts of all shapes are halved, so that they describe recent traffic."""
RECORDING = threading.Lock()
"""Held by a thread that records a graph, synchronises a whole device or empties torch's cache. During a recording, CUDA
refuses the other two in every thread, and the recording fails too. Starting a recording does both."""


def empty_cache() -> None:
    """Return torch's cached blocks of memory to all devices; after a recording that is in progress."""
    with RECORDING:
        torch.cuda.empty_cache()


class Recorder(Protocol):
    """Runs ``function`` a few times on ``example``, then records it; returns what replays it on new values.

    The replay's result lies in memory that the next replay overwrites.
    """

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]: ...


class CudaRecorder:
    """Recording with :class:`torch.cuda.CUDAGraph` on ``device``; all graphs of one recorder share a pool of memory.

    Only one thread may record and replay; others may work on the same device meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None  # torch's own is shared by all threads

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
        """See :class:`Recorder`."""
        current = torch.cuda.current_stream(self._device)
        # torch.cuda.stream(current): a recording that fails may leave its own stream as the thread's current one.
        with RECORDING, torch.cuda.device(self._device), torch.cuda.stream(current):
            held = example.clone()
            self._stream = self._stream or torch.cuda.Stream(self._device)
            side = self._stream
            side.wait_stream(current)
            with torch.cuda.stream(side):  # libraries choose their algorithms and workspaces here, outside the graph
                for _ in range(3):
                    function(held)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # "thread_local": what another thread allocates meanwhile does not break the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                result = function(held)

        def replay(values: Tensor) -> Any:
            held.copy_(values)
            graph.replay()
            return result

        return replay


class Graphed:
    """``function`` of one tensor, by graphs where a shape has come before. One thread calls it."""

    def __init__(self, function: Callable[[Tensor], Any], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._graphs: dict[Shape, Callable[[Tensor], Any]] = {}
        self._seen: Counter[Shape] = Counter()
        self._calls = 0
        self._hopeless: set[Shape] = set()

    @property
    def shapes(self) -> list[Shape]:
        """What is recorded."""
        return list(self._graphs)

    def forget(self) -> None:
        """Drop all graphs, which returns their memory to the pool. Shapes are recorded again when they come again."""
        self._graphs.clear()
        self._seen.clear()

    def __call__(self, values: Tensor, otherwise: Callable[[Tensor], Any] | None = None) -> Any:
        """The same as the function; a graph's result is valid until the next call of that shape.

        ``otherwise`` does the same as the function, where no graph is replayed, and may also measure.
        """
        shape = tuple(values.shape)
        self._seen[shape] += 1
        self._calls += 1
        if self._calls % MEMORY == 0:
            self._seen = Counter({known: count // 2 for known, count in self._seen.items() if count > 1})
            self._hopeless.clear()  # memory may be free again
        if shape not in self._graphs and not self._record(shape, values):
            return (otherwise or self._function)(values)
        return self._graphs[shape](values)

    def _record(self, shape: Shape, values: Tensor) -> bool:
        if self._seen[shape] < AGAIN or shape in self._hopeless:
            return False
        if len(self._graphs) >= MOST_SHAPES:
            rarest = min(self._graphs, key=lambda known: self._seen[known])
            if self._seen[rarest] >= self._seen[shape]:
                return False
            del self._graphs[rarest]
        try:
            self._graphs[shape] = self._recorder(self._function, values)
        except RuntimeError as error:  # out of memory is one; then there is still the way without a graph
            self._hopeless.add(shape)
            log.warning("no CUDA graph for %s (%s)", shape, error)
            return False
        return True
