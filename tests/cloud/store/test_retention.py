"""Retention: what is marked can be brought back, what is removed cannot, and a wrong clock removes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import retention
from cloud_decoder.store.clock import DAY, SETTLE_SECONDS, TrustedClock, accept
from cloud_decoder.store.frames import PRUNED
from cloud_decoder.store.retention import Removed, share
from cloud_decoder.store.store import Added, DecodeResult, FrameState, NewFrame, Store
from tests.support.frames import NOW, claim, stored_frame

NOW_MS = int(NOW * 1000)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


def decoded(store: Store, many: int, now: float = NOW) -> list[NewFrame]:
    new = [stored_frame(b"x" * 100) for _ in range(many)]
    store.frames.add(new, now)
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store, many, now)], now)
    return new


def state(store: Store, frame: NewFrame) -> FrameState:
    row = store.frames.get(frame.tenant, frame.id)
    assert row is not None
    return row.state


def test_the_oldest_finished_frames_are_marked_and_their_ids_stay(store: Store) -> None:
    new = decoded(store, 3)
    waiting = stored_frame(b"x" * 100)
    store.frames.add([waiting], NOW)
    assert store.retention.mark(NOW_MS, keep_bytes=250) == 2
    assert store.retention.mark(NOW_MS, keep_bytes=0) == 1  # the frame that is not decoded yet stays
    assert store.retention.mark(NOW_MS, keep_bytes=0) == 0
    assert [state(store, one) for one in new] == [FrameState.PRUNED] * 3
    assert store.frames.bitstream("", new[0].id) is None and not store.queue.demand("", new[0].id, NOW)
    assert store.frames.add([new[0]], NOW) == [Added.DUPLICATE]
    assert claim(store)[0].row.id == waiting.id
    assert store.retention.marked() == (3, 300)


def test_age_counts_from_arrival(store: Store) -> None:
    old, fresh = decoded(store, 2), decoded(store, 2, NOW + 100)
    assert store.retention.mark(NOW_MS, older_than_ms=NOW_MS + 50_000) == 2
    assert {state(store, one) for one in old} == {FrameState.PRUNED}
    assert {state(store, one) for one in fresh} == {FrameState.DONE}


def test_marked_frames_come_back_as_they_were(store: Store) -> None:
    (done,) = decoded(store, 1)
    failed, theirs = stored_frame(b"bad"), stored_frame(b"bad too", tenant="other")
    store.frames.add([failed, theirs], NOW)
    store.queue.fail([one.lease for one in claim(store)], "a reason")
    assert store.retention.mark(NOW_MS, keep_bytes=0) == 3
    assert store.retention.undelete("other") == 1
    assert store.retention.undelete(id=done.id) == 1
    assert store.retention.undelete() == 1 and store.retention.undelete() == 0
    assert state(store, done) is FrameState.DONE and store.frames.bitstream("", done.id) == b"x" * 100
    row = store.frames.get("", failed.id)
    assert row is not None and row.state is FrameState.FAILED and row.reason == "a reason"
    assert store.queue.requeue(NOW) == 2


def test_bitstreams_are_removed_after_the_period_of_grace(store: Store) -> None:
    new = decoded(store, 4)
    store.retention.mark(NOW_MS, keep_bytes=0, limit=2)
    store.retention.mark(NOW_MS + 1000, keep_bytes=0)
    assert store.retention.remove(before_ms=NOW_MS) == Removed()
    assert store.retention.remove(before_ms=NOW_MS + 1000) == Removed(2, 200)
    assert store.retention.undelete() == 2  # only those that were not removed
    assert [state(store, one) for one in new] == [FrameState.PRUNED] * 2 + [FrameState.DONE] * 2
    row = store.frames.get("", new[0].id)
    assert row is not None and row.reason == PRUNED


def test_room_is_made_before_the_grace_is_over(store: Store) -> None:
    decoded(store, 4)
    store.retention.mark(NOW_MS, keep_bytes=0)
    assert store.retention.remove(before_ms=NOW_MS, excess_bytes=101) == Removed(2, 200)
    assert store.retention.marked() == (2, 200)


def decoded_of(store: Store, tenant: str, many: int, size: int, now: float = NOW) -> list[NewFrame]:
    new = [stored_frame(bytes([n]) * size, tenant=tenant) for n in range(many)]
    store.frames.add(new, now)
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store, many, now)], now)
    return new


def test_a_tenant_that_fills_the_store_removes_only_its_own_frames(store: Store) -> None:
    bob, carol = decoded_of(store, "bob", 5, 100), decoded_of(store, "carol", 10, 100)
    alice = decoded_of(store, "alice", 40, 1000, NOW + 1)
    while store.retention.mark(NOW_MS, keep_bytes=10_000, limit=7):
        pass
    assert [state(store, one) for one in [*bob, *carol]] == [FrameState.DONE] * 15
    assert [state(store, one) for one in alice] == [FrameState.PRUNED] * 32 + [FrameState.DONE] * 8
    # The others have marked frames too, and before alice. Those keep their grace while alice's make room.
    store.retention.delete("bob", bob[0].id, NOW_MS - 5000)
    while store.retention.mark(NOW_MS, keep_bytes=5500, limit=7):
        pass
    assert [state(store, one) for one in carol] == [FrameState.DONE] * 10
    removed = store.retention.remove(before_ms=NOW_MS - 10_000, excess_bytes=26_000, limit=50)
    assert removed.bytes >= 26_000 and removed.bytes % 1000 == 0
    assert store.retention.undelete("bob", bob[0].id) == 1


def test_the_shares_of_a_limit() -> None:
    assert share({"a": 10, "b": 20}, 30) == math.inf
    assert share({"a": 10, "b": 20, "c": 300}, 100) == 70
    assert share({"a": 500, "b": 20, "c": 300}, 100) == 40
    assert share({"a": 50, "b": 50}, 0) == 0 and share({}, 0) == math.inf


def test_the_frames_over_the_limit_are_found_in_indexes(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    sql: list[str] = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda c, k, text, *_: sql.append(text))
    decoded_of(store, "alice", 4, 100)
    store.retention.mark(NOW_MS, keep_bytes=100)
    sql.clear()
    store.retention.remove(excess_bytes=100)
    with store.database.read() as connection:
        plans = [
            str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", ("",) * text.count("?")).all())
            for text in [text for text in sql if text.startswith("SELECT")]
        ]
    assert len(plans) == 2 and all("COVERING INDEX frames_deleted" in plan for plan in plans), plans
    store.close()


def test_the_limits_of_a_source_concern_no_other_and_no_other_tenant(store: Store) -> None:
    mine, others = decoded(store, 4), [stored_frame(b"x" * 100, source="box-2"), stored_frame(b"x" * 100, tenant="t")]
    store.frames.add(others, NOW)
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store)], NOW)
    late = decoded(store, 1, NOW + 100)
    waiting = stored_frame(b"x" * 100)
    store.frames.add([waiting], NOW + 100)
    assert sorted(store.retention.sources()) == [("", "box-1"), ("", "box-2"), ("t", "box-1")]
    mark = store.retention.mark_source
    assert mark("", "box-1", NOW_MS, keep_bytes=500) == 1  # of six, of which the last two are not as old
    assert mark("", "box-1", NOW_MS, older_than_ms=NOW_MS + 50_000, limit=2) == 2
    assert mark("", "box-1", NOW_MS, older_than_ms=NOW_MS + 50_000, keep_bytes=10_000) == 1
    assert mark("", "box-1", NOW_MS, older_than_ms=NOW_MS + 50_000) == 0
    assert [state(store, one) for one in mine] == [FrameState.PRUNED] * 4
    assert [state(store, one) for one in [*others, *late]] == [FrameState.DONE] * 3
    assert mark("", "box-1", NOW_MS, keep_bytes=0) == 1 and state(store, waiting) is FrameState.RECEIVED


def test_what_a_source_holds_is_not_added_up_for_each_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a million frames of one source that takes a second, and retention would not keep up with ingest."""
    monkeypatch.setattr(retention, "BATCH", 3)
    decoded(store, 10)
    statements: list[str] = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert store.retention.mark_source("", "box-1", NOW_MS, keep_bytes=0) == 10
    assert sum("sum(frames.bytes)" in one for one in statements) == 1


