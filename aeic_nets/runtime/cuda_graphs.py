"""CUDA graphs by shape: a module's launches are recorded once for each shape that comes again, and replayed as one.

A one-step decoder of small batches spends a good part of its time launching kernels; a graph launches them all at once.
Graphs need fixed shapes and fixed addresses, so each shape (a batch of one bucket) has its own, with its own input.
Not yet run on a GPU: the tests drive it with a recorder that stands in for CUDA's.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
MOST_SHAPES = 12
"""Graphs kept for one module, least recently used first to go: each holds its activations."""
AGAIN = 2
"""A shape is recorded when it comes for this time; before, and where recording failed, it runs as it is."""


class Recorder(Protocol):
    """Runs ``function`` a few times on ``example``, then records it; returns what replays it on new values.

    The replay's result lies in memory that the next replay overwrites.
    """

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]: ...


class CudaRecorder:
    """Recording with :class:`torch.cuda.CUDAGraph`; all graphs of one recorder share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
        """See :class:`Recorder`."""
        held = example.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their algorithms and workspaces here, outside the graph
            for _ in range(3):
                function(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
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
        self._graphs: OrderedDict[Shape, Callable[[Tensor], Any]] = OrderedDict()
        self._seen: Counter[Shape] = Counter()
        self._hopeless: set[Shape] = set()

    @property
    def shapes(self) -> list[Shape]:
        """What is recorded, least recently used first."""
        return list(self._graphs)

    def __call__(self, values: Tensor) -> Any:
        """The same as the function; a graph's result is valid until the next call of that shape."""
        shape = tuple(values.shape)
        self._seen[shape] += 1
        if shape not in self._graphs and not self._record(shape, values):
            return self._function(values)
        self._graphs.move_to_end(shape)
        return self._graphs[shape](values)

    def _record(self, shape: Shape, values: Tensor) -> bool:
        if self._seen[shape] < AGAIN or shape in self._hopeless:
            return False
        while len(self._graphs) >= MOST_SHAPES:
            self._graphs.popitem(last=False)
        try:
            self._graphs[shape] = self._recorder(self._function, values)
        except RuntimeError as error:  # out of memory is one; then there is still the way without a graph
            self._hopeless.add(shape)
            log.warning("no CUDA graph for %s (%s)", shape, error)
            return False
        return True
