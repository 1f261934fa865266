"""Buffers by shape and CUDA graphs by number: ONNX Runtime on the CPU, and a session that captures as CUDA's does."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from aeic.runtime.capture_gate import CaptureGate
from edge_encoder.encoding import resident_graph
from edge_encoder.encoding.resident_graph import UNCAPTURED, GraphGone, ResidentGraph
from tests.support.capturing_session import OUTPUTS, Session, inputs, right


def resident(session: Session, plain: Session | None = None, **options: Any) -> ResidentGraph:
    """With ``session`` for captures, and ``plain`` for all other runs, or the same one."""
    return ResidentGraph(
        lambda capture: session if capture or plain is None else plain, OUTPUTS, device="cpu", **options
    )


def compute(graph: ResidentGraph, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return graph.run(given, graph.place(given))


def test_a_shape_that_comes_again_is_captured_after_two_runs_and_then_replayed() -> None:
    session = Session()
    graph = resident(session)
    for value in range(4):
        given = inputs(5, value)
        assert right(compute(graph, given), given)
    without, replay = ("run", UNCAPTURED), ("replay", 1)
    assert session.events == [without, without, without, ("capture", 1), replay, replay, replay]


def test_results_stay_when_the_buffers_change() -> None:
    graph = resident(Session())
    given = [inputs(5, value) for value in range(4)]
    found = [compute(graph, one) for one in given]
    assert all(right(one, other) for one, other in zip(found, given, strict=True))


def test_shapes_have_numbers_and_buffers_of_their_own() -> None:
    session = Session()
    graph = resident(session)
    for value in range(6):
        for width in (3, 4, 5):
            given = inputs(width, value)
            assert right(compute(graph, given), given)
    assert sorted(session.graphs) == [1, 2, 3]
    addresses = [address for one in session.graphs.values() for address in one.addresses]
    assert len(set(addresses)) == len(addresses) == 3 * 4


def test_a_more_frequent_shape_takes_the_rarest_ones_place_and_no_number_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident_graph, "MOST_SHAPES", 2)
    session = Session()
    graph = resident(session)

    def times(width: int, count: int) -> None:
        for _ in range(count):
            assert right(compute(graph, inputs(width)), inputs(width))

    for width, count in ((3, 5), (4, 2), (5, 2)):
        times(width, count)
    assert sorted(session.graphs) == [1, 2], "as often as the rarest one is not enough"
    times(5, 1)
    assert sorted(session.graphs) == [1, 3] and session.dropped == {2}
    times(4, 2)
    assert sorted(session.graphs) == [1, 4] and session.dropped == {2, 3}


def test_a_number_whose_graph_has_gone_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have taken the place between two calls."""
    monkeypatch.setattr(resident_graph, "MOST_SHAPES", 1)
    graph = resident(Session())
    first = [graph.place(inputs(3)) for _ in range(2)][-1]
    for _ in range(3):
        graph.place(inputs(4))
    with pytest.raises(GraphGone):
        graph.run(inputs(3), first)


def test_sizes_without_end_have_no_buffers() -> None:
    session = Session()
    graph = resident(session)
    for width in range(1, 60):
        assert right(compute(graph, inputs(width)), inputs(width))
    assert {event for event, _ in session.events} == {"run"} and not graph._places


def test_large_latents_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_graph, "MOST_ELEMENTS", 7)
    graph = resident(Session())
    assert [graph.place(inputs(3)) for _ in range(3)] == [UNCAPTURED, 1, 1]
    assert [graph.place(inputs(4)) for _ in range(3)] == [UNCAPTURED] * 3


class Buffers:
    """Remembers all buffers that are made, weakly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: list[weakref.ref[Any]] = []
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type

        def made(*arguments: Any) -> Any:
            value = make(*arguments)
            self._made.append(weakref.ref(value))
            return value

        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", made)

    @property
    def alive(self) -> int:
        return sum(value() is not None for value in self._made)


class Failing:
    """Sessions of which those that capture fail to, with ``error``. ``opened``: weakly, in order.

    ``stays_open``: the failed capture goes on, so that every later run fails too, and releasing it is a breach.
    """

    def __init__(self, error: str, *, stays_open: bool = False) -> None:
        self.error, self.stays_open = error, stays_open
        self.opened: list[weakref.ref[Any]] = []
        self.gate = CaptureGate()
        self.breaches: list[str] = []

    def __call__(self, capture: bool) -> Session:
        failing = self

        class One(Session):
            capturing = False

            def __del__(self) -> None:
                if self.capturing:
                    failing.breaches.append("released while its capture is open")
                if not failing.gate._runs:
                    failing.breaches.append("released while another session may capture")

        def fails(event: str, number: int) -> None:
            session = found()
            assert session is not None
            if session.capturing:
                raise RuntimeError("CUDA failure 906: operation would depend on a capturing stream")
            if event == "capture" and self.error:
                session.capturing = self.stays_open
                raise RuntimeError(self.error)

        one = One(capture, fails)
        found = weakref.ref(one)
        self.opened.append(found)
        return one


def test_a_capture_that_fails_ends_captures_but_not_the_use(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the session that captures held is given back at once."""
    buffers, sessions = Buffers(monkeypatch), Failing("")
    gc.disable()  # nothing may have to wait for it
    try:
        graph = ResidentGraph(sessions, OUTPUTS, device="cpu", gate=sessions.gate)
        for _ in range(3):
            compute(graph, inputs(4))
        assert buffers.alive == 4
        sessions.error = "CUDA failure 900: operation not permitted"
        compute(graph, inputs(3))
        with caplog.at_level(logging.WARNING), pytest.raises(GraphGone):
            compute(graph, inputs(3))
        assert "AEIC_EDGE_CUDA_GRAPHS=false" in caplog.text and sessions.error in caplog.text
        assert [one() is None for one in sessions.opened] == [False, True] and buffers.alive == 0
    finally:
        gc.enable()
    for value in range(4):
        assert graph.place(inputs(3)) == UNCAPTURED
        assert right(compute(graph, inputs(3, value)), inputs(3, value))
    plain = sessions.opened[0]()
    assert len(sessions.opened) == 2 and not graph.captures and sessions.breaches == []
    assert plain is not None and {event for event, _ in plain.events} == {"run"}


