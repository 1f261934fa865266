"""Received pictures: kept unchanged, replaced by their frame in one transaction, there after kills and full disks."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from edge_encoder.errors import IdTaken
from edge_encoder.spool.record import DamagedRecord, ReceivedPicture, State
from edge_encoder.spool.spool import Spool
from tests.support.edge.spooled import made_of, new_received
from tests.support.roots import ROOT


def test_an_original_survives_its_row_and_every_flipped_bit_is_found() -> None:
    kept = new_received(size=200)
    meta = kept.meta()
    assert ReceivedPicture.parse(meta, kept.check(meta), kept.picture) == kept
    for place in range(len(meta) + len(kept.picture)):
        row = bytearray(meta + kept.picture)
        row[place] ^= 1 << (place % 8)
        with pytest.raises(DamagedRecord):
            ReceivedPicture.parse(bytes(row[: len(meta)]), kept.check(meta), bytes(row[len(meta) :]))
    deep = b"[" * 100_000
    with pytest.raises(DamagedRecord):
        ReceivedPicture.parse(deep, kept.check(deep), kept.picture)


def test_an_original_becomes_a_frame_and_is_never_both(tmp_path: Path) -> None:
    seen: list[State] = []
    spool = Spool(tmp_path, on_change=lambda change: seen.append(change.state))
    kept = new_received()
    assert spool.receive(kept).result(5).state is State.RECEIVED
    assert (spool.received_pictures, spool.pending_frames) == (1, 0) and spool.received_bytes > 20_000
    assert spool.next_received() == (kept, 1) and spool.next_received() is None
    assert spool.put(made_of(kept)).result(5).state is State.SPOOLED
    assert (spool.received_pictures, spool.received_bytes, spool.pending_frames) == (0, 0, 1)
    (record,) = spool.lease(9)
    assert record == made_of(kept)
    spool.finish(kept.id, State.DELIVERED).result(5)
    assert seen == [State.RECEIVED, State.SPOOLED, State.DELIVERED]
    assert spool.receive(kept).result(5).state is State.DELIVERED and spool.received_pictures == 0
    spool.close()


def test_the_same_id_is_one_picture_in_every_state(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept = new_received()
    other = new_received(1)
    other = ReceivedPicture(kept.id, other.picture, other.picture_crc, 96, 64)

    def again(state: State) -> None:
        assert spool.receive(kept).result(5).state is state
        with pytest.raises(IdTaken):
            spool.receive(other).result(5)
        with pytest.raises(IdTaken):
            spool.put(made_of(other)).result(5)
        assert spool.received_pictures + spool.pending_frames == (0 if state in (State.FAILED, State.DELIVERED) else 1)

    spool.receive(kept).result(5)
    again(State.RECEIVED)
    spool.put(made_of(kept)).result(5)
    again(State.SPOOLED)
    spool.finish(kept.id, State.DELIVERED).result(5)
    again(State.DELIVERED)
    kept = new_received(2)
    other = ReceivedPicture(kept.id, other.picture, other.picture_crc, 96, 64)
    spool.receive(kept).result(5)
    assert spool.finish(kept.id, State.FAILED, "no picture").result(5) is True
    assert spool.finish(kept.id, State.FAILED).result(5) is False
    again(State.FAILED)
    entry = spool.get(kept.id)
    assert entry is not None and (entry.reason, entry.size, entry.width) == ("no picture", 0, 96)
    spool.close()


def test_urgent_first_then_oldest_and_the_released_rest(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept = [new_received(i, size=50, priority=p) for i, p in enumerate([0, 5, 0, 9, 5])]
    for each in kept:
        spool.receive(each).result(5)
    taken = [spool.next_received() for _ in kept]
    order = [kept.index(one[0]) for one in taken if one]
    assert order == [3, 1, 4, 0, 2] and spool.next_received() is None
    spool.release_received(kept[0].id, 0.05)
    assert spool.next_received() is None and 0 < (spool.next_received_seconds() or 0) <= 0.05
    time.sleep(0.06)
    assert spool.next_received() == (kept[0], 2)
    spool.close()


def test_tries_are_counted_across_crashes_and_forgiven(tmp_path: Path) -> None:
    kept = new_received()
    spool = Spool(tmp_path)
    spool.receive(kept).result(5)
    for number in (1, 2, 3):
        assert spool.next_received() == (kept, number)
        spool.close()
        spool = Spool(tmp_path)
        assert spool.received_pictures == 1
    spool.reset_attempts(kept.id).result(5)
    assert spool.next_received() == (kept, 1)
    spool.put(made_of(kept)).result(5)
    assert spool._reader.all("SELECT * FROM tries") == []
    spool.close()


CHILD = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.edge.spooled import made_of, new_received
from edge_encoder.spool.spool import Spool
spool = Spool(Path({folder!r}))
for number in range(100_000):
    batch = [new_received(number * 4 + k, size=30_000) for k in range(4)]
    for each, future in [(each, spool.receive(each)) for each in batch]:
        future.result(10)
        print(each.id, flush=True)
    spool.put(made_of(spool.next_received()[0]))  # every fourth is on its way when the kill comes
"""


