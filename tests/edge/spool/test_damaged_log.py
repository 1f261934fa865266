"""A damaged write-ahead log: later commits are kept, a torn transaction is distinguished from damage."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from aeic_service import wal
from edge_encoder.spool.record import State
from edge_encoder.spool.spool import Spool
from edge_encoder.spool.verification import check
from tests.edge.spool.damaged import closed, frame, killed, present, seal
from tests.support.edge.spooled import new_received, new_record, put


def test_one_flipped_bit_in_the_log_loses_no_later_commit(tmp_path: Path) -> None:
    kept, pictures = killed(tmp_path / "spool", 60, 10)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    pages = wal.scan(log)
    assert pages is not None and not pages.damaged and len(pages.committed) > 100
    raw = bytearray(log.read_bytes())
    raw[pages.committed[len(pages.committed) // 3][1] + 700] ^= 8
    log.write_bytes(raw)
    assert not check(tmp_path / "spool").ok
    spool = Spool(tmp_path / "spool")
    found = present(spool)
    received = []
    while (one := spool.next_received()) is not None:
        received.append(one[0])
    assert all(kept[ident] == record for ident, record in found.items())
    assert len(found) + len(received) + spool.unreadable >= 70
    assert len(found) >= 58 and sorted(o.id for o in received) == sorted(o.id for o in pictures)
    spool.close()


@pytest.mark.parametrize("commit", [0, 9])
@pytest.mark.parametrize("behind", [False, True])
def test_a_torn_last_transaction_is_no_damage(tmp_path: Path, commit: int, behind: bool) -> None:
    """Only a whole commit behind a frame that does not match had been promised."""
    kept, _ = killed(tmp_path / "spool", 60)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    torn = bytes(frame(raw, -1)[:1000]) + bytes(frame(raw, -9)[1000:])
    raw += torn[:4] + commit.to_bytes(4, "big") + torn[8:]
    if behind:
        raw += bytes(frame(raw, -2))
        seal(raw, -1, 9)
    log.write_bytes(raw)
    found = wal.scan(log)
    assert found is not None and found.damaged is behind
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept and spool.unreadable == 0
    assert bool(spool.recoveries()) is behind
    spool.close()


def test_a_header_that_was_torn_over_a_transaction_without_commit_is_no_damage(tmp_path: Path) -> None:
    """The number of another page changes only the high bytes of the checksum, as one changed word could."""
    kept, _ = killed(tmp_path / "spool", 60)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    raw += bytes(frame(raw, -9)) + bytes(frame(raw, -5)) + bytes(frame(raw, -3))
    for index in (-3, -2, -1):  # three frames of a transaction that was killed before its commit
        seal(raw, index, 0)
    header = (12).to_bytes(4, "big") + (30).to_bytes(4, "big") + bytes(frame(raw, -4)[8:16]) + b"\x3f" * 8
    for torn in range(1, 24):
        written = bytearray(raw)
        frame(written, -3)[:torn] = header[:torn]
        log.write_bytes(written)
        found = wal.scan(log)
        assert found is not None and not found.damaged, torn
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept and spool.unreadable == 0 and not spool.recoveries()
    spool.close()


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_a_flipped_bit_before_a_transaction_without_commit_is_damage(tmp_path: Path, bit: int) -> None:
    killed(tmp_path / "spool", 60)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    raw += bytes(frame(raw, -9)) + bytes(frame(raw, -5))
    for index in (-2, -1):
        seal(raw, index, 0)
    frame(raw, -3)[24 + 400 + bit // 8] ^= 1 << bit % 8  # the last commit's
    log.write_bytes(raw)
    found = wal.scan(log)
    assert found is not None and found.damaged


def test_no_flipped_bit_of_a_commit_is_taken_for_a_torn_header(tmp_path: Path) -> None:
    """The number of another page could explain the flips of some bits in the high bytes of words."""
    content = random.Random(7)
    header = struct.pack(">IIII", 0x377F0682, 3_007_000, 4096, 0) + bytes(8)
    raw = bytearray(header + wal._checksum(bytes(8), memoryview(header), "<"))
    frames = [(43, 43), (2, 0), (9, 0)]  # a commit and two frames of a transaction that was killed
    for number, commit in frames:
        raw += struct.pack(">II", number, commit) + bytes(16) + content.randbytes(4096)
    previous = bytes(raw[24:32])
    for index in range(len(frames)):
        one = frame(raw, index)
        one[16:24] = previous = wal._checksum(previous, one[:8], "<", one[24:])
    log = tmp_path / "log-wal"
    for bit in range(24, 8 * 4096, 32):
        flipped = bytearray(raw)
        frame(flipped, 0)[24 + bit // 8] ^= 1 << bit % 8
        log.write_bytes(flipped)
        found = wal.scan(log)
        assert found is not None and found.damaged, bit


@pytest.mark.parametrize("index", [True, False])
def test_a_damaged_last_commit_loses_no_whole_record(tmp_path: Path, index: bool) -> None:
    """With SQLite's index of the log the commit is known to have been whole; without it, it may have been torn."""
    folder, live = tmp_path / "spool", Spool(tmp_path / "live")
    records = [new_record(number) for number in range(300)]
    delivered = records[:40]
    for record in delivered:
        put(live, record)
        assert live.finish(record.id, State.DELIVERED).result(10)
    put(live, records[40])
    for future in [live.put(record) for record in records[41:]]:  # a few group commits
        future.result(10)
    folder.mkdir()
    for path in (tmp_path / "live").glob("spool.sqlite3*"):
        if index or not path.name.endswith("-shm"):
            shutil.copyfile(path, folder / path.name)
    live.close()
    log = folder / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    frame(raw, -1)[24 + 3584 : 24 + 3648] = random.Random(7).randbytes(64)
    log.write_bytes(raw)
    assert check(folder).ok is not index
    spool = Spool(folder)
    found = present(spool)
    assert found.keys() <= {record.id for record in records[40:]} and len(found) >= 259
    assert all(record in records for record in found.values())
    assert [complete for _, _, complete in spool.recoveries()] == [False] * index
    spool.close()
    again = Spool(folder)
    assert present(again) == found
    again.close()


