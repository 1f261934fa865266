"""Requests in the store: their end, their price, their answers, and what retention and deletion do to them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from cloud_decoder.store.requests import DAY_MS, HOUR_MS, LEAST_CHARGE_BYTES, MOST_OPEN, SPEED_ANSWERS
from cloud_decoder.store.store import (
    Added,
    FrameState,
    RefusalReason,
    RequestKind,
    RequestState,
    Store,
)
from tests.support.frames import NOW, MakeFrame, new_frame, stored_frame
from tests.support.requests import NOW_MS, new_request


def test_a_request_ends_once_and_its_hour_is_counted(store_url: str, make_frame: MakeFrame) -> None:
    store = Store(store_url)
    parent = new_frame(make_frame(1), source="s")
    store.frames.add([parent], NOW)
    first = store.requests.add(new_request(parent.id), 20_000)
    second = store.requests.add(new_request(parent.id, kind=RequestKind.BETTER, region=None), 20_000)
    assert first and second and second.region is None and first.region == [1, 2, 128, 96]
    assert store.requests.add(new_request(parent.id), 20_000) is None
    assert store.requests.spent("", "s", NOW_MS) == 18_000 and store.requests.spent("", "s", NOW_MS + HOUR_MS) == 0
    assert [one.seq for one in store.requests.open({("", "s")})] == [first.seq, second.seq]
    assert store.requests.open({("x", "s"), ("", "t")}) == []
    answer = new_frame(make_frame(2), source="s", id=first.id)
    store.frames.add([answer], NOW)
    found = store.requests.get("", first.id)
    assert found is not None and (found.state, found.bytes) == (RequestState.ANSWERED, len(answer.bitstream))
    assert store.requests.refuse("", "s", first.id, RefusalReason.GONE, "", NOW_MS) is None
    assert [one.id for one in store.requests.expire(NOW_MS + 1000)] == [second.id]
    assert store.requests.expire(NOW_MS + 1000) == []
    frame = store.frames.get("", first.id)
    assert frame is not None and (frame.parent, frame.kind, frame.region) == (parent.id, "region", [1, 2, 128, 96])
    stranger = new_frame(make_frame(3), source="another", id=second.id)
    store.frames.add([stranger], NOW)
    frame = store.frames.get("", second.id)
    assert frame is not None and frame.parent is None
    store.close()


def test_a_request_about_a_frame_that_was_deleted_meanwhile_ends_at_once(store_url: str, make_frame: MakeFrame) -> None:
    """Its caller has read the frame before the deletion. A box would send an answer for nothing."""
    store = Store(store_url)
    parent = new_frame(make_frame(1), source="s")
    store.frames.add([parent], NOW)
    assert store.retention.delete("", parent.id, NOW_MS)
    late = store.requests.add(new_request(parent.id), 20_000)
    assert late is not None and (late.state, late.reason) == (RequestState.REFUSED, RefusalReason.GONE)
    assert not store.requests.open({("", "s")})
    store.close()


def test_room_for_a_request_comes_back_an_hour_after_the_earlier_ones(store_url: str) -> None:
    store = Store(store_url)
    for minutes, size in ((50, 3000), (40, 3000), (0, 100)):
        asked = new_request(uuid4(), max_bytes=size, created_ms=NOW_MS - 60_000 * minutes)
        assert store.requests.add(asked, 8000)
    wait = lambda charge: store.requests.room_ms("", "s", charge, 8000, NOW_MS)  # noqa: E731
    least = 6000 + LEAST_CHARGE_BYTES
    assert wait(8000 - least) == 0
    assert wait(8000 - least + 1) == wait(4000) == 10 * 60_000
    assert wait(5000) == 20 * 60_000
    assert wait(8000) == HOUR_MS and wait(9000) == HOUR_MS
    store.close()


def test_the_speed_is_that_of_the_last_answers(store_url: str, make_frame: MakeFrame) -> None:
    store = Store(store_url)
    parent = new_frame(make_frame(1), source="s")
    store.frames.add([parent], NOW)
    open_request = store.requests.add(new_request(parent.id), 1 << 30)
    assert open_request and store.requests.speed("", "s", NOW_MS) is None
    sizes = []
    for number in range(SPEED_ANSWERS + 1):
        slow = 1000 if number else 60_000  # the first is one too many
        asked = store.requests.add(new_request(parent.id, created_ms=NOW_MS - slow + number), 1 << 30)
        assert asked
        answer = new_frame(make_frame(number + 2), source="s", id=asked.id)
        store.frames.add([answer], NOW, received=NOW + number / 1000)
        sizes.append(len(answer.bitstream))
    speed = store.requests.speed("", "s", NOW_MS)
    assert speed == pytest.approx(sum(sizes[1:]) / SPEED_ANSWERS, rel=0.02)
    assert (
        store.requests.speed("", "s", NOW_MS + DAY_MS + 1000) is None and store.requests.speed("", "t", NOW_MS) is None
    )
    store.close()


def test_many_requests_of_one_box_and_kind_do_not_hide_others(store_url: str) -> None:
    store = Store(store_url)
    asked: list[dict[str, Any]] = [
        {},
        {},
        {"kind": RequestKind.ORIGINAL},
        {"tenant": "x"},
        {"kind": RequestKind.ORIGINAL},
    ]
    ids = []
    for changed in asked:
        stored = store.requests.add(new_request(uuid4(), **changed), 90_000)
        assert stored is not None
        ids.append(stored.id)
    found = store.requests.open({("", "s"), ("x", "s")}, most=2)
    assert [one.id for one in store.requests.by_seq([one.seq for one in found])] == [ids[0], ids[2], ids[3]]
    assert [one.seq for one in found] == sorted(one.seq for one in found) and found[1].kind is RequestKind.ORIGINAL
    store.close()


def test_an_answer_is_deleted_with_its_parent_and_brought_back_with_it(store_url: str, make_frame: MakeFrame) -> None:
    store = Store(store_url)
    parent, other = new_frame(make_frame(1), source="s"), new_frame(make_frame(4), source="s")
    store.frames.add([parent, other], NOW)
    request = new_request(parent.id)
    store.requests.add(request, 9000)
    store.frames.add([new_frame(make_frame(2), source="s", id=request.id)], NOW + 100)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE frames SET state = 'failed'")
    assert store.retention.mark(NOW_MS, older_than_ms=NOW_MS + 50, limit=1) == 2

    def state(id: UUID) -> FrameState:
        found = store.frames.get("", id)
        assert found is not None
        return found.state

    assert (state(parent.id), state(request.id), state(other.id)) == ("pruned", "pruned", "failed")
    assert store.retention.undelete("", parent.id) == 2 and state(request.id) == "failed"
    store.close()


@pytest.mark.parametrize(
    ("request_of", "answer"),
    [
        ({}, {"width": 129, "height": 96}),
        ({}, {"width": 128, "height": 97}),
        ({"max_bytes": 300}, {"content": bytes(301)}),
        ({"kind": RequestKind.BETTER, "region": None, "max_bytes": 300}, {"content": bytes(301)}),
        ({}, {"media_type": "image/jpeg"}),
        ({"kind": RequestKind.ORIGINAL, "region": None}, {}),
        ({"kind": RequestKind.ORIGINAL}, {"media_type": "image/jpeg", "width": 129}),
    ],
)
def test_what_was_not_asked_for_is_kept_and_answers_nothing(
    store_url: str, request_of: dict[str, Any], answer: dict[str, Any]
) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)
    request = new_request(parent.id, **request_of)
    assert store.requests.add(request, 90_000)
    frame = stored_frame(id=request.id, source="s", **answer)
    assert store.frames.add([frame], NOW) == [Added.STORED]
    row, found = store.frames.get("", request.id), store.requests.get("", request.id)
    assert row is not None and (row.parent, row.kind, row.region) == (None, None, None)
    assert found is not None and (found.state, found.bytes) == (RequestState.OPEN, request.max_bytes)
    store.close()


def test_what_was_asked_for_answers(store_url: str) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"width": 128, "height": 96}),
        ({"kind": RequestKind.BETTER, "region": None}, {"width": 8000}),
        ({"kind": RequestKind.NOW, "region": None}, {"width": 8000}),
        ({"kind": RequestKind.ORIGINAL, "region": None}, {"media_type": "image/png", "width": 8000}),
        ({"kind": RequestKind.ORIGINAL}, {"media_type": "image/jpeg"}),
    ]
    for changed, answer in kinds:
        request = new_request(parent.id, **changed)
        assert store.requests.add(request, 90_000)
        store.frames.add([stored_frame(b"x", request.id, source="s", **answer)], NOW)
        found = store.requests.get("", request.id)
        assert found is not None and found.state is RequestState.ANSWERED, changed
    store.close()


def test_requests_without_an_answer_cost_something_are_limited_and_do_not_stay(store_url: str) -> None:
    store = Store(store_url)
    least = LEAST_CHARGE_BYTES
    for number in range(4):
        new = new_request(uuid4(), max_bytes=64, deadline_ms=NOW_MS + 1)
        assert (store.requests.add(new, 3 * least) is None) == (number == 3)
        assert len(store.requests.expire(NOW_MS + 1)) == (number < 3)
    assert store.requests.spent("", "s", NOW_MS) == 3 * least
    for number in range(MOST_OPEN + 1):
        assert (store.requests.add(new_request(uuid4(), max_bytes=64), 1 << 30) is None) == (number == MOST_OPEN)
    assert store.requests.add(new_request(uuid4(), source="another"), 1 << 30)
    assert store.requests.remove(NOW_MS + 1) == 0
    assert [store.requests.remove(NOW_MS + 2, limit=2) for _ in range(3)] == [2, 1, 0]
    assert len(store.requests.open({("", "s")})) == MOST_OPEN + 1
    store.close()


def test_later_answers_of_other_kinds_do_not_hide_regions(store_url: str) -> None:
    store = Store(store_url)
    parent = stored_frame(b"parent", source="s")
    store.frames.add([parent], NOW)

    def answered(**changed: Any) -> UUID:
        request = new_request(parent.id, **changed)
        assert store.requests.add(request, 1 << 30)
        store.frames.add([stored_frame(request.id.bytes, request.id, source="s")], NOW)
        return request.id

    regions = [answered() for _ in range(3)]
    for _ in range(16):
        answered(kind=RequestKind.BETTER, region=None)
    found = store.frames.regions("", parent.id, 16)
    assert [one.id for one in found] == regions[::-1]
    assert [one.id for one in store.frames.regions("", parent.id, 2)] == regions[:0:-1]
    assert store.frames.regions("x", parent.id, 16) == []
    store.close()