def test_kill_9_loses_no_acknowledged_original_and_doubles_none(tmp_path: Path) -> None:
    acknowledged: list[uuid.UUID] = []
    rng = random.Random(5)
    for _ in range(3):
        command = [sys.executable, "-c", CHILD.format(root=str(ROOT), folder=str(tmp_path))]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged.append(uuid.UUID(child.stdout.readline().strip()))
        time.sleep(rng.uniform(0.05, 0.3))
        child.kill()
        acknowledged += [uuid.UUID(line.strip()) for line in child.stdout if line.endswith("\n")]
        child.wait()
    spool = Spool(tmp_path)
    received = set()
    while (found := spool.next_received()) is not None:
        received.add(found[0].id)
    frames = {record.id for record in spool.lease(1_000_000)}
    assert len(acknowledged) > 20 and frames and received
    assert set(acknowledged) <= received | frames and not received & frames
    spool.close()


FAILING = """
import sys; sys.path.insert(0, {root!r})
import resource
from pathlib import Path
from tests.support.edge.spooled import made_of, new_received
from edge_encoder.spool.spool import Spool
from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import State
folder = Path({folder!r})
def size():
    return max(p.stat().st_size for p in folder.glob("spool.sqlite3*"))  # not the reserve, which is larger
def tried(change, point):
    # Every write beyond the limit fails with EFBIG: the transaction breaks in its first, second, ... write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size() + point, resource.RLIM_INFINITY))
    try:
        change().result(10)
        return True
    except SpoolError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool = Spool(folder)
before = size(); spool.receive(new_received(0, size=9000)).result(10); growth = size() - before
kept, moved, refused = {{}}, {{}}, 0
for step, point in enumerate(at + more for at in range(0, growth, 4120) for more in (0, 23, 24, 1030)):
    one = new_received(step + 1, size=9000)
    if tried(lambda: spool.receive(one), point):
        kept[one.id] = one
    else:
        refused += 1
        spool.receive(one).result(10); kept[one.id] = one  # and it works again at once when there is room
    if tried(lambda: spool.put(made_of(one)), 3 * point):  # the move writes more pages
        moved[one.id] = kept.pop(one.id)
    else:
        refused += 1
        assert spool.get(one.id).state is State.RECEIVED
for _ in range(2):
    assert (spool.received_pictures, spool.pending_frames) == (len(kept) + 1, len(moved))
    assert {{r.id for r in spool.lease(1000)}} == set(moved)
    assert all(spool.get(each).state is State.RECEIVED for each in kept)
    spool.close()
    spool = Spool(folder)
    assert spool.unreadable == 0
found = []
while (one := spool.next_received()) is not None:
    found.append(one[0])
assert {{each.id: each for each in found[1:]}} == kept
print(refused, len(kept), len(moved))
"""


def test_writes_that_fail_at_every_point_leave_either_the_original_or_the_frame(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING.format(root=str(ROOT), folder=str(tmp_path / "spool"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[-3000:]
    refused, kept, moved = map(int, run.stdout.split())
    assert refused > 20 and kept > 5 and moved > 5


@pytest.mark.parametrize("where", ["middle", "flipped"])
def test_after_damage_what_is_readable_is_there(tmp_path: Path, where: str) -> None:
    spool = Spool(tmp_path)
    kept = {each.id: each for each in (new_received(number) for number in range(40))}
    for each in kept.values():
        spool.receive(each).result(5)
    spool.close()
    path = tmp_path / "spool.sqlite3"
    raw = bytearray(path.read_bytes())
    if where == "middle":
        begin = len(raw) // 2 // 4096 * 4096
        raw[begin : begin + 8192] = random.Random(1).randbytes(8192)
    else:  # inside one picture, of which SQLite sees nothing
        raw[raw.find(kept[min(kept)].picture[1000:1100])] ^= 4
    path.write_bytes(raw)
    spool = Spool(tmp_path)
    found = {}
    while (one := spool.next_received()) is not None:
        found[one[0].id] = one[0]
    assert 35 <= len(found) < 40 and spool.unreadable >= 1
    assert all(kept[ident] == each for ident, each in found.items())
    spool.close()