def _killed_after_20_frames(tmp_path: Path) -> Path:
    """The folder of a spool whose frames are still in its log."""
    folder, live = tmp_path / "spool", Spool(tmp_path / "live")
    for number in range(20):
        put(live, new_record(number))
    folder.mkdir()
    for path in (tmp_path / "live").glob("spool.sqlite3*"):
        shutil.copyfile(path, folder / path.name)
    live.close()
    return folder


def test_a_log_cut_off_after_a_commit_is_known_to_lack_something(tmp_path: Path) -> None:
    folder = _killed_after_20_frames(tmp_path)
    log = folder / "spool.sqlite3-wal"
    log.write_bytes(log.read_bytes()[: -4120 * 8])
    spool = Spool(folder)
    assert [complete for _, _, complete in spool.recoveries()] == [False]
    spool.close()


def _is_leaf_of_originals(raw: bytearray, start: int) -> bool:
    return raw[start] == 13 and b"mast-7" in raw[start : start + 4096] and b"r1" in raw[start : start + 4096]


def test_a_commit_behind_damage_is_read_without_the_transaction_after_it(tmp_path: Path) -> None:
    """That one is torn: its page of received pictures refers to pages that were never written."""
    kept, pictures = killed(tmp_path / "spool", 20, 10)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    found = wal.scan(log)
    assert found is not None and len(found.committed) == (len(raw) - 32) // 4120
    table = max(found.committed, key=lambda page: page[1] if _is_leaf_of_originals(raw, page[1]) else -1)
    junk = bytearray(frame(raw, (table[1] - 56) // 4120))
    junk[24 + 200 :] = random.Random(1).randbytes(len(junk) - 224)
    raw += junk
    seal(raw, -1, 0)
    raw[found.committed[len(found.committed) // 2][1] + 700] ^= 8
    log.write_bytes(raw)
    scanned = wal.scan(log)
    assert scanned is not None and scanned.damaged and scanned.behind and len(scanned.uncommitted) == 1
    spool = Spool(tmp_path / "spool")
    received = []
    while (one := spool.next_received()) is not None:
        received.append(one[0].id)
    assert len(present(spool)) + len(received) + spool.unreadable >= 30
    assert len(received) >= 9 and set(received) <= {picture.id for picture in pictures}
    assert kept
    spool.close()


@pytest.mark.parametrize("pages", [8, 9])  # a power of two is one bit away from "no commit"
def test_a_flipped_bit_of_the_last_commit_is_noticed(tmp_path: Path, pages: int) -> None:
    killed(tmp_path / "spool", 60)
    log = tmp_path / "spool" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    seal(raw, -1, pages)
    log.write_bytes(raw)
    found = wal.scan(log)
    assert found is not None and not found.damaged
    rng = random.Random(pages)
    for bit in (*range(24 * 8), *(rng.randrange(24 * 8, 4120 * 8) for _ in range(200))):
        flipped = bytearray(raw)
        frame(flipped, -1)[bit // 8] ^= 1 << bit % 8
        log.write_bytes(flipped)
        found = wal.scan(log)
        assert found is not None and found.damaged, bit


def test_an_empty_database_beside_a_full_log_is_recovered(tmp_path: Path) -> None:
    kept, _ = killed(tmp_path / "spool", 60)
    (tmp_path / "spool" / "spool.sqlite3").write_bytes(b"")
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept and spool.unreadable == 0
    spool.close()


@pytest.mark.parametrize("kept", [0, 20])
def test_a_log_that_is_gone_is_known_to_lack_something(tmp_path: Path, kept: int) -> None:
    """It was deleted or emptied, and the process killed before its next operation: the index of the log says so."""
    folder = _killed_after_20_frames(tmp_path)
    log = folder / "spool.sqlite3-wal"
    log.write_bytes(log.read_bytes()[:kept]) if kept else log.unlink()
    assert not check(folder).ok
    spool = Spool(folder)
    assert [complete for _, _, complete in spool.recoveries()] == [False]
    put(spool, new_record(21))
    spool.close()
    again = Spool(folder)
    assert len(again.recoveries()) == 1
    again.close()


@pytest.mark.parametrize("table", ["frames", "originals"])
def test_a_last_number_that_is_the_largest_is_damage(tmp_path: Path, table: str) -> None:
    """SQLite has no number for the next row then, and says that the disk is full."""
    _, kept = closed(tmp_path / "spool", received=2)
    connection = sqlite3.connect(tmp_path / "spool" / "spool.sqlite3")
    with contextlib.closing(connection), connection:
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (2**63 - 1, table))
    spool = Spool(tmp_path / "spool")
    put(spool, new_record(100))
    spool.receive(new_received(100)).result(10)
    assert len(spool.lease(100)) == len(kept) + 1 and spool.received_pictures == 3 and spool.unreadable == 0
    spool.close()
