"""The spool after kill -9, power cuts, failing writes and damage: what was acknowledged is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import Record, State
from edge_encoder.spool.spool import Spool
from tests.support.edge.spooled import new_record, put, state_of
from tests.support.roots import ROOT

CHILD = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.edge.spooled import new_record
from edge_encoder.spool.spool import Spool
spool = Spool(Path({folder!r}))
for number in range(100_000):
    batch = [new_record(number * 8 + k, size=300) for k in range(8)]
    for record, future in [(r, spool.put(r)) for r in batch]:
        future.result(10)
        print(record.id, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    rng = random.Random(5)
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(root=str(ROOT), folder=str(tmp_path))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
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


def test_power_cut_at_every_point_of_the_log(tmp_path: Path) -> None:
    """What a power cut leaves is the synced part of the WAL and any piece of what came after it."""
    live = tmp_path / "live"
    spool = Spool(live)
    wal = live / "spool.sqlite3-wal"
    records, safe_at = [], []
    for number in range(6):
        record = new_record(number, size=900)
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
        put(after, new_record(100))
        after.close()
    spool.close()


FAILING = """
import sys; sys.path.insert(0, {root!r})
import os, resource
from pathlib import Path
from tests.support.edge.spooled import new_record
from edge_encoder.spool.spool import Spool
from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import State
folder = Path({folder!r})
spool = Spool(folder)
first = new_record(0); spool.put(first).result(10)
kept = {{first.id: first}}
refused = 0
def size():
    return max(p.stat().st_size for p in folder.glob("spool.sqlite3*"))  # not the reserve, which is larger
before = size()
record = new_record(1, size=900); spool.put(record).result(10); kept[record.id] = record
growth = size() - before  # what one transaction writes: 24 bytes and a page of 4096, several times
inner = {{at + more for at in range(0, growth, 4120) for more in (0, 1, 23, 24)}}
points = sorted(set(range(0, growth, 1030)) | inner)
for step, point in enumerate(points):
    # Every write beyond the limit fails with EFBIG: the transaction breaks in its first, second, ... write, or between.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size() + point, resource.RLIM_INFINITY))
    record = new_record(step + 2, size=900)
    try:
        spool.put(record).result(10); kept[record.id] = record
    except SpoolError:
        refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if step % 10 == 9:  # and it works again at once when there is room
        record = new_record(1000 + step); spool.put(record).result(10); kept[record.id] = record
assert spool.pending_frames == len(kept), (spool.pending_frames, len(kept))
assert {{r.id: r for r in spool.lease(1000)}} == kept
spool.close()
again = Spool(folder)
assert {{r.id: r for r in again.lease(1000)}} == kept and again.unreadable == 0
print(refused, sum(point < growth - 8240 for point in points), len(points), len(kept))
"""


def test_writes_that_fail_at_every_point_of_a_transaction(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAILING.format(root=str(ROOT), folder=str(tmp_path / "spool"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    refused, inside, points, kept = map(int, run.stdout.split())
    assert refused >= inside >= 20 and points > 30 and kept >= 5


def spooled(folder: Path, count: int = 300) -> dict[uuid.UUID, Record]:
    spool = Spool(folder)
    records = [new_record(i) for i in range(count)]
    for future in [spool.put(record) for record in records]:
        future.result(10)
    spool.close()
    return {record.id: record for record in records}


@pytest.mark.parametrize("where", ["header", "middle", "everywhere", "truncated", "text", "empty"])
def test_starts_after_corruption_and_keeps_what_is_readable(tmp_path: Path, where: str) -> None:
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
    put(spool, new_record(5000))
    spool.close()
    spool = Spool(tmp_path)
    assert len(spool.lease(1000)) == len(present) + 1
    spool.close()


def test_damage_found_while_running_is_repaired_while_running(tmp_path: Path) -> None:
    records = spooled(tmp_path)
    spool = Spool(tmp_path)
    put(spool, new_record(999))
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
    put(spool, new_record(1000))
    spool.close()


def test_a_record_with_flipped_bits_is_dropped_counted_and_never_sent(tmp_path: Path) -> None:
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
    spool.put(new_record(7)).result(5)
    assert state_of(spool, victim.id) is State.DROPPED
    spool.close()
