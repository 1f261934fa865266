"""Buffers by shape and CUDA graphs by number: ONNX Runtime on the CPU, and a session that captures as CUDA's does."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aeic.runtime.capture_gate import CaptureGate
from edge_encoder.encoding import resident_graph
from edge_encoder.encoding.resident_graph import UNCAPTURED, GraphGone, ResidentGraph
from tests.support.capturing_session import OUTPUTS, Session, inputs, right


def resident(session: Session, **options: Any) -> ResidentGraph:
    return ResidentGraph(lambda capture: session, OUTPUTS, device="cpu", **options)


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


@pytest.mark.parametrize("error", ["CUDA failure 900: operation not permitted", "out of memory"])
def test_a_capture_that_fails_ends_captures_but_not_the_use(error: str, caplog: pytest.LogCaptureFixture) -> None:
    opened: list[Session] = []

    def fails(event: str, number: int) -> None:
        if event == "capture":
            raise RuntimeError(error)

    def open_session(capture: bool) -> Session:
        opened.append(Session(capture, fails))
        return opened[-1]

    graph = ResidentGraph(open_session, OUTPUTS, device="cpu")
    compute(graph, inputs(3))
    with caplog.at_level(logging.WARNING), pytest.raises(GraphGone):
        compute(graph, inputs(3))
    assert "AEIC_EDGE_CUDA_GRAPHS=false" in caplog.text and error in caplog.text
    for value in range(4):
        assert graph.place(inputs(3)) == UNCAPTURED
        assert right(compute(graph, inputs(3, value)), inputs(3, value))
    assert len(opened) == 2 and not graph.captures
    assert {event for event, _ in opened[1].events} == {"run"}
    assert opened[0] in graph._abandoned, "releasing it may end the process"


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


def test_all_graphs_go_before_the_arena_shrinks() -> None:
    session = Session()
    graph = resident(session)
    for width in (3, 4, 3, 4):
        compute(graph, inputs(width))
    graph.empty(inputs(1))
    assert session.events[-1] == ("shrink", UNCAPTURED) and session.dropped == {1, 2}
    for value in range(3):
        assert right(compute(graph, inputs(3, value)), inputs(3, value))
    assert sorted(session.graphs) == [3]


def test_a_release_of_onnx_runtime_that_drops_no_graphs_uses_no_number_again() -> None:
    class Older(Session):
        release_captured_graph = None  # type: ignore[assignment]  # as if the method did not exist

        def run(self, names: None, given: Any, options: Any) -> Any:
            self.graphs, self.dropped = {}, self.dropped | set(self.graphs)
            return super().run(names, given, options)

    session = Older()
    graph = resident(session)
    for _ in range(2):
        for value in range(3):
            assert right(compute(graph, inputs(3, value)), inputs(3, value))
        graph.empty(inputs(1))
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