def test_a_session_whose_failed_capture_stays_open_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releasing it, or its buffers, would end the process."""
    buffers, sessions = Buffers(monkeypatch), Failing("CUDA failure 900", stays_open=True)
    graph = ResidentGraph(sessions, OUTPUTS, device="cpu", gate=sessions.gate)
    compute(graph, inputs(3))
    with pytest.raises(GraphGone):
        compute(graph, inputs(3))
    gc.collect()
    assert sessions.breaches == [] and buffers.alive == 4 and not graph.captures
    assert all(right(compute(graph, inputs(3, value)), inputs(3, value)) for value in range(3))
    kept = sessions.opened[1]()
    assert kept is not None
    kept.capturing = False  # the test ends


def test_callers_that_come_while_a_capture_fails_go_on_without() -> None:
    """They have asked for their place before, and may be too late for it, or find no session for it."""
    inside, leave = threading.Event(), threading.Event()

    def fails(event: str, number: int) -> None:
        if event == "capture":
            inside.set()
            assert leave.wait(30)
            raise RuntimeError("CUDA failure 900")

    plain, gone = Session(capture=False), []
    graph = resident(Session(True, fails), plain)
    compute(graph, inputs(3))

    def capture() -> None:
        try:
            compute(graph, inputs(3))
        except GraphGone:
            gone.append("capture")

    first = threading.Thread(target=capture)
    first.start()
    assert inside.wait(30)
    number = graph.place(inputs(3))
    assert number == 1

    def late() -> None:
        try:
            graph.run(inputs(3), number)
        except GraphGone:
            gone.append("late")

    second = threading.Thread(target=late)
    second.start()
    leave.set()
    first.join(30)
    second.join(30)
    assert sorted(gone) == ["capture", "late"]
    assert [graph.place(inputs(4)) for _ in range(3)] == [UNCAPTURED] * 3


@pytest.mark.parametrize("where", ["run", "capture"])
def test_a_shape_that_lacks_memory_loses_its_graph_and_the_others_keep_theirs(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident_graph, "MEMORY", 20)
    buffers, full = Buffers(monkeypatch), [False]

    def fails(event: str, number: int) -> None:
        if full[0] and event == where:
            full[0] = where == "capture"  # that the capture is over is seen by a run
            raise RuntimeError("CUDA failure 2: out of memory")

    session, plain = Session(True, fails), Session(capture=False)
    graph = resident(session, plain)
    for width in (3, 4, 3, 4):
        compute(graph, inputs(width))
    full[0] = True
    compute(graph, inputs(5))
    with pytest.raises(RuntimeError, match="out of memory"):
        compute(graph, inputs(5))
    graph.make_room(inputs(5), inputs(1))
    full[0] = False
    assert buffers.alive == 2 * 4 and sorted(session.graphs) == [1, 2] and graph.captures
    assert [graph.place(inputs(width)) for width in (3, 4, 5)] == [1, 2, UNCAPTURED]
    assert plain.events[-1] == ("shrink", UNCAPTURED) and ("shrink", UNCAPTURED) not in session.events
    before = len(session.events)
    for width in (3, 4, 5):
        assert right(compute(graph, inputs(width, 7)), inputs(width, 7))
    assert session.events[before:] == [("replay", 1), ("replay", 2)]
    for value in range(9):  # later it is tried again, with buffers and a number of its own
        assert right(compute(graph, inputs(5, value)), inputs(5, value))
    assert sorted(session.graphs) == [1, 2, 4] and buffers.alive == 3 * 4


def test_a_session_that_cannot_capture_is_opened_without(caplog: pytest.LogCaptureFixture) -> None:
    def open_session(capture: bool) -> Session:
        if capture:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        return Session(capture=False)

    with caplog.at_level(logging.WARNING):
        graph = ResidentGraph(open_session, OUTPUTS, device="cpu")
    assert "AEIC_EDGE_CUDA_GRAPHS=false" in caplog.text and not graph.captures
    assert all(right(compute(graph, inputs(3, value)), inputs(3, value)) for value in range(3))


def test_an_error_of_a_session_that_opens_neither_way_is_raised() -> None:
    def open_session(capture: bool) -> Session:
        raise RuntimeError("no CUDA")

    with pytest.raises(RuntimeError, match="no CUDA"):
        ResidentGraph(open_session, OUTPUTS, device="cpu")


def test_the_arena_shrinks_when_the_last_graph_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next runs make new buffers, and nothing refers to the old ones."""
    monkeypatch.setattr(resident_graph, "MEMORY", 10)
    session, buffers = Session(), Buffers(monkeypatch)
    graph = resident(session, Session(capture=False))
    for width in (3, 4, 3, 4):
        compute(graph, inputs(width))
    graph.make_room(inputs(4), inputs(1))
    assert session.dropped == {2} and buffers.alive == 4
    graph.make_room(inputs(3), inputs(1))
    assert session.events[-1] == ("shrink", UNCAPTURED) and session.dropped == {1, 2} and buffers.alive == 0
    for value in range(8):
        assert right(compute(graph, inputs(3, value)), inputs(3, value))
    assert sorted(session.graphs) == [3] and buffers.alive == 4


