"""The log of events: every change is in it once, in an order in which no reader misses one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from cloud_decoder.store.event_log import LoggedEvent, Position
from cloud_decoder.store.requests import new_request_id
from cloud_decoder.store.schema import events, store_clock
from cloud_decoder.store.store import DecodeResult, NewRequest, RefusalReason, RequestKind, Store
from tests.support.cloud.postgres import Postgres
from tests.support.frames import NOW, claim, stored_frame

NOW_MS = int(NOW * 1000)
START = Position(0, 0)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def on_postgresql(postgres: Postgres) -> Iterator[Store]:
    opened = Store(postgres.fresh())
    yield opened
    opened.close()


def log(store: Store, tenant: str = "", position: Position = START) -> list[LoggedEvent]:
    read = store.events.after(tenant, position, 1000)
    assert not read.lost
    return read.events


def kinds(store: Store, id: UUID, tenant: str = "") -> list[str]:
    return [event.kind for event in log(store, tenant) if event.id == id]


def test_whatever_changes_a_frame_is_an_event(store: Store) -> None:
    done, failed, sleeping = stored_frame(b"1"), stored_frame(b"2"), stored_frame(b"3", wanted=False)
    store.frames.add([done], NOW)
    store.frames.add([done], NOW)  # a duplicate is none
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store)], NOW)
    store.queue.demand("", done.id, NOW)
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store)], NOW)  # decoded again: no news
    store.frames.add([failed, sleeping], NOW)
    store.queue.fail([one.lease for one in claim(store)], "no")
    store.queue.requeue(NOW)
    store.queue.fail([one.lease for one in claim(store)], "no")
    store.retention.mark(NOW_MS, keep_bytes=0)
    store.retention.remove(before_ms=0)
    store.retention.undelete()
    assert store.retention.delete("", done.id, NOW_MS) is not None
    assert kinds(store, done.id) == ["received", "done", "pruned", "done", "pruned"]
    assert kinds(store, failed.id) == ["received", "failed", "received", "failed", "pruned", "failed"]
    assert kinds(store, sleeping.id) == ["received"]
    positions = [event.position for event in log(store)]
    assert positions == sorted(set(positions)) and store.events.newest() > START


def test_a_request_is_an_event_when_it_has_ended(store: Store) -> None:
    parent = stored_frame()
    store.frames.add([parent], NOW)
    asked = [new_request_id() for _ in range(3)]
    for id in asked:
        given: dict[str, Any] = {
            "source": "box-1",
            "box": "box-1",
            "kind": RequestKind.BETTER,
            "region": None,
            "max_bytes": 100,
        }
        times: dict[str, Any] = {"created_ms": NOW_MS, "deadline_ms": NOW_MS + 1000}
        store.requests.add(NewRequest(tenant="", id=id, parent=parent.id, **given, **times), 1000)
    assert [kinds(store, id) for id in asked] == [[], [], []]
    store.frames.add([stored_frame(b"answer", asked[0])], NOW)
    store.requests.refuse("", "box-1", asked[1], RefusalReason.FORBIDDEN, "no", NOW_MS)
    store.requests.expire(NOW_MS + 2000)
    assert [kinds(store, id) for id in asked] == [["received", "request"], ["request"], ["request"]]


def test_tenants_have_events_of_their_own_and_transient_frames_have_none(store: Store) -> None:
    mine, theirs = stored_frame(b"1"), stored_frame(b"2", tenant="other")
    store.frames.add([mine, theirs, stored_frame(b"3", tenant=":decode")], NOW)
    assert [event.id for event in log(store)] == [mine.id]
    assert [event.id for event in log(store, "other")] == [theirs.id]
    assert log(store, ":decode") == []


def test_a_reader_goes_on_where_it_was(store: Store) -> None:
    new = [stored_frame(b"%d" % number) for number in range(25)]
    for one in new[:5]:
        store.frames.add([one], NOW)
    start = store.events.newest()
    for one in new[5:]:
        store.frames.add([one], NOW)
    position, seen = start, []
    while found := store.events.after("", position, 7).events:
        seen += [event.id for event in found]
        position = Position.parse(str(found[-1].position))
    assert seen == [one.id for one in new[5:]]
    assert log(store, position=store.events.newest()) == []


def test_a_transaction_that_commits_late_is_not_skipped(on_postgresql: Store) -> None:
    """SQLite has one writer at a time."""
    store = on_postgresql
    early, late = stored_frame(b"early"), stored_frame(b"late", source="box-2")
    with store.database.engine.begin() as connection:
        store.frames._add(connection, [late], NOW, None, NOW)  # it has its number, and is not committed yet
        store.frames.add([early], NOW)
        assert log(store) == []  # the reader waits for the older transaction
        before = store.events.newest()
    found = log(store, position=before)
    assert [event.id for event in found] == [late.id, early.id]
    assert log(store, position=found[0].position) == found[1:]


def test_a_reader_learns_what_it_has_missed(store: Store) -> None:
    for number in range(3000):
        if number % 500 == 0:
            store.frames.add([stored_frame(b"%d" % (number + n)) for n in range(500)], NOW)
    every = store.events.after("", START, 5000).events
    assert len(every) == 3000 and store.events.trim(5000) == 0
    assert store.events.trim(1000) == 2000 and store.events.trim(1000) == 0
    kept = every[2000:]
    for position, lost in ((START, True), (every[1998].position, True), (every[1999].position, False)):
        read = store.events.after("", position, 5000)
        assert read.lost is lost and read.events == kept
    assert not store.events.after("", kept[10].position, 10).lost
    assert not store.events.after("", store.events.newest(), 10).lost
    assert store.events.after("", Position(10**17, 10**17), 10).lost  # of a newer store than this one


def test_events_of_another_server_are_dropped(on_postgresql: Store) -> None:
    """A dump of PostgreSQL brings the numbers of its transactions with it."""
    store = on_postgresql
    with store.database.write() as connection:
        values = {"txid": 10**15, "tenant": "", "kind": "done", "id": stored_frame().id}
        connection.execute(sa.insert(events).values(values))
        connection.execute(sa.update(store_clock).values(trimmed_txid=10**15 - 5, trimmed_seq=1))
    new = stored_frame()
    store.frames.add([new], NOW)
    old = Position(10**15 - 1, 3)
    assert store.events.after("", old, 10).lost
    assert store.events.trim(1000) == 1
    assert store.events.after("", old, 10).lost
    begin = store.events.newest()
    store.frames.add([stored_frame(b"more")], NOW)
    read = store.events.after("", begin, 10)
    assert not read.lost and len(read.events) == 1


@pytest.mark.parametrize("text", ["", "1", "-1-2", "1-2-3", "1-x", "1-" + "9" * 19, "١-٢", "1-2\n"])
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)
