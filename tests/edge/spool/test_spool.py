"""The spool: an acknowledged frame is there, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from aeic.identifiers import new_id, parse_id
from edge_encoder.errors import IdTaken, SpoolError, SpoolFull
from edge_encoder.spool.record import CapturedFrom, DamagedRecord, FullPolicy, ReceivedPicture, Record, State
from edge_encoder.spool.spool import Spool
from tests.support.edge.spooled import new_received, new_record, put, state_of


def test_ids_are_uuid7_and_rise() -> None:
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(ids) and len(set(ids)) == 5000
    assert all(i.version == 7 and i.variant == uuid.RFC_4122 for i in ids)
    assert abs((ids[0].int >> 80) - time.time() * 1000) < 5000
    for bad in ("", "{" + str(ids[0]) + "}", ids[0].hex, "urn:uuid:" + str(ids[0]), "../../etc/passwd"):
        with pytest.raises(ValueError):
            parse_id(bad)


def test_a_record_survives_its_bytes_and_every_flipped_bit_is_found() -> None:
    record = new_record(1, size=200)
    raw = record.to_bytes()
    assert Record.parse(raw) == record
    for at in range(len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(DamagedRecord):
            Record.parse(bytes(damaged))


def test_a_frame_goes_through_its_states(tmp_path: Path) -> None:
    seen = []
    spool = Spool(tmp_path, on_change=lambda change: seen.append(change.state))
    record = new_record()
    put(spool, record)
    entry = spool.get(record.id)
    assert entry is not None and entry.state is State.SPOOLED
    assert (entry.width, entry.height, entry.size) == (768, 512, 1500)
    assert spool.pending_frames == 1 and spool.pending_bytes > 1500
    (leased,) = spool.lease(8)
    assert leased == record
    assert state_of(spool, record.id) is State.SENDING
    assert spool.lease(8) == []
    assert spool.finish(record.id, State.DELIVERED).result(5) is True
    assert spool.finish(record.id, State.DELIVERED).result(5) is False
    assert state_of(spool, record.id) is State.DELIVERED
    assert (spool.pending_frames, spool.pending_bytes) == (0, 0)
    assert seen == [State.SPOOLED, State.DELIVERED]
    spool.close()


def test_released_frames_rest_longer_each_time_and_others_overtake(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first, second = new_record(1), new_record(2)
    put(spool, first)
    put(spool, second)
    assert [r.id for r in spool.lease(1)] == [first.id]
    spool.release([first.id], 0.05)
    assert [r.id for r in spool.lease(2)] == [second.id]
    assert 0 < (spool.next_retry_seconds() or 0) <= 0.05
    time.sleep(0.06)
    assert [r.id for r in spool.lease(2)] == [first.id]
    spool.release([first.id], 0.05)
    assert 0.05 < (spool.next_retry_seconds() or 0) <= 0.1
    spool.close()


def test_priority_overtakes_then_age_decides(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [new_record(i, priority=p) for i, p in enumerate([0, 5, 0, 9, 5])]
    for record in records:
        put(spool, record)
    assert [records.index(r) for r in spool.lease(9)] == [3, 1, 4, 0, 2]
    spool.close()


def test_same_id_is_idempotent_and_another_picture_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    record = new_record(1)
    put(spool, record)
    put(spool, record)
    assert spool.pending_frames == 1
    other = Record(record.id, b"x", 16, 16, 0, picture_crc=7)
    with pytest.raises(IdTaken):
        put(spool, other)
    spool.finish(record.id, State.DELIVERED).result(5)
    assert spool.put(record).result(5).state is State.DELIVERED
    spool.close()


def test_full_refuses(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10_000)
    kept = []
    with pytest.raises(SpoolFull, match="AEIC_EDGE_SPOOL_MAX_BYTES"):
        for number in range(50):
            record = new_record(number)
            put(spool, record)
            kept.append(record)
    assert spool.pending_frames == len(kept) == 5
    assert spool.pending_bytes <= 10_000
    spool.finish(kept[0].id, State.DELIVERED).result(5)
    put(spool, new_record(99))
    spool.close()


@pytest.mark.parametrize(("policy", "gone"), [("drop-oldest", [0]), ("drop-lowest-priority", [2])])
def test_full_drops_by_the_declared_rule_and_says_so(tmp_path: Path, policy: FullPolicy, gone: list[int]) -> None:
    dropped = []
    spool = Spool(
        tmp_path,
        max_bytes=10_000,
        full_policy=policy,
        on_change=lambda change: dropped.append((change.id, change.reason)) if change.drop else None,
    )
    records = [new_record(i, priority=p) for i, p in enumerate([5, 5, 1, 5, 5])]
    for record in records:
        put(spool, record)
    put(spool, new_record(9, priority=5))
    assert [[r.id for r in records].index(i) for i, _ in dropped] == gone
    assert policy in dropped[0][1]
    assert state_of(spool, records[gone[0]].id) is State.DROPPED
    if policy == "drop-lowest-priority":
        with pytest.raises(SpoolFull):  # no frame is less important than this one
            put(spool, new_record(10, priority=0))
    with pytest.raises(SpoolFull):
        put(spool, new_record(11, size=20_000, priority=9))
    assert spool.pending_frames == 5
    # A frame that was dropped may be posted again under its id.
    if policy == "drop-oldest":
        assert spool.put(records[0]).result(5).state is State.SPOOLED
    spool.close()


def test_history_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, history_frames=100)
    for number in range(150):
        record = new_record(number, size=20)
        put(spool, record)
        spool.finish(record.id, State.DELIVERED).result(5)
    rows = spool._reader.one("SELECT COUNT(*) FROM frames")[0]
    assert 100 <= rows <= 106
    spool.close()


def test_two_edges_cannot_share_a_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolError, match="another edge"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_put_after_close_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.close()
    with pytest.raises(SpoolError):
        put(spool, new_record())


def test_group_commit_many_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [new_record(i, size=300) for i in range(1000)]
    for future in [spool.put(record) for record in records]:
        future.result(20)
    assert spool.pending_frames == 1000
    spool.close()
    spool = Spool(tmp_path)
    assert {r.id: r for r in spool.lease(2000)} == {r.id: r for r in records}
    spool.close()


def test_a_caller_that_gives_up_does_not_stop_the_writer(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [new_record(i, size=300) for i in range(200)]
    futures = [spool.put(record) for record in records]
    given_up = [future.cancel() for future in futures]
    put(spool, new_record(999))
    assert spool.alive and any(given_up)
    kept = {record.id for record in spool.lease(1000)}
    assert {record.id for record, gone in zip(records, given_up, strict=True) if not gone} <= kept
    spool.close()


def test_what_describes_the_picture_survives_a_restart_and_is_no_part_of_the_record(tmp_path: Path) -> None:
    record = replace(new_record(), original_width=4000, original_height=3000, captured_from=CapturedFrom.EXIF)
    spool = Spool(tmp_path)
    put(spool, record)
    spool.close()
    spool = Spool(tmp_path)
    (leased,) = spool.lease(5)
    entry = spool.get(record.id)
    spool.close()
    assert leased == record
    assert entry is not None and (entry.original_width, entry.original_height) == (4000, 3000)
    # So an earlier release reads the spool after a rollback.
    bare = replace(record, original_width=0, original_height=0, captured_from=CapturedFrom.UNKNOWN)
    assert Record.parse(record.to_bytes()) == bare
    received = new_received()
    assert b"max_side" not in received.meta()
    limited = replace(received, max_side=640)
    assert ReceivedPicture.parse(limited.meta(), limited.check(limited.meta()), limited.picture) == limited
