"""The spool's promises: what was acknowledged is there, whatever happens to process, disk or file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zlib
from pathlib import Path

import pytest

from edge_encoder.ids import new_id, parse_id
from edge_encoder.records import DamagedRecord, IdTaken, Record, SpoolError, SpoolFull, State
from edge_encoder.spool import Spool

ROOT = Path(__file__).resolve().parents[2]


def frame(number: int = 0, *, size: int = 1500, priority: int = 0) -> Record:
    data = random.Random(number).randbytes(size)
    now = int(time.time() * 1000)
    return Record(new_id(), data, 768, 512, 1, priority, now, now, zlib.crc32(data), "mast-7")


def put(spool: Spool, record: Record) -> None:
    spool.put(record).result(10)


def test_ids_are_uuid7_and_rise():
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(ids) and len(set(ids)) == 5000
    assert all(i.version == 7 and i.variant == uuid.RFC_4122 for i in ids)
    assert abs((ids[0].int >> 80) - time.time() * 1000) < 5000
    for bad in ("", "{" + str(ids[0]) + "}", ids[0].hex, "urn:uuid:" + str(ids[0]), "../../etc/passwd"):
        with pytest.raises(ValueError):
            parse_id(bad)


def test_record_survives_its_bytes_and_tells_every_flipped_bit():
    record = frame(1, size=200)
    raw = record.to_bytes()
    assert Record.parse(raw) == record
    for at in range(len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(DamagedRecord):
            Record.parse(bytes(damaged))


def test_a_frame_goes_through_its_states(tmp_path):
    seen = []
    spool = Spool(tmp_path, on_change=lambda ident, state, reason: seen.append(state))
    record = frame()
    put(spool, record)
    entry = spool.get(record.id)
    assert entry is not None and entry.state is State.SPOOLED
    assert (entry.width, entry.height, entry.size) == (768, 512, 1500)
    assert spool.pending_frames == 1 and spool.pending_bytes > 1500
    (leased,) = spool.lease(8)
    assert leased == record
    assert spool.get(record.id).state is State.SENDING
    assert spool.lease(8) == []
    assert spool.finish(record.id, State.DELIVERED).result(5) is True
    assert spool.finish(record.id, State.DELIVERED).result(5) is False
    assert spool.get(record.id).state is State.DELIVERED
    assert (spool.pending_frames, spool.pending_bytes) == (0, 0)
    assert seen == [State.SPOOLED, State.DELIVERED]
    spool.close()


def test_released_frames_rest_longer_each_time_and_others_overtake(tmp_path):
    spool = Spool(tmp_path)
    first, second = frame(1), frame(2)
    put(spool, first)
    put(spool, second)
    assert [r.id for r in spool.lease(1)] == [first.id]
    spool.release([first.id], 0.05)
    assert [r.id for r in spool.lease(2)] == [second.id]
    assert 0 < spool.next_retry_seconds() <= 0.05
    time.sleep(0.06)
    assert [r.id for r in spool.lease(2)] == [first.id]
    spool.release([first.id], 0.05)
    assert 0.05 < spool.next_retry_seconds() <= 0.1
    spool.close()


def test_priority_overtakes_then_age_decides(tmp_path):
    spool = Spool(tmp_path)
    records = [frame(i, priority=p) for i, p in enumerate([0, 5, 0, 9, 5])]
    for record in records:
        put(spool, record)
    assert [records.index(r) for r in spool.lease(9)] == [3, 1, 4, 0, 2]
    spool.close()


def test_same_id_is_idempotent_and_another_picture_is_refused(tmp_path):
    spool = Spool(tmp_path)
    record = frame(1)
    put(spool, record)
    put(spool, record)
    assert spool.pending_frames == 1
    other = Record(record.id, b"x", 16, 16, 0, picture_crc=7)
    with pytest.raises(IdTaken):
        put(spool, other)
    spool.finish(record.id, State.DELIVERED).result(5)
    assert spool.put(record).result(5).state is State.DELIVERED
    spool.close()


def test_full_refuses(tmp_path):
    spool = Spool(tmp_path, max_bytes=10_000)
    kept = []
    with pytest.raises(SpoolFull, match="AEIC_EDGE_SPOOL_MAX_BYTES"):
        for number in range(50):
            record = frame(number)
            put(spool, record)
            kept.append(record)
    assert spool.pending_frames == len(kept) == 5
    assert spool.pending_bytes <= 10_000
    spool.finish(kept[0].id, State.DELIVERED).result(5)
    put(spool, frame(99))
    spool.close()


@pytest.mark.parametrize(("policy", "gone"), [("drop-oldest", [0]), ("drop-lowest-priority", [2])])
def test_full_drops_by_the_declared_rule_and_says_so(tmp_path, policy, gone):
    dropped = []
    spool = Spool(
        tmp_path,
        max_bytes=10_000,
        full_policy=policy,
        on_change=lambda ident, state, reason: dropped.append((ident, reason)) if state is State.DROPPED else None,
    )
    records = [frame(i, priority=p) for i, p in enumerate([5, 5, 1, 5, 5])]
    for record in records:
        put(spool, record)
    put(spool, frame(9, priority=5))
    assert [[r.id for r in records].index(i) for i, _ in dropped] == gone
    assert policy in dropped[0][1]
    assert spool.get(records[gone[0]].id).state is State.DROPPED
    if policy == "drop-lowest-priority":
        with pytest.raises(SpoolFull):  # nobody is less important than this one
            put(spool, frame(10, priority=0))
    with pytest.raises(SpoolFull):
        put(spool, frame(11, size=20_000, priority=9))
    assert spool.pending_frames == 5
    # A frame that was dropped may be posted again under its id.
    if policy == "drop-oldest":
        assert spool.put(records[0]).result(5).state is State.SPOOLED
    spool.close()


def test_old_frames_expire_but_never_those_of_an_unset_clock(tmp_path):
    spool = Spool(tmp_path)
    now = int(time.time() * 1000)
    old = Record(new_id(), b"a", 16, 16, 0, created_ms=now - 100_000)
    unset = Record(new_id(), b"b", 16, 16, 0, created_ms=1000)
    for record in (old, unset, frame()):
        put(spool, record)
    assert spool.expire(now - 50_000).result(5) == 1
    assert spool.get(old.id).state is State.DROPPED
    assert spool.get(unset.id).state is State.SPOOLED
    spool.close()


def test_history_is_bounded(tmp_path):
    spool = Spool(tmp_path, history_frames=100)
    for number in range(150):
        record = frame(number, size=20)
        put(spool, record)
        spool.finish(record.id, State.DELIVERED).result(5)
    rows = spool._read_one("SELECT COUNT(*) FROM frames", ())[0]
    assert 100 <= rows <= 106
    spool.close()


def test_two_edges_cannot_share_a_folder(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(SpoolError, match="another edge"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_put_after_close_is_refused(tmp_path):
    spool = Spool(tmp_path)
    spool.close()
    with pytest.raises(SpoolError):
        put(spool, frame())


def test_group_commit_many_at_once(tmp_path):
    spool = Spool(tmp_path)
    records = [frame(i, size=300) for i in range(1000)]
    for future in [spool.put(record) for record in records]:
        future.result(20)
    assert spool.pending_frames == 1000
    spool.close()
    spool = Spool(tmp_path)
    assert {r.id: r for r in spool.lease(2000)} == {r.id: r for r in records}
    spool.close()


CHILD = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.edge.test_spool import frame
from edge_encoder.spool import Spool
spool = Spool(Path({folder!r}))
for number in range(100_000):
    batch = [frame(number * 8 + k, size=300) for k in range(8)]
    for record, future in [(r, spool.put(r)) for r in batch]:
        future.result(10)
        print(record.id, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    acknowledged: list[str] = []
    rng = random.Random(5)
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(root=str(ROOT), folder=str(tmp_path))],
            stdout=subprocess.PIPE,
            text=True,
        )
        acknowledged.append(child.stdout.readline().strip())
        time.sleep(rng.uniform(0.02, 0.2))
        child.send_signal(signal.SIGKILL)
        # The last line may have been cut short by the kill.
        acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.wait()
    spool = Spool(tmp_path)
    present = {str(record.id) for record in spool.lease(1_000_000)}
    assert len(acknowledged) > 50
    assert set(acknowledged) <= present
    assert spool.unreadable == 0
    spool.close()


def test_power_cut_at_every_point_of_the_log(tmp_path):
    """What a power cut leaves is the synced part of the WAL and any piece of what came after it."""
    live = tmp_path / "live"
    spool = Spool(live)
    wal = live / "spool.sqlite3-wal"
    records, safe_at = [], []
    for number in range(6):
        record = frame(number, size=900)
        put(spool, record)
        records.append(record)
        safe_at.append(wal.stat().st_size)
    start = safe_at[0]
    for cut in [*range(start, safe_at[-1], 5779), *safe_at, *(s - 1 for s in safe_at[1:]), *(s + 24 for s in safe_at)]:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(live / "spool.sqlite3", copy)
        torn = bytearray(wal.read_bytes()[:cut])
        if cut % 2:  # half of the time the last sector is rubbish
            torn[max(start, cut - 200) : cut] = b"\xa5" * (cut - max(start, cut - 200))
            safe = cut - 200
        else:
            safe = cut
        (copy / "spool.sqlite3-wal").write_bytes(torn)
        after = Spool(copy)
        present = {r.id: r for r in after.lease(100)}
        for record, end in zip(records, safe_at, strict=True):
            if end <= safe:
                assert present.get(record.id) == record
        assert set(present) <= {r.id for r in records}
        assert after.unreadable == 0
        put(after, frame(100))
        after.close()
    spool.close()


FAILING = """
import sys; sys.path.insert(0, {root!r})
import os, resource
from pathlib import Path
from tests.edge.test_spool import frame
from edge_encoder.spool import Spool
from edge_encoder.records import SpoolError, State
folder = Path({folder!r})
spool = Spool(folder)
first = frame(0); spool.put(first).result(10)
kept = {{first.id: first}}
refused = 0
def size():
    return max(p.stat().st_size for p in folder.iterdir())
