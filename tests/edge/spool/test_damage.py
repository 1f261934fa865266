"""Damage and interrupted recoveries: what can be read is kept, what is lost is counted, nothing is deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import BinaryIO

import pytest

from aeic_service import wal
from edge_encoder.errors import IdTaken, SpoolError, SpoolFull
from edge_encoder.spool import tables
from edge_encoder.spool.check import check
from edge_encoder.spool.record import Original, Record, State
from edge_encoder.spool.recovery import recover
from edge_encoder.spool.spool import Spool
from edge_encoder.spool.system import System
from edge_encoder.spool.verification import Verification
from tests.support.roots import ROOT
from tests.support.spooled import new_original, new_record, put, state_of

RELEASE = Path(__file__).parent / "data" / "release-0.1"


def killed(folder: Path, records: int = 300, originals: int = 0) -> tuple[dict[uuid.UUID, Record], list[Original]]:
    """The files of a spool whose process was killed, so that its log is full; what it had promised."""
    spool = Spool(folder.with_name("live"))
    kept = {record.id: record for record in (new_record(number) for number in range(records))}
    pictures = [new_original(number, size=9000) for number in range(originals)]
    for record in kept.values():
        put(spool, record)
    for original in pictures:
        spool.receive(original).result(10)
    folder.mkdir()
    for path in folder.with_name("live").glob("spool.sqlite3*"):
        if not path.name.endswith("-shm"):
            shutil.copyfile(path, folder / path.name)
    spool.close()
    return kept, pictures


def present(spool: Spool) -> dict[uuid.UUID, Record]:
    return {record.id: record for record in spool.lease(10_000)}


def test_a_spool_of_the_last_release_opens(tmp_path: Path) -> None:
    """Made by the release 0.1.0 and killed: part of it is in the log only."""
    expected = json.loads((RELEASE / "expected.json").read_text())
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    spool = Spool(folder)
    assert spool.unreadable == 0 and spool.recoveries() == []
    found = spool.next_original()
    assert found is not None and (str(found[0].id), found[1] - 1) in expected["begun"].items()
    originals = {str(found[0].id): hashlib.sha256(found[0].picture).hexdigest()}
    while (found := spool.next_original()) is not None:
        originals[str(found[0].id)] = hashlib.sha256(found[0].picture).hexdigest()
    assert originals == expected["originals"]
    frames = {str(ident): hashlib.sha256(each.data).hexdigest() for ident, each in present(spool).items()}
    assert frames == expected["frames"]
    assert {ident: state_of(spool, uuid.UUID(ident)).name for ident in expected["finished"]} == expected["finished"]
    assert spool.oldest_age_seconds() < 60  # the wall clock of the release says nothing
    for ident in frames:
        assert spool.finish(uuid.UUID(ident), State.DELIVERED).result(10)
    spool.close()
    assert check(folder).ok


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
    originals = []
    while (one := spool.next_original()) is not None:
        originals.append(one[0])
    assert all(kept[ident] == record for ident, record in found.items())
    assert len(found) + len(originals) + spool.unreadable >= 70
    assert len(found) >= 58 and sorted(o.id for o in originals) == sorted(o.id for o in pictures)
    spool.close()


def frame(raw: bytearray, number: int) -> memoryview:
    """Frame `number` of a log, counted from its end if negative."""
    size = 24 + 4096
    start = 32 + number * size if number >= 0 else len(raw) + number * size
    return memoryview(raw)[start : start + size]


def seal(raw: bytearray, number: int, pages: int) -> None:
    """Makes a frame (counted from the end) a whole commit of a database with so many pages."""
    one, before = frame(raw, number), bytes(frame(raw, number - 1)[16:24])
    one[4:8] = pages.to_bytes(4, "big")
    one[16:24] = wal._checksum(before, one[:8], ">" if raw[3] & 1 else "<", one[24:])


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


def test_a_log_cut_off_after_a_commit_is_known_to_lack_something(tmp_path: Path) -> None:
    folder, live = tmp_path / "spool", Spool(tmp_path / "live")
    for number in range(20):
        put(live, new_record(number))
    folder.mkdir()
    for path in (tmp_path / "live").glob("spool.sqlite3*"):
        shutil.copyfile(path, folder / path.name)
    live.close()
    log = folder / "spool.sqlite3-wal"
    log.write_bytes(log.read_bytes()[: -4120 * 8])
    spool = Spool(folder)
    assert [complete for _, _, complete in spool.recoveries()] == [False]
    spool.close()


@pytest.mark.parametrize("kept", [0, 20])
def test_a_log_that_is_gone_is_known_to_lack_something(tmp_path: Path, kept: int) -> None:
    """It was deleted or emptied, and the process killed before its next operation: the index of the log says so."""
    folder, live = tmp_path / "spool", Spool(tmp_path / "live")
    for number in range(20):
        put(live, new_record(number))
    folder.mkdir()
    for path in (tmp_path / "live").glob("spool.sqlite3*"):
        shutil.copyfile(path, folder / path.name)
    live.close()
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
    _, kept = closed(tmp_path / "spool", originals=2)
    connection = sqlite3.connect(tmp_path / "spool" / "spool.sqlite3")
    with contextlib.closing(connection), connection:
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (2**63 - 1, table))
    spool = Spool(tmp_path / "spool")
    put(spool, new_record(100))
    spool.receive(new_original(100)).result(10)
    assert len(spool.lease(100)) == len(kept) + 1 and spool.originals == 3 and spool.unreadable == 0
    spool.close()


def test_a_commit_behind_damage_is_read_without_the_transaction_after_it(tmp_path: Path) -> None:
    """That one is torn: its page of originals refers to pages that were never written."""
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
    originals = []
    while (one := spool.next_original()) is not None:
        originals.append(one[0].id)
    assert len(present(spool)) + len(originals) + spool.unreadable >= 30
    assert len(originals) >= 9 and set(originals) <= {picture.id for picture in pictures}
    assert kept
    spool.close()


def _is_leaf_of_originals(raw: bytearray, start: int) -> bool:
    return raw[start] == 13 and b"mast-7" in raw[start : start + 4096] and b"r1" in raw[start : start + 4096]


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


@pytest.mark.parametrize("name", [b"width INTEGER", b"state = 0", b"TABLE frames", b"INDEX pending", b"seq)"])
def test_a_damaged_schema_is_recovered(tmp_path: Path, name: bytes) -> None:
    """What is no UTF-8 in it raises errors of Python's own, not of SQLite's."""
    kept, _ = killed(tmp_path / "spool", 60)
    Spool(tmp_path / "spool").close()  # moves the log into the database
    path = tmp_path / "spool" / "spool.sqlite3"
    raw = bytearray(path.read_bytes())
    raw[raw.index(name)] ^= 0x80
    path.write_bytes(raw)
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept
    spool.close()


@pytest.mark.parametrize("part", range(24))
def test_a_truncated_database_beside_its_log_is_recovered(tmp_path: Path, part: int) -> None:
    kept, _ = killed(tmp_path / "spool", 120)
    path = tmp_path / "spool" / "spool.sqlite3"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size * part // 24)
    spool = Spool(tmp_path / "spool")
    found = present(spool)
    assert all(kept[ident] == record for ident, record in found.items())
    lost = len(kept) - len(found)
    assert lost <= spool.unreadable or not all(complete for _, _, complete in spool.recoveries())
    put(spool, new_record(1000))
    spool.close()


@pytest.mark.parametrize("column", ["id", "state", "record", "created_ms", "priority", "reason", "meta", "checked"])
@pytest.mark.parametrize("value", [None, b"", "text", -1, 2**63 - 1, 1.5, b"\xff" * 16])
def test_a_broken_row_is_data_and_no_exception(tmp_path: Path, column: str, value: object) -> None:
    kept, pictures = killed(tmp_path / "spool", 6, 2)
    path = tmp_path / "spool" / "spool.sqlite3"
    table = "originals" if column in ("meta", "checked") else "frames"
    for query in (
        "UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '')",  # a damaged page respects none
        f"UPDATE {table} SET {column} = ? WHERE seq = 2",
    ):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(query, (value,) if "?" in query else ())
        connection.close()
    target = sqlite3.connect(":memory:", isolation_level=None)
    tables.create(target)
    found = recover(path, target, tmp_path / "image", System())
    rows = target.execute(f"SELECT record FROM frames WHERE {tables.WAITING}").fetchall()
    records = [Record.parse(record) for (record,) in rows]
    assert all(kept[record.id] == record for record in records) and len(records) == found.frames
    assert found.frames >= 5 and found.originals >= 1 and found.frames + found.originals + found.lost >= 7
    originals = [Original.parse(*row) for row in target.execute("SELECT meta, checked, picture FROM originals")]
    assert all(original in pictures for original in originals)
    target.close()


class Failing(System):
    """Fails the nth file operation with `number`, and every one after it."""

    def __init__(self, at: int, number: int) -> None:
        self.left, self.number, self.begun = at, number, False

    def _count(self) -> None:
        self.left -= self.begun
        if self.begun and self.left < 0:
            raise OSError(self.number, "planned")

    def create(self, path: Path) -> BinaryIO:
        self.begun = True
        self._count()
        return super().create(path)

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        self._count()
        super().write(file, offset, data)

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_recovery_that_fails_at_any_step_is_taken_up_again(tmp_path: Path, number: int) -> None:
    kept, _ = killed(tmp_path / "first", 30)
    log = tmp_path / "first" / "spool.sqlite3-wal"
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 1
    log.write_bytes(raw)
    failures = 0
    for step in range(0, 300, 9):
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(step))
        try:
            Spool(folder, system=Failing(step, number)).close()
        except SpoolError as error:
            failures += 1
            assert isinstance(error, SpoolFull) or "planned" in str(error)
        else:
            break
        spool = Spool(folder)
        found = present(spool)
        assert all(kept[ident] == record for ident, record in found.items()) and len(found) >= 29
        assert spool.pending_frames == len(found)
        spool.close()
    assert failures > 3


def test_what_was_not_fully_recovered_is_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    for number in range(3):
        spool = Spool(folder)
        for index in range(40):
            put(spool, new_record(100 * number + index))
        spool.close()
        path = folder / "spool.sqlite3"
        raw = bytearray(path.read_bytes())
        at = len(raw) // 2 // 4096 * 4096
        raw[at : at + 8192] = random.Random(number).randbytes(8192)
        path.write_bytes(raw)
    spool = Spool(folder)
    assert len(list(folder.glob("spool.sqlite3.damaged-*"))) == 3 and len(spool.recoveries()) == 3
    report = check(folder)
    assert report.in_use and report.ok and len(report.kept) == 3
    assert sum(each["lost"] for each in report.recoveries) > 0
    spool.close()


def test_a_lease_that_fails_half_way_leaves_no_frame_leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    for number in range(5):
        put(spool, new_record(number))
    read, calls = spool._reader.one, 0

    def fails(query: str, values: tuple[object, ...] = ()) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise SpoolError("planned")
        return read(query, values)

    monkeypatch.setattr(spool._reader, "one", fails)
    with pytest.raises(SpoolError, match="planned"):
        spool.lease(5)
    assert len(spool.lease(5)) == 5
    spool.close()


def closed(folder: Path, count: int = 8, originals: int = 0) -> tuple[bytearray, dict[uuid.UUID, Record]]:
    """The file of a spool that was closed, and what it had promised."""
    kept, _ = killed(folder, count, originals)
    Spool(folder).close()  # moves the log into the database
    return bytearray((folder / "spool.sqlite3").read_bytes()), kept


def flip_state(raw: bytearray, number: int) -> None:
    """One bit in the header of row `number` of frames: SPOOLED is DELIVERED then. The record stays whole."""
    at = -1
    for _ in range(number + 1):
        at = raw.index(b"\x00\x2c\x08", at + 1)  # the types of seq, id and state: none, 16 bytes, the constant 0
    raw[at + 2] ^= 1


def test_a_frame_whose_state_has_a_flipped_bit_is_sent(tmp_path: Path) -> None:
    raw, kept = closed(tmp_path / "spool")
    flip_state(raw, 2)
    (tmp_path / "spool" / "spool.sqlite3").write_bytes(raw)
    assert "missing from index" in check(tmp_path / "spool").database
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept and spool.unreadable == 0
    spool.close()


@pytest.mark.parametrize("column", ["arrived_ms", "cost", "priority"])
@pytest.mark.parametrize("table", ["frames", "originals"])
def test_a_number_that_a_flipped_bit_makes_a_text_is_damage(tmp_path: Path, table: str, column: str) -> None:
    kept, pictures = killed(tmp_path / "spool", 6, 2)
    connection = sqlite3.connect(tmp_path / "spool" / "spool.sqlite3", isolation_level=None)
    connection.execute(f"UPDATE {table} SET {column} = '' WHERE seq = (SELECT MIN(seq) FROM {table})")
    connection.close()
    assert "a value in its table" in check(tmp_path / "spool").database
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept
    for _ in pictures:
        found = spool.next_original()
        assert found is not None and found[0] in pictures
    assert not spool.unreadable
    spool.close()


def test_a_bit_of_a_rows_check_value_refuses_no_repetition(tmp_path: Path) -> None:
    """Neither the frame that replaces its original, nor the frame or original that is posted again."""
    kept, pictures = killed(tmp_path / "spool", 3, 3)
    connection = sqlite3.connect(tmp_path / "spool" / "spool.sqlite3", isolation_level=None)
    connection.execute("UPDATE frames SET picture_crc = (picture_crc + 1) % 4294967296 WHERE seq = 2")
    connection.execute("UPDATE originals SET picture_crc = (picture_crc + 1) % 4294967296 WHERE seq IN (2, 3)")
    connection.close()
    spool = Spool(tmp_path / "spool")
    posted = list(kept.values())[1]
    assert spool.put(posted).result(10).id == posted.id
    assert spool.receive(pictures[2]).result(10).state is State.RECEIVED
    made = dataclasses.replace(posted, id=pictures[1].id, picture_crc=pictures[1].picture_crc)
    assert spool.put(made).result(10).state is State.SPOOLED
    assert present(spool) == {**kept, made.id: made} and spool.originals == 2 and not spool.unreadable
    with pytest.raises(IdTaken):
        put(spool, dataclasses.replace(made, picture_crc=made.picture_crc ^ 1))
    spool.close()


def test_a_bit_of_an_id_hides_no_frame(tmp_path: Path) -> None:
    """One in the row, which its id does not find then, and one in the index."""
    raw, kept = closed(tmp_path / "spool")
    ident = next(iter(kept)).bytes
    places = [at for at in range(len(raw)) if raw.startswith(ident, at)]
    assert len(places) == 3  # in the index, the row and the record
    for number, at in enumerate(places):
        damaged, folder = bytearray(raw), tmp_path / f"{number}"
        damaged[at + 7] ^= 8
        folder.mkdir()
        (folder / "spool.sqlite3").write_bytes(damaged)
        spool = Spool(folder)
        found = present(spool)
        assert found == kept or (len(found) == len(kept) - 1 and spool.unreadable == 1)
        spool.close()


@pytest.mark.parametrize("table", ["frames", "originals"])
def test_a_row_that_its_id_does_not_find_is_repaired_while_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A file that is too large to be verified at start, before it is verified in the background."""
    monkeypatch.setattr(Verification, "start", lambda self: None)
    raw, kept = closed(tmp_path / "spool", 8, 3)
    path = tmp_path / "spool" / "spool.sqlite3"
    with sqlite3.connect(path) as connection:
        (ident,) = connection.execute(f"SELECT id FROM {table} WHERE seq = 2").fetchone()
    connection.close()
    raw[raw.index(ident) + 7] ^= 8  # the first is that of the index
    path.write_bytes(raw)
    monkeypatch.setattr("edge_encoder.spool.database._CHECKED_AT_START_BYTES", 0)
    spool = Spool(tmp_path / "spool")
    assert spool.recoveries() == []
    while spool.next_original() is not None:
        pass
    found: dict[uuid.UUID, Record] = {}
    while batch := present(spool):
        found |= batch
    assert found == kept and spool.originals == 3
    assert [(lost, complete) for _, lost, complete in spool.recoveries()] == [(0, True)]
    spool.close()


