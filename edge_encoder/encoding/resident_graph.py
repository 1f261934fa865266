"""A graph of ONNX Runtime whose inputs and outputs have buffers on the device, captured as a CUDA graph by shape.

Starting some thousand kernels one by one takes longer than running them. A CUDA graph starts them all at once. ONNX
Runtime captures one for each ``gpu_graph_id`` of a run, and -1 means a run without. Its terms, from its documentation
and source:

- A graph replays with the shapes and addresses that it was captured with. So each shape has buffers of its own, which
  stay where they are: inputs are copied into them, and outputs out of them.
- Nothing may be allocated during a capture. Two runs without come before it, since some releases count such runs for
  the session and not for each graph.
- Graphs belong to the thread that captured them. All runs are made by one thread.
- The memory between a graph's inputs and outputs is the arena's. It must not shrink while there are graphs.
- A number is never used again: releases before 1.27 cannot drop a graph.

Only shapes that come more often than others are captured. Without captures, each caller runs the session in its own
thread, and there are no buffers: several runs then start their kernels at the same time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.runtime import cuda
from aeic.runtime.capture_gate import GATE, CaptureGate

log = logging.getLogger("aeic.edge.resident_graph")

UNCAPTURED = cuda.UNCAPTURED
MOST_SHAPES = 8
"""Shapes that have buffers, and a CUDA graph each."""
MOST_ELEMENTS = 1 << 21
"""Of the first input: 1920x1088 has a quarter of it. The time of larger ones is not that of starting kernels, and their
buffers would be large."""
AGAIN = 2
"""A shape gets buffers when it comes for this time."""
MOST_GRAPHS = 64
"""Graphs that are captured in all. Where ONNX Runtime cannot drop a graph, each takes memory until the restart."""
MEMORY = 512
"""After this many calls the counts of all shapes are halved, so that they describe recent traffic."""
WARM_RUNS = 2

Device = Literal["cpu", "cuda"]
Shapes = tuple[tuple[int, ...], ...]
Arrays = Mapping[str, NDArray[Any]]


class GraphGone(Exception):
    """The graph that was asked for has been given up for another shape's."""


@dataclass
class _Place:
    """What one shape has. ``graph`` is its number; ``runs`` counts down those that come before the capture."""

    graph: int
    options: onnxruntime.RunOptions
    runs: int = WARM_RUNS
    captured: bool = False
    binding: Any = None
    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None