def test_a_frame_that_is_queued_again_meanwhile_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = stored_frame()
    store.frames.add([failed], NOW)
    store.queue.fail([one.lease for one in claim(store)], "no")
    chosen = store.retention._doomed

    def late(*arguments: Any) -> list[int]:
        doomed = chosen(*arguments)
        store.queue.requeue(NOW)
        return doomed

    monkeypatch.setattr(store.retention, "_doomed", late)
    assert store.retention.mark(NOW_MS, keep_bytes=0) == 0
    assert state(store, failed) is FrameState.RECEIVED and len(claim(store)) == 1


# -- the clock --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, wall: float = NOW) -> None:
        self.wall_seconds, self.steady_seconds = wall, 50.0

    def run(self, seconds: float) -> None:
        self.wall_seconds += seconds
        self.steady_seconds += seconds

    def trusted(self, store: Store, days: float = 7) -> TrustedClock:
        return TrustedClock(
            store.database, days * DAY, wall=lambda: self.wall_seconds, steady=lambda: self.steady_seconds
        )


def test_the_wall_clock_is_followed_where_it_is_plausible(store: Store) -> None:
    clock = Clock()
    trusted = clock.trusted(store)
    assert trusted.look() == NOW
    for seconds in 60, 3 * 3600, 0.5:  # a machine may be suspended
        clock.run(seconds)
        assert trusted.now() == trusted.look() == clock.wall_seconds and not trusted.problem
    clock.run(5 * DAY)
    assert clock.trusted(store).look() == clock.wall_seconds  # the service was off