def test_a_frame_finished_between_two_reads_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    records = [new_record(number) for number in range(3)]
    for record in records:
        put(spool, record)
    read = spool._reader.one

    def finishes_first(query: str, values: tuple[object, ...] = ()) -> object:
        if values == (records[1].id.bytes,):
            spool.finish(records[1].id, State.DELIVERED).result(10)
        return read(query, values)

    monkeypatch.setattr(spool._reader, "one", finishes_first)
    assert [record.id for record in spool.lease(5)] == [records[0].id, records[2].id]
    assert spool.recoveries() == []
    spool.close()


@pytest.mark.parametrize(
    "name", [b"boot_id", b"spool_ms", b"lost", b"count", b"reason TEXT", b"meta BLOB", b"clock (\n"]
)
def test_a_column_that_a_flipped_bit_renames_is_recovered(tmp_path: Path, name: bytes) -> None:
    raw, kept = closed(tmp_path / "spool", 8, 3)
    raw[raw.index(name)] ^= 1
    (tmp_path / "spool" / "spool.sqlite3").write_bytes(raw)
    spool = Spool(tmp_path / "spool")
    assert present(spool) == kept and spool.originals == 3
    assert spool.oldest_age_seconds() < 60
    put(spool, new_record(100))
    spool.close()
    assert check(tmp_path / "spool").ok