class ResidentGraph:
    """One graph on one device; safe to share between threads, which take turns."""

    def __init__(
        self,
        open_session: Callable[[bool], Any],
        outputs: Mapping[str, type[Any]],
        *,
        device: Device = "cuda",
        capture: bool = True,
        gate: CaptureGate = GATE,
    ) -> None:
        """``open_session(capture)`` opens the session, with ``enable_cuda_graph`` or without; it raises what fails.

        ``outputs``: names and dtypes; all have the shape of the first input. ``device`` has the buffers. ``capture``
        needs a session that can capture, as CUDA's. ``gate`` excludes other work of the
        process from the device during a capture.
        """
        self._open, self._dtypes, self._device, self._gate = open_session, outputs, device, gate
        self._thread = ThreadPoolExecutor(1, "resident-graph")
        self._lock = Lock()  # of the four below; a place itself belongs to the thread
        self._places: dict[Shapes, _Place] = {}
        self._seen: Counter[Shapes] = Counter()
        self._calls = self._last = 0
        self._abandoned: list[Any] = []
        self._capture = capture
        self._session = self._opened()

    @property
    def captures(self) -> bool:
        """Whether CUDA graphs are used."""
        return self._capture

    def place(self, inputs: Arrays) -> int:
        """The number of the CUDA graph that computes inputs of these shapes from now on; ``UNCAPTURED`` for none.

        A graph that has not been captured yet is captured by the first run with its number.
        """
        if not self._capture:
            return UNCAPTURED
        shapes = _shapes(inputs)
        with self._lock:
            self._seen[shapes] += 1
            self._calls += 1
            if self._calls % MEMORY == 0:
                self._seen = Counter({known: count // 2 for known, count in self._seen.items() if count > 1})
            if shapes not in self._places and not self._admit(shapes):
                return UNCAPTURED
            return self._places[shapes].graph

    def run(self, inputs: Arrays, graph: int) -> list[NDArray[Any]]:
        """The outputs, by the graph whose number :meth:`place` gave. ``GraphGone`` if there is no such graph any more.

        A capture that fails ends the use of graphs, which is ``GraphGone`` too. Errors of a run without are raised.
        """
        if not self._capture:
            if graph != UNCAPTURED:
                raise GraphGone
            return self._unbound(inputs)
        return self._thread.submit(self._run, inputs, graph).result()

    def empty(self, smallest: Arrays) -> None:
        """Give the memory back: all graphs and buffers, then the arena, which shrinks after a run of ``smallest``."""
        self._thread.submit(self._empty, smallest).result()

    def _admit(self, shapes: Shapes) -> bool:
        """Whether the shape has got a place; it takes another's only if it has come more often lately."""
        if self._seen[shapes] < AGAIN or np.prod(shapes[0]) > MOST_ELEMENTS or self._last >= MOST_GRAPHS:
            return False
        if len(self._places) >= MOST_SHAPES:
            rarest = min(self._places, key=lambda known: self._seen[known])
            if self._seen[rarest] >= self._seen[shapes]:
                return False
            gone = self._places.pop(rarest)
            self._thread.submit(self._release, gone)
        self._last += 1
        self._places[shapes] = _Place(self._last, cuda.graph_options(self._last))
        if self._last == MOST_GRAPHS:
            log.warning("%d CUDA graphs were captured: other sizes go on without until the next start", MOST_GRAPHS)
        return True

    def _unbound(self, inputs: Arrays) -> list[NDArray[Any]]:
        with self._gate.run():
            found: list[NDArray[Any]] = self._session.run(None, dict(inputs), cuda.graph_options(UNCAPTURED))
        return found

    # -- what follows runs in the one thread ---------------------------------------------------------------------------

    def _run(self, inputs: Arrays, graph: int) -> list[NDArray[Any]]:
        with self._lock:
            place = self._places.get(_shapes(inputs))
        if place is None or place.graph != graph:
            if graph != UNCAPTURED:
                raise GraphGone
            return self._unbound(inputs)
        if not place.captured:
            self._capture_graph(place, inputs)
        with self._gate.run():
            return self._bound(place, inputs, place.options)

    def _bound(self, place: _Place, inputs: Arrays, options: onnxruntime.RunOptions) -> list[NDArray[Any]]:
        if place.binding is None:
            self._bind(place, inputs)
        assert place.inputs is not None and place.outputs is not None
        for name, array in inputs.items():
            buffer = place.inputs[name]
            # The copy checks the number of elements only.
            assert tuple(buffer.shape()) == array.shape and buffer.data_type() == _onnx_type(array.dtype)
            buffer.update_inplace(np.ascontiguousarray(array))
        place.binding.synchronize_inputs()
        self._session.run_with_iobinding(place.binding, options)
        place.binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in place.outputs.values()]  # on the CPU numpy() is the buffer itself

    def _bind(self, place: _Place, inputs: Arrays) -> None:
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        shape = next(iter(inputs.values())).shape
        place.inputs = {name: make(array.shape, array.dtype.type, self._device, 0) for name, array in inputs.items()}
        place.outputs = {name: make(shape, dtype, self._device, 0) for name, dtype in self._dtypes.items()}
        binding = self._session.io_binding()
        for name, value in place.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in place.outputs.items():
            binding.bind_ortvalue_output(name, value)
        place.binding = binding

    def _capture_graph(self, place: _Place, inputs: Arrays) -> None:
        """Run without a capture first, then capture. ``GraphGone`` if that fails."""
        while place.runs:
            with self._gate.run():
                self._bound(place, inputs, cuda.graph_options(UNCAPTURED))
            place.runs -= 1
        try:
            with self._gate.capture():
                self._bound(place, inputs, place.options)
            place.captured = True
            return
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            log.warning(
                "capturing a CUDA graph failed (%s): the entropy model goes on without. Set"
                " AEIC_EDGE_CUDA_GRAPHS=false, or update the driver and ONNX Runtime",
                error,
            )
        self._do_without()
        raise GraphGone

    def _do_without(self) -> None:
        """Open the session again without captures. The old one is kept: releasing it while the failed capture is still
        open would end the process."""
        with self._lock:
            self._capture = False
            self._abandoned += [self._session, *self._places.values()]
            self._places.clear()
        self._session = self._opened()

    def _opened(self) -> Any:
        if self._capture:
            try:
                return self._open(True)
            except Exception as error:  # a node without a CUDA kernel, or a build without graphs
                log.warning(
                    "the entropy model does without CUDA graphs (%s): AEIC_EDGE_CUDA_GRAPHS=false silences this", error
                )
                self._capture = False
        return self._open(False)

    def _empty(self, smallest: Arrays) -> None:
        with self._lock:
            places = list(self._places.values())
            self._places.clear()
        while places:
            self._release(places.pop())
        with self._gate.run():
            self._session.run(None, dict(smallest), cuda.shrinking())

    def _release(self, place: _Place) -> None:
        """Drop the graph, whose number is not used again even where ONNX Runtime cannot drop it, and its buffers."""
        release = getattr(self._session, "release_captured_graph", None)
        try:
            if place.captured and release is not None:
                with self._gate.run():
                    release(place.graph)
        except Exception as error:  # the graph only takes memory from now on
            log.warning("a CUDA graph could not be released: %s", error)
        place.binding = place.inputs = place.outputs = None


def _shapes(inputs: Arrays) -> Shapes:
    return tuple(array.shape for array in inputs.values())


def _onnx_type(dtype: np.dtype[Any]) -> str:
    return {"float32": "tensor(float)", "int32": "tensor(int32)"}[dtype.name]