@pytest.mark.parametrize("jump", [400 * DAY, 8 * DAY, -DAY], ids=["years", "days", "back"])
def test_a_start_with_an_implausible_clock_is_refused_until_it_is_right(store: Store, jump: float) -> None:
    clock = Clock()
    clock.trusted(store).look()
    clock.run(100)
    clock.wall_seconds += jump
    for _ in range(2):  # a second start changes nothing
        trusted = clock.trusted(store)
        assert trusted.look() == NOW
        assert "aeic store accept-clock" in trusted.problem and trusted.now() == NOW
    clock.run(50)
    assert trusted.now() == NOW + 50
    clock.wall_seconds -= jump
    assert trusted.look() == clock.wall_seconds and not trusted.problem


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 400 * DAY])
def test_a_glitch_while_running_is_refused(store: Store, jump: float) -> None:
    clock = Clock()
    trusted = clock.trusted(store)
    trusted.look()
    clock.run(60)
    clock.wall_seconds += jump
    assert trusted.now() == NOW + 60 == trusted.look()
    assert trusted.problem
    clock.run(60)
    clock.wall_seconds -= jump
    assert trusted.look() == NOW + 120 and not trusted.problem


def test_a_small_jump_that_lasts_is_accepted_and_a_large_one_never(store: Store) -> None:
    for jump, lasts in ((3 * DAY, True), (400 * DAY, False)):
        clock = Clock()
        accept_at(store, clock)
        trusted = clock.trusted(store)
        trusted.look()
        clock.wall_seconds += jump
        for _ in range(70):
            clock.run(SETTLE_SECONDS / 60)
            trusted.look()
        assert bool(trusted.problem) is not lasts


@pytest.mark.parametrize("by_operator", [False, True])
def test_what_arrives_while_the_clock_is_refused_is_not_older_afterwards(store: Store, by_operator: bool) -> None:
    clock = Clock()
    store.frames.add([before := stored_frame()], NOW, received=clock.trusted(store).look())
    clock.run(1)
    clock.trusted(store).look()
    clock.run(3 * DAY)  # the service was off
    clock.wall_seconds += 400 * DAY
    trusted = clock.trusted(store)
    trusted.look()
    clock.run(60)
    store.frames.add([meanwhile := stored_frame()], NOW, received=trusted.now())
    clock.wall_seconds -= 400 * DAY
    clock.run(60)
    if by_operator:
        accept_at(store, clock)
    else:
        trusted.look()
        clock.run(SETTLE_SECONDS)
    assert trusted.look() == clock.wall_seconds and not trusted.problem
    ages = [age_of(store, clock, new) for new in (before, meanwhile)]
    passed = 60 + (0 if by_operator else SETTLE_SECONDS)
    assert ages == [3 * DAY + 61 + passed, passed]