@pytest.mark.parametrize("clean", [True, False])
def test_a_spool_that_appears_at_the_path_is_taken_over(tmp_path: Path, clean: bool) -> None:
    """A disk that is mounted over the folder after the start; one that lost power has a full log."""
    kept, pictures = killed(tmp_path / "disk", 60, 3)
    if clean:
        Spool(tmp_path / "disk").close()
    spool = Spool(tmp_path / "data")
    early, both, late = new_record(100), next(iter(kept.values())), new_record(101)
    put(spool, early)
    put(spool, both)
    assert spool.finish(both.id, State.DELIVERED).result(10)
    (tmp_path / "data").rename(tmp_path / "below")
    (tmp_path / "disk").rename(tmp_path / "data")
    put(spool, late)
    del kept[both.id]
    assert present(spool) == kept | {early.id: early, late.id: late}
    assert state_of(spool, both.id) is State.DELIVERED
    assert spool.originals == len(pictures) and spool.unreadable == 0
    assert spool.oldest_age_seconds() < 60
    spool.close()
    assert check(tmp_path / "data").ok


def test_a_spool_that_replaces_the_file_beside_its_log_is_taken_over(tmp_path: Path) -> None:
    """The log is that of the file that was there before; it hides the tables of the other."""
    kept, pictures = killed(tmp_path / "other", 20, 3)
    Spool(tmp_path / "other").close()
    spool = Spool(tmp_path / "data")
    (tmp_path / "other" / "spool.sqlite3").rename(tmp_path / "data" / "spool.sqlite3")
    late = new_record(100)
    put(spool, late)
    assert present(spool) == kept | {late.id: late} and spool.originals == len(pictures)
    spool.close()


