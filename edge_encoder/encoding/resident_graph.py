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
- Buffers come from an arena of the process, which keeps what they leave for later ones.

Only shapes that come more often than others are captured, by a session of their own. All other runs are made by a
second session, without buffers and each in its caller's thread, so that several start their kernels at the same time.
The arena of the second one may shrink at any time. So a shape for which memory does not suffice takes nothing from
those that are captured.
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
from aeic.runtime.device_check import lacks_memory

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
"""After this many calls the counts of all shapes are halved, so that they describe recent traffic. Shapes that lacked
memory may then be captured again."""
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

    def drop_buffers(self) -> None:
        """The next run would make new ones."""
        self.binding = self.inputs = self.outputs = None


class ResidentGraph:
    """One graph on one device; safe to share between threads. Those that use CUDA graphs take turns."""

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
        needs a session that can capture, as CUDA's. ``gate`` excludes other work of the process from the device during
        a capture; ``open_session`` enters it by itself.
        """
        self._dtypes, self._device, self._gate = outputs, device, gate
        self._thread = ThreadPoolExecutor(1, "resident-graph")
        self._plain = open_session(False)
        self._abandoned: list[Any] = []
        self._lock = Lock()  # of what follows; a place itself belongs to the thread
        self._capturing = _open_capturing(open_session) if capture else None
        self._places: dict[Shapes, _Place] = {}  # none without the session that captures
        self._seen: Counter[Shapes] = Counter()
        self._lacked: set[Shapes] = set()  # memory: they get no place until the counts are halved
        self._calls = self._last = 0

    @property
    def captures(self) -> bool:
        """Whether CUDA graphs are used."""
        return self._capturing is not None

    def place(self, inputs: Arrays) -> int:
        """The number of the CUDA graph that computes inputs of these shapes from now on; ``UNCAPTURED`` for none.

        A graph that has not been captured yet is captured by the first run with its number.
        """
        shapes = _shapes(inputs)
        with self._lock:
            if self._capturing is None:
                return UNCAPTURED
            self._seen[shapes] += 1
            self._calls += 1
            if self._calls % MEMORY == 0:
                self._seen = Counter({known: count // 2 for known, count in self._seen.items() if count > 1})
                self._lacked.clear()  # there may be memory again
            if shapes not in self._places and not self._admit(shapes):
                return UNCAPTURED
            return self._places[shapes].graph

    def run(self, inputs: Arrays, graph: int) -> list[NDArray[Any]]:
        """The outputs, by the graph whose number :meth:`place` gave. ``GraphGone`` if there is no such graph any more.

        A capture that fails ends the use of graphs, which is ``GraphGone`` too. Other errors are raised, and so is a
        lack of memory during the capture: see :meth:`make_room`.
        """
        if graph == UNCAPTURED:
            with self._gate.run():
                found: list[NDArray[Any]] = self._plain.run(None, dict(inputs), cuda.graph_options(UNCAPTURED))
            return found
        return self._thread.submit(self._run, inputs, graph).result()

    def make_room(self, lacking: Arrays, smallest: Arrays) -> None:
        """After a run of ``lacking`` that lacked memory: give back what is kept for this shape, and for no other.

        It loses its CUDA graph and its buffers, and gets none before the counts are halved. The arenas then give back
        what they do not use, by a run of ``smallest``; that of the captured runs only if no shape has a graph any more.
        """
        if self._capturing is not None:
            self._thread.submit(self._do_without, _shapes(lacking), smallest).result()
        with self._gate.run():
            self._plain.run(None, dict(smallest), cuda.shrinking())

    def _admit(self, shapes: Shapes) -> bool:
        """Whether the shape has got a place; it takes another's only if it has come more often lately."""
        if self._seen[shapes] < AGAIN or np.prod(shapes[0]) > MOST_ELEMENTS or self._last >= MOST_GRAPHS:
            return False
        if shapes in self._lacked:
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

    # -- what follows runs in the one thread ---------------------------------------------------------------------------

    def _run(self, inputs: Arrays, graph: int) -> list[NDArray[Any]]:
        with self._lock:
            place = self._places.get(_shapes(inputs))
        if place is None or place.graph != graph:
            raise GraphGone
        if not place.captured:
            self._capture_graph(place, inputs)
        with self._gate.run():
            return self._bound(place, inputs, place.options)

    def _bound(self, place: _Place, inputs: Arrays, options: onnxruntime.RunOptions) -> list[NDArray[Any]]:
        session = self._capturing
        assert session is not None, "without it there are no places"
        if place.binding is None:
            self._bind(session, place, inputs)
        assert place.inputs is not None and place.outputs is not None
        for name, array in inputs.items():
            buffer = place.inputs[name]
            # The copy checks the number of elements only.
            assert tuple(buffer.shape()) == array.shape and buffer.data_type() == _onnx_type(array.dtype)
            buffer.update_inplace(np.ascontiguousarray(array))
        place.binding.synchronize_inputs()
        session.run_with_iobinding(place.binding, options)
        place.binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in place.outputs.values()]  # on the CPU numpy() is the buffer itself

    def _bind(self, session: Any, place: _Place, inputs: Arrays) -> None:
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        shape = next(iter(inputs.values())).shape
        place.inputs = {name: make(array.shape, array.dtype.type, self._device, 0) for name, array in inputs.items()}
        place.outputs = {name: make(shape, dtype, self._device, 0) for name, dtype in self._dtypes.items()}
        binding = session.io_binding()
        for name, value in place.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in place.outputs.items():
            binding.bind_ortvalue_output(name, value)
        place.binding = binding

    def _capture_graph(self, place: _Place, inputs: Arrays) -> None:
        """Run without a capture first, then capture. ``GraphGone`` if that fails for another reason than memory."""
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
            failure = error.with_traceback(None)  # which would keep the session
        over = self._is_over(place, inputs)
        if over and lacks_memory(failure):
            try:
                raise failure
            finally:
                del failure  # it refers to this frame from now on
        log.warning(
            "capturing a CUDA graph failed (%s): the entropy model goes on without. Set"
            " AEIC_EDGE_CUDA_GRAPHS=false, or update the driver and ONNX Runtime",
            failure,
        )
        self._end_captures(place, over)
        raise GraphGone

    def _is_over(self, place: _Place, inputs: Arrays) -> bool:
        """Whether a capture that failed is over: CUDA refuses a run without, whose end is waited for, while it lasts.

        ONNX Runtime ends a capture after errors of kernels, but not after every other one.
        """
        try:
            with self._gate.run():
                self._bound(place, inputs, cuda.graph_options(UNCAPTURED))
        except Exception as error:  # as above
            log.warning("the failed capture is still open, its memory is kept until the next start: %s", str(error))
            return False
        return True

    def _end_captures(self, failed: _Place, over: bool) -> None:
        """Release the session that captures, with all graphs and buffers. While a capture is open they are kept:
        releasing them would end the process."""
        with self._lock:
            session, self._capturing = self._capturing, None
            places = [failed, *self._places.values()]
            self._places.clear()
        if not over:
            self._abandoned += [session, *places]
            return
        with self._gate.run():  # whatever frees memory waits for the device
            for place in places:
                place.drop_buffers()
            del session

    def _do_without(self, shapes: Shapes, smallest: Arrays) -> None:
        """Release what the shape has, and all that the arena does not use once no shape has anything."""
        with self._lock:
            self._lacked.add(shapes)
            place = self._places.pop(shapes, None)
            left = bool(self._places)
        if place is not None:
            self._release(place)
        if self._capturing is not None and not left:
            with self._gate.run():
                self._capturing.run(None, dict(smallest), cuda.shrinking())

    def _release(self, place: _Place) -> None:
        """Drop the graph, whose number is not used again even where ONNX Runtime cannot drop it, and its buffers."""
        if self._capturing is None:
            return  # they went with the session, or are kept with it
        release = getattr(self._capturing, "release_captured_graph", None)
        with self._gate.run():
            try:
                if place.captured and release is not None:
                    release(place.graph)
            except Exception as error:  # the graph only takes memory from now on
                log.warning("a CUDA graph could not be released: %s", error)
            place.drop_buffers()


def _open_capturing(open_session: Callable[[bool], Any]) -> Any:
    """The session that captures; None where there can be none."""
    try:
        return open_session(True)
    except Exception as error:  # a node without a CUDA kernel, a build without graphs, or a lack of memory
        log.warning("the entropy model does without CUDA graphs (%s): AEIC_EDGE_CUDA_GRAPHS=false silences this", error)
        return None


def _shapes(inputs: Arrays) -> Shapes:
    return tuple(array.shape for array in inputs.values())


def _onnx_type(dtype: np.dtype[Any]) -> str:
    return {"float32": "tensor(float)", "int32": "tensor(int32)"}[dtype.name]
