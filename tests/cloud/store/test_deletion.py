"""Deletion by clients, in the store: any state, answers and requests with their frame, and nothing of anybody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from cloud_decoder.store.frames import DELETED, DELETED_WITH_PARENT
from cloud_decoder.store.requests import new_request_id
from cloud_decoder.store.retention import Removed
from cloud_decoder.store.schema import frames
from cloud_decoder.store.store import (
    Added,
    DecodeResult,
    DeletedBy,
    FrameState,
    NewFrame,
    NewRequest,
    RefusalReason,
    RequestKind,
    RequestState,
    Store,
)
from tests.support.frames import NOW, claim, stored_frame

NOW_MS = int(NOW * 1000)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


def state(store: Store, frame: NewFrame) -> FrameState:
    row = store.frames.get(frame.tenant, frame.id)
    assert row is not None
    return row.state


def finish(store: Store) -> set[int]:
    return store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store)], NOW)


def ids(store: Store, frame: NewFrame, now_ms: int = NOW_MS) -> set[UUID]:
    deleted = store.retention.delete(frame.tenant, frame.id, now_ms)
    assert deleted is not None
    return {id for id, _ in deleted.frames}


def asked(store: Store, parent: NewFrame, kind: RequestKind = RequestKind.BETTER) -> UUID:
    given: dict[str, Any] = {"source": parent.source, "box": parent.source, "region": None, "max_bytes": 500}
    times: dict[str, Any] = {"created_ms": NOW_MS, "deadline_ms": NOW_MS + 60_000}
    new = NewRequest(parent.tenant, new_request_id(), parent.id, kind=kind, **given, **times)
    assert store.requests.add(new, 10_000) is not None
    return new.id


def test_every_state_is_deleted_once_and_comes_back_as_it_was(store: Store) -> None:
    done, failed, leased, waiting, asleep = (stored_frame(b"x" * n) for n in range(1, 6))
    store.frames.add([done], NOW)
    finish(store)
    store.frames.add([failed], NOW)
    store.queue.fail([one.lease for one in claim(store)], "a reason")
    store.frames.add([leased], NOW)
    (lease,) = claim(store)
    store.frames.add([waiting, stored_frame(b"x" * 5, asleep.id, wanted=False)], NOW)
    every = [done, failed, leased, waiting, asleep]
    for one in every:
        assert ids(store, one) == {one.id}
        assert ids(store, one, NOW_MS + 99) == set()  # a second time
        row = store.frames.get("", one.id)
        assert row is not None and row.state is FrameState.PRUNED and row.erased
        assert row.reason == ("a reason" if one is failed else DELETED)
        assert store.frames.bitstream("", one.id) is None
    assert store.frames.counts() == {"received": 0, "decoding": 0, "done": 0, "failed": 0, "pruned": 5}
    assert store.frames.backlog("") == {} and claim(store) == []
    # Its worker finishes late: the lease is gone, and nothing changes.
    assert store.queue.finish([DecodeResult(lease.lease, "", {})], NOW) == {lease.row.seq}
    assert state(store, leased) is FrameState.PRUNED
    assert not store.queue.demand("", done.id, NOW) and store.queue.requeue(NOW) == 0
    assert store.retention.undelete() == 0  # what clients have deleted is brought back only if that is meant
    assert store.retention.undelete(id=done.id) == 1
    assert store.retention.undelete(deleted=True) == 4
    assert [state(store, one) for one in every] == [FrameState.DONE, FrameState.FAILED] + [FrameState.RECEIVED] * 3
    row = store.frames.get("", failed.id)
    assert row is not None and row.reason == "a reason" and not row.erased
    assert {one.row.id for one in claim(store)} == {leased.id, waiting.id}
    assert store.queue.claim_one("", asleep.id, "w", NOW, 60, 3) is not None


def test_a_deleted_frame_that_is_delivered_again_is_acknowledged_and_stays_deleted(store: Store) -> None:
    new = stored_frame(b"x" * 100)
    store.frames.add([new], NOW)
    ids(store, new)
    assert store.frames.add([new], NOW) == [Added.DUPLICATE]
    removed = store.retention.remove(before_ms=NOW_MS + 1)
    assert removed == Removed(1, 100, [new.digest])
    assert store.frames.add([new], NOW) == [Added.DUPLICATE]
    assert state(store, new) is FrameState.PRUNED and store.retention.undelete(deleted=True) == 0 and claim(store) == []
    row = store.frames.get("", new.id)
    assert row is not None and row.reason == DELETED and row.erased


def test_other_tenants_cannot_delete(store: Store) -> None:
    new = stored_frame(tenant="a")
    store.frames.add([new, stored_frame(b"b", new.id, tenant="b")], NOW)
    assert store.retention.delete("c", new.id, NOW_MS) is None and store.retention.delete("a", uuid4(), NOW_MS) is None
    assert store.retention.delete_source("c", "box-1", NOW_MS).frames == []
    assert [id for id, _ in store.retention.delete_source("b", "box-1", NOW_MS).frames] == [new.id]
    assert state(store, new) is FrameState.RECEIVED


def test_answers_and_open_requests_go_with_their_frame(store: Store) -> None:
    parent, other = stored_frame(b"parent"), stored_frame(b"other")
    store.frames.add([parent, other], NOW)
    early, late, unanswered, about_other = (asked(store, one) for one in (parent, parent, parent, other))
    store.frames.add([stored_frame(b"early", early)], NOW)
    deleted = store.retention.delete("", parent.id, NOW_MS)
    assert deleted is not None and {id for id, _ in deleted.frames} == {parent.id, early}
    assert {one.id for one in deleted.requests} == {late, unanswered}
    for id in late, unanswered:
        request = store.requests.get("", id)
        assert request is not None and request.state is RequestState.REFUSED and request.bytes == 0
        assert request.reason is RefusalReason.GONE
    kept = store.requests.get("", about_other)
    assert kept is not None and kept.state is RequestState.OPEN
    answer = stored_frame(b"late", late)  # the box had begun before it could know
    assert store.frames.add([answer], NOW + 5) == [Added.STORED]
    row = store.frames.get("", late)
    assert row is not None and row.parent == parent.id and row.erased and row.reason == DELETED_WITH_PARENT
    assert {one.row.id for one in claim(store)} == {other.id}
    assert store.retention.undelete(id=parent.id) == 3
    assert [one.state for one in (store.frames.get("", id) for id in (early, late)) if one] == [FrameState.RECEIVED] * 2


def test_an_answer_to_a_frame_that_retention_has_pruned_is_pruned_too(store: Store) -> None:
    parent = stored_frame(b"parent")
    store.frames.add([parent], NOW)
    finish(store)
    request = asked(store, parent)
    assert store.retention.mark(NOW_MS, keep_bytes=0) == 1
    store.frames.add([stored_frame(b"late", request)], NOW)
    row = store.frames.get("", request)
    assert row is not None and row.state is FrameState.PRUNED and not row.erased
    ended = store.requests.get("", request)
    assert ended is not None and ended.state is RequestState.REFUSED, "so nothing says that it was answered"
    assert (ended.reason, ended.detail) == (RefusalReason.GONE, "retention has deleted the frame")
    assert store.retention.undelete() == 2
    assert state(store, parent) is FrameState.DONE and [one.row.id for one in claim(store)] == [request]


def test_a_new_picture_outlives_a_frame_that_retention_has_pruned(store: Store) -> None:
    first = stored_frame(b"first")
    store.frames.add([first], NOW)
    pictures = [first]
    for number in range(3):  # each was asked of the one before
        new = stored_frame(b"now %d" % number, asked(store, pictures[-1], RequestKind.NOW))
        store.frames.add([new], NOW + 1 + number)
        pictures.append(new)
    finish(store)
    late = asked(store, first, RequestKind.NOW)
    assert store.retention.mark(NOW_MS, older_than_ms=NOW_MS + 500) == 1
    assert [state(store, one) for one in pictures] == [FrameState.PRUNED] + [FrameState.DONE] * 3
    store.frames.add([stored_frame(b"late", late)], NOW + 9)
    row = store.frames.get("", late)
    assert row is not None and row.state is FrameState.RECEIVED and row.parent == first.id
    assert ids(store, first) == {late, *(one.id for one in pictures)}, "a client deletes them with it"


def test_an_answer_that_comes_during_the_deletion_of_its_frame_is_deleted_with_it(store: Store) -> None:
    """On PostgreSQL neither transaction sees what the other has not committed."""
    parent = stored_frame(b"parent")
    store.frames.add([parent], NOW)
    answer = stored_frame(b"answer", asked(store, parent))
    with store.database.write() as connection:
        update = sa.update(frames).where(frames.c.id == parent.id)
        connection.execute(update.values(state="pruned", deleted_by="client", deleted_ms=NOW_MS))
        adding = threading.Thread(target=lambda: store.frames.add([answer], NOW))
        adding.start()
        adding.join(0.5)
        assert adding.is_alive(), "it waits"
    adding.join(10)
    assert state(store, answer) is FrameState.PRUNED


def test_the_frames_of_a_source_are_deleted_by_time_and_in_parts(store: Store) -> None:
    others = [stored_frame(b"o", source="box-2"), stored_frame(b"t", tenant="t")]
    store.frames.add(others, NOW)
    mine = [stored_frame(b"x" * n) for n in range(1, 8)]
    for number, one in enumerate(mine):
        store.frames.add([one], NOW + number)
    part = store.retention.delete_source("", "box-1", NOW_MS, since_ms=NOW_MS + 1000, until_ms=NOW_MS + 3000)
    assert [id for id, _ in part.frames] == [one.id for one in mine[1:3]] and part.after is None
    found: list[UUID] = []
    after, calls = 0, 0
    while True:
        part = store.retention.delete_source("", "box-1", NOW_MS, after=after, limit=3)
        found, calls = [*found, *(id for id, _ in part.frames)], calls + 1
        if part.after is None:
            break
        after = part.after
    assert set(found) == {one.id for one in mine} - {mine[1].id, mine[2].id} and calls == 3
    assert [state(store, one) for one in others] == [FrameState.RECEIVED] * 2


def test_what_retention_has_pruned_becomes_deleted(store: Store) -> None:
    kept, emptied = stored_frame(b"k"), stored_frame(b"e")
    store.frames.add([emptied, kept], NOW)
    finish(store)
    store.retention.mark(NOW_MS, keep_bytes=0)
    store.retention.remove(before_ms=NOW_MS + 1, limit=1)
    assert {id for id, _ in store.retention.delete_source("", "box-1", NOW_MS + 500).frames} == {kept.id, emptied.id}
    for one in kept, emptied:
        row = store.frames.get("", one.id)
        assert row is not None and row.erased and row.reason == DELETED
    assert store.retention.remove(before_ms=NOW_MS + 1, only=DeletedBy.CLIENT).frames == 1  # since retention's mark
    assert store.retention.undelete(deleted=True) == 0


def test_only_deleted_frames_are_removed_where_that_is_asked(store: Store) -> None:
    pruned, deleted = stored_frame(b"p"), stored_frame(b"d")
    store.frames.add([pruned], NOW)
    finish(store)
    store.retention.mark(NOW_MS, keep_bytes=0)
    store.frames.add([deleted], NOW)
    ids(store, deleted)
    assert store.retention.remove(before_ms=NOW_MS + 1, only=DeletedBy.CLIENT).erased == [deleted.digest]
    assert store.retention.undelete() == 1 and state(store, pruned) is FrameState.DONE


def test_the_newest_frame_of_a_source_is_one_that_is_kept(store: Store) -> None:
    first, second = stored_frame(b"1"), stored_frame(b"2")
    store.frames.add([first], NOW)
    store.frames.add([second], NOW)
    ids(store, second)
    assert store.frames.newest("")["box-1"].id == first.id
    ids(store, first)
    assert store.frames.newest("") == {}


def test_workers_and_a_deletion_do_not_lock_each_other_out(store: Store) -> None:
    """On PostgreSQL the order of locks decides it."""
    new = [stored_frame(f"{number}".encode()) for number in range(120)]
    store.frames.add(new, NOW)
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            while some := claim(store, 10, owner=f"w{number}"):
                store.queue.finish([DecodeResult(one.lease, "", {}) for one in some], NOW)
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for one in workers:
        one.start()
    after: int | None = 0
    while after is not None:
        after = store.retention.delete_source("", "box-1", NOW_MS, after=after, limit=25).after
    for one in workers:
        one.join()
    assert errors == []
    assert store.frames.counts()["pruned"] == 120 and claim(store) == []