def test_a_foreign_file_at_the_path_is_kept(tmp_path: Path) -> None:
    content = b"no spool at all " * 1000
    spool = Spool(tmp_path / "data")
    records = [new_record(number) for number in range(3)]
    for record in records[:2]:
        put(spool, record)
    (tmp_path / "foreign").write_bytes(content)
    (tmp_path / "foreign").rename(tmp_path / "data" / "spool.sqlite3")
    put(spool, records[2])
    assert present(spool) == {record.id: record for record in records}
    assert [(tmp_path / "data" / name).read_bytes() for name in spool.damaged_files()] == [content]
    spool.close()


def test_a_file_deleted_while_in_use_is_written_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [new_record(number) for number in range(20)]
    for record in records[:10]:
        put(spool, record)
    for path in tmp_path.iterdir():
        path.unlink()
    assert spool.misplaced()
    for record in records[10:]:
        put(spool, record)
    assert not spool.misplaced() and check(tmp_path).ok
    with pytest.raises(SpoolError, match="another edge"):
        Spool(tmp_path)
    spool.close()
    spool = Spool(tmp_path)
    assert present(spool) == {record.id: record for record in records}
    spool.close()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_log_deleted_while_in_use_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    spool = Spool(tmp_path / "live")
    records = [new_record(number) for number in range(20)]
    for record in records[:10]:
        put(spool, record)
    log = tmp_path / "live" / "spool.sqlite3-wal"
    log.unlink()
    if replaced:
        log.write_bytes(b"")
    assert spool.misplaced()
    for record in records[10:]:
        put(spool, record)
    assert not spool.misplaced()
    killed_now = shutil.copytree(tmp_path / "live", tmp_path / "killed")
    spool.close()
    spool = Spool(killed_now)
    assert present(spool) == {record.id: record for record in records} and spool.unreadable == 0
    spool.close()


