"""The store on both databases: an id is stored once, leases expire, and no frame is leased to two workers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from cloud_decoder.errors import StoredDamage, StoreUnavailable
from cloud_decoder.store.schema import frames
from cloud_decoder.store.store import Added, DecodeResult, FrameState, Lease, Store
from tests.support.frames import NOW, claim, stored_frame


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


def test_same_id_twice_is_a_duplicate_and_other_bytes_a_conflict(store: Store) -> None:
    first = stored_frame(b"one")
    assert store.frames.add([first, stored_frame(b"two"), first], NOW) == [Added.STORED, Added.STORED, Added.DUPLICATE]
    assert store.frames.add([first], NOW) == [Added.DUPLICATE]
    assert store.frames.add([stored_frame(b"other", id=first.id)], NOW) == [Added.CONFLICT]
    assert store.frames.bitstream("", first.id) == b"one"


def test_an_id_belongs_to_its_tenant(store: Store) -> None:
    mine = stored_frame(b"mine", tenant="a")
    assert store.frames.add([mine, stored_frame(b"theirs", id=mine.id, tenant="b")], NOW) == [
        Added.STORED,
        Added.STORED,
    ]
    assert store.frames.bitstream("b", mine.id) == b"theirs"
    assert store.frames.get("c", mine.id) is None
    assert [row.tenant for row in store.frames.page("a", 10).rows] == ["a"]


def test_claims_go_by_priority_then_age_and_only_once(store: Store) -> None:
    low, high, later = stored_frame(), stored_frame(priority=5), stored_frame()
    store.frames.add([low, high, later], NOW)
    assert [c.row.id for c in claim(store, 2)] == [high.id, low.id]
    assert [c.row.id for c in claim(store)] == [later.id]
    assert claim(store) == []
    store.frames.add([stored_frame(fingerprint="123456")], NOW)
    assert claim(store) == []  # another bundle's: left for a worker that has it


def test_unwanted_frames_wait_until_asked_for(store: Store) -> None:
    quiet = stored_frame(wanted=False)
    store.frames.add([quiet], NOW)
    assert claim(store) == []
    asked = store.queue.claim_one("", quiet.id, "w", NOW, 60, 3)
    assert asked is not None and asked.bitstream == b"frame"
    assert store.queue.claim_one("", quiet.id, "w", NOW, 60, 3) is None


def test_a_lease_that_ran_out_is_claimed_again_and_three_deaths_end_in_quarantine(store: Store) -> None:
    store.frames.add([stored_frame()], NOW)
    for attempt in range(3):
        (claimed,) = claim(store, now=NOW + 100 * attempt)
        assert claimed.row.attempts == attempt
        store.queue.begin([claimed.lease])
        assert claim(store, now=NOW + 100 * attempt + 59) == []
    assert claim(store, now=NOW + 300) == []
    assert store.frames.counts()["failed"] == 1


def test_release_and_recover_change_only_the_leases_of_their_owner(store: Store) -> None:
    store.frames.add([stored_frame(), stored_frame()], NOW)
    held = claim(store)
    store.queue.release([Lease(held[0].row.seq, "another worker")])
    assert store.frames.counts()["decoding"] == 2
    store.queue.release([held[0].lease])
    assert store.frames.counts() | {"pruned": 0} == {"received": 1, "decoding": 1, "done": 0, "failed": 0, "pruned": 0}
    assert store.queue.recover("other") == 0
    assert store.queue.recover("w") == 1
    assert [c.row.attempts for c in claim(store)] == [0, 0]


def test_a_frame_that_was_asked_for_is_claimed_again_after_a_restart(store: Store) -> None:
    quiet = stored_frame(wanted=False)
    store.frames.add([quiet], NOW)
    assert store.queue.claim_one("", quiet.id, "w", NOW, 60, 3) is not None
    assert store.queue.recover("w") == 1  # its caller may ask again
    assert [c.row.id for c in claim(store)] == [quiet.id]


def test_a_worker_that_wakes_after_its_lease_has_run_out_changes_nothing(store: Store) -> None:
    new = [stored_frame(b"%d" % i) for i in range(4)]
    store.frames.add(new, NOW)
    late = [one.lease for one in claim(store, owner="late")]
    again = [one.lease for one in claim(store, now=NOW + 61, owner="next")]
    assert [one.seq for one in again] == [one.seq for one in late] and again != late
    all_of_them = {one.seq for one in late}
    assert store.queue.finish([DecodeResult(again[0], "d" * 64, {})], NOW + 62) == set()
    for act in (
        lambda: store.queue.fail(late, "no"),
        lambda: store.queue.finish([DecodeResult(one, "e" * 64, {}) for one in late], NOW + 63),
    ):
        assert act() == all_of_them
    store.queue.release(late)
    store.queue.renew(late, NOW + 1000)
    assert store.frames.counts() == {"received": 0, "decoding": 3, "done": 1, "failed": 0, "pruned": 0}
    assert len(claim(store, now=NOW + 122)) == 3  # the late worker's renewal did not extend them
    row = store.frames.get("", new[0].id)
    assert row is not None and row.latents_digest == "d" * 64


def test_a_claim_by_the_same_worker_after_its_lease_has_run_out_is_another_lease(store: Store) -> None:
    store.frames.add([stored_frame()], NOW)
    (first,) = claim(store)
    (second,) = claim(store, now=NOW + 61)
    assert store.queue.fail([first.lease], "no") == {first.row.seq}
    assert store.queue.finish([DecodeResult(second.lease, "", {})], NOW) == set()


def test_done_never_becomes_failed(store: Store) -> None:
    new = stored_frame()
    store.frames.add([new], NOW)
    store.queue.finish([DecodeResult(c.lease, "", {}) for c in claim(store)], NOW)
    assert store.queue.demand("", new.id, NOW)
    assert store.queue.fail([c.lease for c in claim(store)], "no") == set()
    assert store.frames.counts()["done"] == 1 and store.queue.waiting(NOW).leased == 0


def test_recovery_ends_the_leases_of_one_name_only_even_those_of_the_last_release(store: Store) -> None:
    store.frames.add([stored_frame() for _ in range(4)], NOW)
    for owner in ("w", "W", "w1", "other"):
        claim(store, 1, owner=owner)
    with store.database.write() as connection:  # the last release stored the bare name
        connection.exec_driver_sql("UPDATE jobs SET lease_owner = 'w' WHERE lease_owner LIKE 'other%%'")
    assert store.queue.recover("w") == 2
    assert store.frames.counts()["decoding"] == 2


def test_restarts_cost_only_frames_that_were_on_the_device_an_attempt(store: Store) -> None:
    store.frames.add([stored_frame() for _ in range(32)], NOW)
    for _ in range(10):  # kill -9 ten times: the first frame was on the device, the others only claimed
        held = claim(store, 40)
        store.queue.begin([one.lease for one in held if one.row.seq == 1])
        store.queue.recover("w")
    assert store.frames.counts()["failed"] == 1
    assert {one.row.attempts for one in claim(store, 40)} == {0}


def test_an_attempt_that_the_worker_survived_does_not_count(store: Store) -> None:
    store.frames.add([stored_frame()], NOW)
    for _ in range(4):
        (held,) = claim(store)
        store.queue.begin([held.lease])
        store.queue.release([held.lease])
    (held,) = claim(store)
    assert held.row.attempts == 0


def test_a_lease_counts_one_attempt_however_often_it_is_said(store: Store) -> None:
    """The commit that counted it may have been the last before an error: the worker says it again."""
    store.frames.add([stored_frame()], NOW)
    (held,) = claim(store)
    for _ in range(3):
        store.queue.begin([held.lease])
    store.queue.recover("w")
    (again,) = claim(store)
    assert again.row.attempts == again.lease.attempts == 1
    store.queue.begin([again.lease])
    store.queue.release([again.lease])
    assert [one.row.attempts for one in claim(store)] == [1]


def test_frames_in_quarantine_are_queued_again(store: Store) -> None:
    mine, theirs, fine = stored_frame(b"mine", tenant="a"), stored_frame(b"theirs", tenant="b"), stored_frame()
    store.frames.add([mine, theirs, fine], NOW)
    held = {one.row.id: one.lease for one in claim(store)}
    store.queue.fail([held[mine.id], held[theirs.id]], "no")
    store.queue.finish([DecodeResult(held[fine.id], "", {})], NOW)
    assert store.queue.requeue(NOW, "a") == 1
    assert store.queue.requeue(NOW, "b", mine.id) == 0
    assert store.queue.requeue(NOW, id=theirs.id) == 1
    assert store.queue.requeue(NOW) == 0
    assert [one.bitstream for one in claim(store)] == [b"mine", b"theirs"]
    row = store.frames.get("a", mine.id)
    assert row is not None and row.state is FrameState.DECODING and row.reason is None


def test_a_frame_that_the_disk_has_changed_goes_to_quarantine_alone(store: Store) -> None:
    new = [stored_frame(b"frame %d" % i) for i in range(3)]
    store.frames.add(new, NOW)
    bad = new[1].id
    with store.database.write() as connection:
        connection.execute(sa.update(frames).where(frames.c.id == bad).values(bitstream=b"Frame 1"))
    with pytest.raises(StoredDamage, match="restore"):
        store.frames.bitstream("", bad)
    assert [one.row.id for one in claim(store)] == [new[0].id, new[2].id]
    row = store.frames.get("", bad)
    assert row is not None and row.state is FrameState.FAILED and "changed" in str(row.reason)
    assert store.queue.claim_one("", bad, "w", NOW, 60, 3) is None
    assert store.frames.bitstream("", new[0].id) == b"frame 0"


def test_renewed_leases_hold(store: Store) -> None:
    store.frames.add([stored_frame()], NOW)
    (held,) = claim(store)
    store.queue.renew([held.lease], NOW + 500)
    assert claim(store, now=NOW + 100) == []


def test_finish_keeps_the_first_time_of_availability(store: Store) -> None:
    new = stored_frame()
    store.frames.add([new], NOW)
    for later in (1, 2):
        (held,) = claim(store)
        store.queue.finish([DecodeResult(held.lease, "d" * 64, {"entropy": 0.1})], NOW + later)
        assert store.queue.demand("", new.id, NOW)
    row = store.frames.get("", new.id)
    assert row is not None and row.state is FrameState.DONE and row.available_ms == int((NOW + 1) * 1000)
    assert row.timings == {"entropy": 0.1} and row.attempts == 0


def test_pages_filters_and_sources(store: Store) -> None:
    store.frames.add([stored_frame(source=f"box-{i % 2}", rate=i % 3) for i in range(7)], NOW)
    store.frames.add([stored_frame(source="late")], NOW + 10)
    first = store.frames.page("", 3).rows
    rest = store.frames.page("", 10, before=first[-1].seq).rows
    assert [row.seq for row in first + rest] == list(range(8, 0, -1))
    assert len(store.frames.page("", 10, source="box-0").rows) == 4
    assert len(store.frames.page("", 10, rate=2).rows) == 2
    assert len(store.frames.page("", 10, since_ms=int(NOW * 1000) + 1).rows) == 1
    assert len(store.frames.page("", 10, until_ms=int(NOW * 1000) + 1, state=FrameState.RECEIVED).rows) == 7
    listed = store.frames.sources("")
    assert (listed[0]["source"], listed[0]["frames"]) == ("late", 1)
    store.frames.saw("", "box-0", NOW + 20)
    assert store.frames.sources("")[0]["source"] == "box-0" and store.frames.sources("")[0]["frames"] == 4


def test_the_last_arrival_of_each_source_seen_lately(store: Store) -> None:
    ms = int(NOW * 1000)
    store.frames.add([stored_frame(b"1", source="gate")], NOW)
    store.frames.add([stored_frame(b"2", source="gate"), stored_frame(b"3", source="mast", tenant="b")], NOW + 10)
    store.frames.saw("", "gate", NOW + 500)  # its box connects again, and its camera sends nothing
    store.frames.saw("", "new", NOW + 600)
    assert store.frames.last_arrivals(NOW, 10) == [
        ("", "new", ms + 600_000),
        ("", "gate", ms + 10_000),
        ("b", "mast", ms + 10_000),
    ]
    assert [source for _, source, _ in store.frames.last_arrivals(NOW, 2)] == ["new", "gate"]
    assert [source for _, source, _ in store.frames.last_arrivals(NOW + 550, 10)] == ["new"]


def test_a_box_is_not_silent_while_its_cameras_send(store: Store) -> None:
    store.frames.saw("", "box", NOW)
    store.frames.add([stored_frame(b"1", source="box/gate"), stored_frame(b"2", source="box2/gate")], NOW + 10)
    store.frames.saw("", "box2", NOW + 20)
    store.frames.saw("", "other", NOW + 20)  # a box that has never sent anything
    store.frames.saw("b", "box", NOW + 20)  # of another tenant
    listed = {(tenant, source) for tenant, source, _ in store.frames.last_arrivals(NOW, 10)}
    assert listed == {("", "box/gate"), ("", "box2/gate"), ("", "other"), ("b", "box")}
    store.frames.add([stored_frame(b"3", source="box")], NOW + 30)  # the box sends pictures of its own as well
    assert ("", "box") in {(tenant, source) for tenant, source, _ in store.frames.last_arrivals(NOW, 10)}


def test_the_newest_frame_of_each_source(store: Store) -> None:
    store.frames.add([stored_frame(b"1", source="gate"), stored_frame(b"2", source="mast")], NOW)
    store.frames.add([stored_frame(b"3", source="gate"), stored_frame(b"4", source="gate", tenant="b")], NOW + 10)
    store.frames.saw("", "new", NOW + 20)
    newest = store.frames.newest("")
    assert {source: row.seq for source, row in newest.items()} == {"gate": 3, "mast": 2}
    assert {source: row.tenant for source, row in store.frames.newest("b").items()} == {"gate": "b"}
    assert list(store.frames.newest("", limit=2)) == ["gate"]  # "new" is one of the two
    assert store.frames.newest("nobody") == {}


def test_many_threads_claim_each_frame_once(store: Store) -> None:
    store.frames.add([stored_frame() for _ in range(60)], NOW)
    taken: list[int] = []

    def work(name: str) -> None:
        while got := claim(store, 4, owner=name):
            taken.extend(c.row.seq for c in got)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))


def test_a_store_that_cannot_write_says_so(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = Store(f"sqlite:///{path}")
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 20")  # what a full disk does, on this one pooled connection
    with pytest.raises(StoreUnavailable, match="full"):
        store.frames.add([stored_frame(bytes(200_000))], NOW)
    assert store.frames.counts()["received"] == 0
    store.close()


def test_a_claim_of_alike_frames_fills_one_batch(store: Store) -> None:
    wide: dict[str, Any] = {"width": 128, "height": 64}
    tall: dict[str, Any] = {"width": 64, "height": 128}
    store.frames.add([stored_frame(**(wide if i % 2 else tall)) for i in range(8)], NOW)
    store.frames.add([stored_frame(**wide, priority=9)], NOW)
    first = store.queue.claim("w", "abcdef", 10, NOW, 60, 3, alike=True)
    assert len(first) == 5 and {c.row.width for c in first} == {128} and first[0].row.priority == 9
    assert {c.row.width for c in store.queue.claim("w", "abcdef", 3, NOW, 60, 3, alike=True)} == {64}
    assert len(claim(store)) == 1


def test_a_tenant_with_many_frames_does_not_keep_another_one_waiting(store: Store) -> None:
    store.frames.add([stored_frame(b"%d" % n, tenant="busy") for n in range(100)], NOW)
    store.frames.add([stored_frame(b"%d" % n, tenant="small") for n in range(3)], NOW + 1)
    first = Counter(one.row.tenant for one in claim(store, 10, NOW + 2))
    assert first == {"busy": 7, "small": 3}  # what is left of a share goes to the others
    assert Counter(one.row.tenant for one in claim(store, 10, NOW + 2)) == {"busy": 10}


def test_more_tenants_than_a_claim_has_room_for_are_served_one_after_the_other(store: Store) -> None:
    for tenant in "abcdefg":
        store.frames.add([stored_frame(b"%d" % n, tenant=tenant) for n in range(4)], NOW)
    found = [[one.row.tenant for one in claim(store, 2)] for _ in range(14)]
    assert all(len(set(pair)) == 2 for pair in found)
    for begin in (0, 7):
        served = Counter(tenant for pair in found[begin : begin + 7] for tenant in pair)
        assert served == dict.fromkeys("abcdefg", 2)
    assert claim(store) == []


@pytest.mark.parametrize("alike", [False, True])
def test_tenants_take_turns_at_claims_of_a_single_frame(store: Store, alike: bool) -> None:
    store.frames.add([stored_frame(b"%d" % n, tenant="busy") for n in range(20)], NOW)
    store.frames.add([stored_frame(b"%d" % n, tenant="small") for n in range(3)], NOW + 1)
    found = [store.queue.claim("w", "abcdef", 1, NOW + 2, 60, 3, alike=alike)[0].row.tenant for _ in range(8)]
    assert found == ["busy", "small"] * 3 + ["busy"] * 2


def test_tenants_take_turns_in_choosing_what_is_alike(store: Store) -> None:
    for tenant, width in (("a", 64), ("b", 640), ("c", 64)):
        store.frames.add([stored_frame(b"%d" % n, tenant=tenant, width=width) for n in range(40)], NOW)
    found = [store.queue.claim("w", "abcdef", 4, NOW, 60, 3, alike=True) for _ in range(6)]
    assert all(len({one.row.width for one in batch}) == 1 for batch in found)
    served = Counter(one.row.tenant for batch in found for one in batch)
    assert served["a"] == served["c"] == served["b"] == 8


def test_waiting_is_worth_priority_and_a_deadline_goes_first_among_equals(store: Store) -> None:
    old = stored_frame(priority=0)
    store.frames.add([old], NOW - 20)  # ten times aging_seconds: worth ten of priority
    urgent, plain, dated = stored_frame(priority=9), stored_frame(priority=4), stored_frame(priority=4)
    store.frames.add([urgent, plain], NOW)
    store.frames.add([dated], NOW, deadline=NOW + 5)
    assert [c.row.id for c in claim(store)] == [old.id, urgent.id, dated.id, plain.id]


def test_a_demand_goes_before_everything_and_makes_a_job_where_there_is_none(store: Store) -> None:
    quiet, loud, done = stored_frame(wanted=False), stored_frame(priority=2**31 - 1), stored_frame()
    store.frames.add([done], NOW)
    store.queue.finish([DecodeResult(c.lease, "", {}) for c in claim(store)], NOW)
    store.frames.add([quiet, loud], NOW)
    assert store.queue.demand("", done.id, NOW) and store.queue.demand("", quiet.id, NOW, deadline=NOW + 1)
    assert store.queue.demand("", quiet.id, NOW)  # once more changes nothing
    assert not store.queue.demand("", uuid4(), NOW) and not store.queue.demand("other", quiet.id, NOW)
    assert [c.row.id for c in claim(store)] == [quiet.id, done.id, loud.id]
    row = store.frames.get("", done.id)
    assert row is not None and row.state is FrameState.DONE  # it has been available all the time
    assert store.frames.counts()["decoding"] == 2


def test_the_backlog_counts_the_frames_without_a_lease(store: Store) -> None:
    assert store.queue.waiting(NOW).ready == 0
    store.frames.add([stored_frame(), stored_frame()], NOW - 7)
    store.frames.add([stored_frame(fingerprint="123456"), stored_frame(wanted=False)], NOW)
    assert (
        store.queue.waiting(NOW).ready,
        store.queue.waiting(NOW).leased,
        store.queue.waiting(NOW).oldest_seconds,
    ) == (3, 0, 7.0)
    claim(store)
    assert (store.queue.waiting(NOW).ready, store.queue.waiting(NOW).leased) == (1, 2)
    assert store.queue.waiting(NOW, "abcdef").ready == 0
    assert store.frames.arrived() == 4


def test_forgotten_is_as_if_it_had_never_come(store: Store) -> None:
    new = stored_frame()
    store.frames.add([new], NOW)
    store.frames.forget("other", new.id)
    store.frames.forget("", new.id)
    assert store.frames.get("", new.id) is None and claim(store) == []
    assert store.frames.add([new], NOW) == [Added.STORED]


def test_front_ends_that_store_the_same_frames_at_once_agree(store_url: str) -> None:
    stores = [Store(store_url) for _ in range(3)]
    same = [stored_frame(source=f"box-{i % 7}") for i in range(60)]
    answers: list[Added] = []

    def work(number: int) -> None:
        for start in range(0, 60, 20):
            part = same[start : start + 20]
            answers.extend(stores[number].frames.add(part if number else part[::-1], NOW))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [Added.DUPLICATE] * 120 + [Added.STORED] * 60
    assert len(claim(stores[0], 100)) == 60
    assert sum(source["frames"] for source in stores[0].frames.sources("")) == 60
    for one in stores:
        one.close()


def test_the_clock_is_the_database_s(store: Store) -> None:
    assert abs(store.clock() - time.time()) < 1.0
    if not store.database.sqlite:
        store.database._skew = (time.monotonic(), 1000.0)
        assert store.clock() - time.time() > 999


def test_a_lease_of_a_clock_that_was_set_back_does_not_hold(store: Store) -> None:
    ahead, frame = NOW + 86_400, stored_frame()
    store.frames.add([frame], ahead)
    assert claim(store, now=ahead) and not claim(store, now=ahead)
    (taken,) = claim(store)
    assert taken.row.id == frame.id
    store.queue.renew([taken.lease], NOW + 3000)  # a longer lease than that of this worker is possible
    assert not claim(store) and store.queue.claim_one("", frame.id, "w", NOW, 60, 3) is None
    store.queue.renew([taken.lease], ahead)
    assert store.queue.claim_one("", frame.id, "w", NOW, 60, 3) is not None