@pytest.mark.parametrize("accepted_while_off", [False, True])
def test_what_arrived_before_a_restart_is_corrected_too(store: Store, accepted_while_off: bool) -> None:
    clock = Clock()
    clock.trusted(store).look()
    clock.run(30 * DAY)  # the service was off
    trusted = clock.trusted(store)
    trusted.look()
    clock.run(3 * 3600)
    store.frames.add([new := stored_frame()], NOW, received=trusted.now())
    if accepted_while_off:
        accept_at(store, clock)
    trusted = clock.trusted(store)
    trusted.look()
    clock.run(60)
    if not accepted_while_off:
        accept_at(store, clock)
    assert trusted.look() == clock.wall_seconds and not trusted.problem
    assert 0 <= age_of(store, clock, new) <= 60.01


def test_of_two_processes_one_corrects_the_times_of_arrival(store: Store) -> None:
    clock = Clock()
    both = [clock.trusted(store), clock.trusted(store)]
    arrived: list[tuple[NewFrame, float]] = []
    for jump in (0.0, 8 * DAY):
        clock.wall_seconds += jump
        for trusted in both:
            trusted.look()
    for _ in range(9):
        clock.run(DAY)  # in the end for longer than the jump
        for trusted in both:
            trusted.look()
            store.frames.add([new := stored_frame()], NOW, received=trusted.now())
            arrived.append((new, clock.wall_seconds))
    clock.run(3600)
    accept_at(store, clock)
    both[0].look()
    clock.run(30)
    store.frames.add([new := stored_frame()], NOW, received=both[1].now())
    arrived.append((new, clock.wall_seconds))
    clock.run(10)
    both[1].look()
    assert all(not trusted.problem for trusted in both)
    ages = [age_of(store, clock, new) - (clock.wall_seconds - at) for new, at in arrived]
    assert all(abs(error) < 60 for error in ages)


def test_a_correction_that_the_store_cannot_write_is_made_at_the_next_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    clock.trusted(store).look()
    clock.run(30 * DAY)
    trusted = clock.trusted(store)
    trusted.look()
    clock.run(600)
    store.frames.add([new := stored_frame()], NOW, received=trusted.now())
    accept_at(store, clock)
    with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):
        patched.setattr(store.database, "write", refuse_to_write)
        trusted.look()
    clock.run(60)
    trusted.look()
    assert not trusted.problem and age_of(store, clock, new) == 60


def refuse_to_write(durable: bool = True) -> NoReturn:
    raise StoreUnavailable("the disk is full")


def age_of(store: Store, clock: Clock, new: NewFrame) -> float:
    """In seconds."""
    row = store.frames.get("", new.id)
    assert row is not None
    return clock.wall_seconds - row.received_ms / 1000


def accept_at(store: Store, clock: Clock) -> None:
    store.database.clock = lambda: clock.wall_seconds  # type: ignore[method-assign]  # another clock for the test
    accept(store.database)


def test_the_operator_accepts_a_clock_also_while_the_service_runs(store: Store) -> None:
    clock = Clock()
    trusted = clock.trusted(store)
    trusted.look()
    clock.wall_seconds += 400 * DAY
    trusted.look()
    assert trusted.problem
    accept_at(store, clock)
    assert trusted.look() == clock.wall_seconds and not trusted.problem
    assert clock.trusted(store).look() == clock.wall_seconds


def test_frames_age_from_the_trusted_time(store: Store, tmp_path: Path) -> None:
    new = stored_frame()
    store.frames.add([new], NOW + 400 * DAY, received=NOW)
    row = store.frames.get("", new.id)
    assert row is not None and row.received_ms == NOW_MS
    assert store.frames.sources("")[0]["last_seen_ms"] == NOW_MS