def test_a_rebuild_that_fails_ends_nothing_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    put(spool, new_record(1))
    for error in OSError(errno.EIO, "planned"), sqlite3.OperationalError("planned"):
        with monkeypatch.context() as patch:

            def fails(*_: object, error: Exception = error, **__: object) -> None:
                raise error

            patch.setattr("edge_encoder.spool.database.open_spool", fails)
            spool._writer._reopen(damaged=True)
            with pytest.raises(SpoolError, match="planned"):
                put(spool, new_record(2))
            assert spool.alive and "planned" in spool.problem
            with pytest.raises(SpoolError):
                spool.probe().result(5)
            with pytest.raises(SpoolError):
                spool.get(uuid.uuid4())
        spool._writer._retry_at = 0.0
        put(spool, new_record(3))
        spool.probe().result(5)
        assert spool.problem == ""
    assert spool.pending_frames == 3
    spool.close()


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    for path in folder.iterdir():
        path.chmod(0o644)
    spool = Spool(folder)
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite3*")}
    assert len(modes) == 3 and not any(modes.values())
    spool.close()
    fresh = Spool(tmp_path / "new" / "folder")
    assert not (tmp_path / "new" / "folder").stat().st_mode & 0o077
    assert not any(path.stat().st_mode & 0o077 for path in (tmp_path / "new" / "folder").glob("spool.sqlite3*"))
    fresh.close()


def test_spool_check_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aeic_tools.cli", "spool", "check"]

    def run(folder: Path) -> tuple[int, dict[str, object]]:
        done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    code, nothing = run(tmp_path)
    assert code == 1 and "there is no spool" in str(nothing["error"])
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, report = run(folder)
    assert code == 0 and (report["frames"], report["originals"], report["unreadable"]) == (5, 2, 0)
    assert {name: (folder / name).read_bytes() for name in before} == before
    raw = bytearray(before["spool.sqlite3-wal"])
    raw[5000] ^= 1
    (folder / "spool.sqlite3-wal").write_bytes(raw)
    code, report = run(folder)
    assert code == 4 and not report["ok"] and "damaged" in str(report["log"])