def test_a_release_of_onnx_runtime_that_drops_no_graphs_uses_no_number_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_graph, "MEMORY", 4)

    class Older(Session):
        release_captured_graph = None  # type: ignore[assignment]  # as if the method did not exist

        def run(self, names: None, given: Any, options: Any) -> Any:
            self.graphs, self.dropped = {}, self.dropped | set(self.graphs)
            return super().run(names, given, options)

    session = Older()
    graph = resident(session, Session(capture=False))
    for _ in range(2):
        for value in range(4):
            assert right(compute(graph, inputs(3, value)), inputs(3, value))
        graph.make_room(inputs(3), inputs(1))
    assert [number for event, number in session.events if event == "capture"] == [1, 2]


def test_many_threads_share_one_that_captures_and_replays() -> None:
    session, failures = Session(), []
    graph = resident(session)

    def work(seed: int) -> None:
        for step in range(30):
            given = inputs(3 + (seed + step) % 4, seed + step)
            if not right(compute(graph, given), given):
                failures.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and len({one.thread for one in session.graphs.values()}) == 1


def test_a_dtype_that_is_not_the_buffers_is_refused() -> None:
    """ONNX Runtime's copy would take the bytes as they are."""
    graph = resident(Session())
    for _ in range(2):
        compute(graph, inputs(4))
    wrong = inputs(4) | {"y": np.ones((2, 4), np.int32)}
    with pytest.raises(AssertionError):
        compute(graph, wrong)


def test_a_capture_waits_for_runs_and_later_runs_for_it() -> None:
    gate, order = CaptureGate(), []
    inside, leave = threading.Event(), threading.Event()

    def run(name: str, signal: threading.Event | None = None) -> None:
        with gate.run():
            order.append(name)
            if signal:
                signal.set()
                assert leave.wait(30)

    def capture() -> None:
        with gate.capture():
            order.append("capture")

    first = threading.Thread(target=run, args=("first", inside))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=capture)
    second.start()
    while not gate._captures and second.is_alive():
        time.sleep(0.001)
    third = threading.Thread(target=run, args=("third",))
    third.start()
    third.join(0.1)
    assert order == ["first"]
    leave.set()
    for thread in (first, second, third):
        thread.join(30)
    assert order == ["first", "capture", "third"]


def test_other_work_on_the_gpu_is_kept_away_during_the_capture() -> None:
    gate = CaptureGate()
    held: list[tuple[str, bool]] = []

    def note(event: str, number: int) -> None:
        held.append((event, gate._capturing))

    graph = ResidentGraph(lambda capture: Session(capture, note), OUTPUTS, device="cpu", gate=gate)
    for _ in range(3):
        compute(graph, inputs(3))
    assert all(alone == (event == "capture") for event, alone in held) and ("capture", True) in held


def test_without_captures_callers_run_at_the_same_time() -> None:
    both = threading.Barrier(2)

    class Meeting(Session):
        def run(self, *arguments: Any) -> list[NDArray[Any]]:
            both.wait(timeout=10)
            return super().run(*arguments)

    graph, found = resident(Meeting(), capture=False), []
    callers = [threading.Thread(target=lambda: found.append(compute(graph, inputs(5)))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert [right(one, inputs(5)) for one in found] == [True, True]


def test_no_more_graphs_are_captured_than_may_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resident_graph, "MOST_GRAPHS", 2)
    session = Session()
    graph = resident(session)
    for width in (3, 4, 5):
        for _ in range(4):
            assert right(compute(graph, inputs(width)), inputs(width))
    assert [number for kind, number in session.events if kind == "capture"] == [1, 2]
    assert "2 CUDA graphs were captured" in caplog.text
