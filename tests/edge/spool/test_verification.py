"""A large spool is verified in the background, and repaired where that finds damage."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from edge_encoder.spool import database
from edge_encoder.spool.record import State
from edge_encoder.spool.spool import Spool
from edge_encoder.spool.verification import Verified
from edge_encoder.spool.writer import Op
from tests.support.edge.spooled import new_record, put
from tests.support.waiting import wait_until


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every spool counts as large."""
    monkeypatch.setattr(database, "_CHECKED_AT_START_BYTES", 0)


def filled(folder: Path, count: int = 8) -> None:
    spool = Spool(folder)
    for number in range(count):
        put(spool, new_record(number))
    spool.close()


def hide(folder: Path) -> None:
    """One bit: the state of a frame is DELIVERED then, but its record and the index still say that it waits."""
    path = folder / "spool.sqlite3"
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"\x00\x2c\x08") + 2] ^= 1  # the types of seq, id and state: none, 16 bytes, the constant 0
    path.write_bytes(raw)


def test_a_small_spool_is_verified_when_it_is_opened(tmp_path: Path) -> None:
    filled(tmp_path)
    spool = Spool(tmp_path)
    assert spool.verified is Verified.OK
    spool.close()


@pytest.mark.usefixtures("large")
def test_a_large_spool_is_verified_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    check, go = database.check, threading.Event()
    monkeypatch.setattr(database, "check", lambda connection: (go.wait(20), check(connection)))
    spool = Spool(tmp_path)
    assert spool.verified is Verified.RUNNING
    put(spool, new_record(100))  # it works meanwhile
    go.set()
    wait_until(lambda: spool.verified is Verified.OK)
    spool.close()


@pytest.mark.usefixtures("large")
def test_a_frame_hidden_by_damage_of_a_large_spool_is_sent(tmp_path: Path) -> None:
    filled(tmp_path)
    hide(tmp_path)
    spool = Spool(tmp_path)
    wait_until(lambda: spool.verified is not Verified.RUNNING)
    assert spool.verified is Verified.REPAIRED and len(spool.recoveries()) == 1
    assert len(spool.lease(100)) == 8 and spool.unreadable == 0
    spool.close()


@pytest.mark.usefixtures("large")
def test_a_file_that_was_repaired_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    hide(tmp_path)
    check, go = database.check, threading.Event()

    def check_later(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()  # the damaged file is open now
        assert go.wait(20)
        check(connection)

    monkeypatch.setattr(database, "check", check_later)
    spool = Spool(tmp_path)
    spool._writer.submit(Op(check)).result(20)  # as an operation that meets the damage
    assert len(spool.recoveries()) == 1
    go.set()
    wait_until(lambda: spool.verified is Verified.REPAIRED)
    assert len(spool.recoveries()) == 1 and len(spool.lease(100)) == 8
    spool.close()


@pytest.mark.usefixtures("large")
def test_a_verification_delays_no_delivery_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's log is written back after each commit then, which has to wait for those who read it."""
    filled(tmp_path)
    reading, go = threading.Event(), threading.Event()

    def read(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        connection.execute("SELECT COUNT(*) FROM frames").fetchone()
        reading.set()
        assert go.wait(60)

    monkeypatch.setattr(database, "check", read)
    spool = Spool(tmp_path)
    assert reading.wait(20)
    monkeypatch.setattr(spool._reserve, "make", lambda: False)
    spool._reserve.spend()
    for record in spool.lease(2):
        assert spool.finish(record.id, State.DELIVERED).result(10)  # the busy timeout is 30 seconds
    go.set()
    spool.close()


@pytest.mark.usefixtures("large")
def test_a_spool_that_is_closed_does_not_wait_for_its_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    monkeypatch.setattr(database, "check", lambda connection: connection.execute(endless).fetchone())
    spool = Spool(tmp_path)
    spool.close()
    assert spool.verified is not Verified.OK
