"""A damaged database, and recoveries that fail: what can be read is kept, what is lost is counted."""

from __future__ import annotations

import dataclasses
import errno
import random
import shutil
import sqlite3
import uuid
from pathlib import Path
from typing import BinaryIO

import pytest

from edge_encoder.errors import IdTaken, SpoolError, SpoolFull
from edge_encoder.spool import schema
from edge_encoder.spool.record import ReceivedPicture, Record, State
from edge_encoder.spool.recovery import recover
from edge_encoder.spool.spool import Spool
from edge_encoder.spool.system import System
from edge_encoder.spool.verification import check
from tests.edge.spool.damaged import closed, killed, present
from tests.support.edge.spooled import new_record, put


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
    schema.create(target)
    found = recover(path, target, tmp_path / "image", System())
    rows = target.execute(f"SELECT record FROM frames WHERE {schema.WAITING}").fetchall()
    records = [Record.parse(record) for (record,) in rows]
    assert all(kept[record.id] == record for record in records) and len(records) == found.frames
    assert found.frames >= 5 and found.received >= 1 and found.frames + found.received + found.lost >= 7
    received = [ReceivedPicture.parse(*row) for row in target.execute("SELECT meta, checked, picture FROM originals")]
    assert all(received in pictures for received in received)
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
        found = spool.next_received()
        assert found is not None and found[0] in pictures
    assert not spool.unreadable
    spool.close()


def test_a_bit_of_a_rows_check_value_refuses_no_repetition(tmp_path: Path) -> None:
    """Neither the frame that replaces its received picture, nor the frame or received picture that is posted again."""
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
    assert present(spool) == {**kept, made.id: made} and spool.received_pictures == 2 and not spool.unreadable
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
    monkeypatch.setattr("edge_encoder.spool.verification.Verification.start", lambda self: None)
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
    while spool.next_received() is not None:
        pass
    found: dict[uuid.UUID, Record] = {}
    while batch := present(spool):
        found |= batch
    assert found == kept and spool.received_pictures == 3
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
    assert present(spool) == kept and spool.received_pictures == 3
    assert spool.oldest_age_seconds() < 60
    put(spool, new_record(100))
    spool.close()
    assert check(tmp_path / "spool").ok


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