step = 0
while step < 70:
    # Every write beyond the limit fails with EFBIG: the transaction breaks at its first, second, ... write.
    limit = size() + step * 517 % 16_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    record = frame(step + 1, size=900)
    try:
        spool.put(record).result(10); kept[record.id] = record
    except SpoolError:
        refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if step % 10 == 9:  # and it works again at once when there is room
        record = frame(1000 + step); spool.put(record).result(10); kept[record.id] = record
    step += 1
assert spool.pending_frames == len(kept), (spool.pending_frames, len(kept))
assert {{r.id: r for r in spool.lease(1000)}} == kept
spool.close()
again = Spool(folder)
assert {{r.id: r for r in again.lease(1000)}} == kept and again.unreadable == 0
print(refused, len(kept))
"""


def test_writes_that_fail_at_every_point_of_a_transaction(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FAILING.format(root=str(ROOT), folder=str(tmp_path / "spool"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    refused, kept = map(int, run.stdout.split())
    assert refused >= 10 and kept >= 20


def spooled(folder: Path, count: int = 300) -> dict[uuid.UUID, Record]:
    spool = Spool(folder)
    records = [frame(i) for i in range(count)]
    for future in [spool.put(record) for record in records]:
        future.result(10)
    spool.close()
    return {record.id: record for record in records}


@pytest.mark.parametrize("where", ["header", "middle", "everywhere", "truncated", "text", "empty"])
def test_starts_after_corruption_and_keeps_what_is_readable(tmp_path, where):
    records = spooled(tmp_path)
    path = tmp_path / "spool.sqlite3"
    raw = bytearray(path.read_bytes())
    rng = random.Random(3)
    least = 0
    if where == "header":
        raw[:4096] = rng.randbytes(4096)
        least = 290
    elif where == "middle":
        at = len(raw) // 2 // 4096 * 4096
        raw[at : at + 8192] = rng.randbytes(8192)
        least = 280
    elif where == "everywhere":
        for at in range(0, len(raw), 20_000):
            raw[at] ^= 0xFF
        least = 200
    elif where == "truncated":
        del raw[len(raw) // 2 :]
        least = 100
    elif where == "text":
        raw = bytearray(b"this is no database" * 100)
    else:
        raw = bytearray()
    path.write_bytes(raw)
    spool = Spool(tmp_path)
    present = {record.id: record for record in spool.lease(1000)}
    assert least <= len(present)
    assert all(records[ident] == record for ident, record in present.items())
    put(spool, frame(5000))
    spool.close()
    spool = Spool(tmp_path)
    assert len(spool.lease(1000)) == len(present) + 1
    spool.close()


def test_damage_found_while_running_is_repaired_while_running(tmp_path):
    records = spooled(tmp_path)
    spool = Spool(tmp_path)
    put(spool, frame(999))
    raw = (tmp_path / "spool.sqlite3").read_bytes()
    with open(tmp_path / "spool.sqlite3", "r+b") as file:
        file.seek(len(raw) // 2 // 4096 * 4096)
        file.write(os.urandom(40_960))
    deadline = time.monotonic() + 10
    present: dict[uuid.UUID, Record] = {}
    while time.monotonic() < deadline and len(present) < 250:
        try:
            present |= {record.id: record for record in spool.lease(1000)}
        except SpoolError:
            time.sleep(0.05)
    assert len(present) >= 250
    assert all(records[ident] == record for ident, record in present.items() if ident in records)
    put(spool, frame(1000))
    spool.close()


def test_a_record_with_flipped_bits_is_dropped_counted_and_never_sent(tmp_path):
    records = spooled(tmp_path, 3)
    path = tmp_path / "spool.sqlite3"
    raw = bytearray(path.read_bytes())
    victim = list(records.values())[1]
    at = raw.find(victim.data)
    raw[at + 5] ^= 4  # inside the blob: SQLite itself sees nothing wrong
    path.write_bytes(raw)
    spool = Spool(tmp_path)
    assert victim.id not in {record.id for record in spool.lease(10)}
    assert spool.unreadable == 1
    spool.put(frame(7)).result(5)
    assert spool.get(victim.id).state is State.DROPPED
    spool.close()
