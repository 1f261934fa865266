"""Damage is found, copies are consistent and checked, and a restored store is the one that was copied."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import backup as copies
from cloud_decoder.store.migrate import HEAD
from cloud_decoder.store.schema import frames, tallies
from cloud_decoder.store.store import Store
from tests.support.cli import aeic
from tests.support.frames import NOW, claim, stored_frame


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    opened.frames.add([stored_frame(b"frame %d" % i * 50) for i in range(200)], NOW)
    yield opened
    opened.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    opened.frames.add([stored_frame(b"frame %d" % i * 50) for i in range(200)], NOW)
    yield opened
    opened.close()


def test_a_whole_store_passes(store: Store) -> None:
    report = copies.check(store.url)
    assert report.ok and report.frames == report.bitstreams == 200 and report.revision == HEAD


def test_changed_bytes_are_named(store: Store) -> None:
    (bad,) = store.frames.page("", 1).rows
    with store.database.write() as connection:
        connection.execute(sa.update(frames).where(frames.c.id == bad.id).values(bitstream=b"x"))
    report = copies.check(store.url)
    assert not report.ok and report.damaged == 1 and report.damaged_ids == [str(bad.id)]


def test_damaged_names_and_ids_are_reported_and_a_start_names_the_remedy(local: Store, tmp_path: Path) -> None:
    with local.database.write() as connection:
        connection.exec_driver_sql("UPDATE frames SET id = 'no id at all' WHERE seq = 1")
    report = copies.check(local.url)
    assert not report.ok and "not what was written" in str(report.problems)
    local.close()
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    data[data.index(b"frames_by_source") + 2] ^= 0x80  # text that is not UTF-8 any more
    path.write_bytes(data)
    assert copies.PageCheck(str(path)).run() and not copies.check(local.url).ok
    with pytest.raises(StoreUnavailable, match=r"aeic store check.*aeic store restore"):
        Store(local.url)


def test_wrong_counters_and_garbage_pages_are_found(local: Store, tmp_path: Path) -> None:
    with local.database.write() as connection:
        connection.execute(sa.update(tallies).values(frames=7))
    assert "counters" in str(copies.check(local.url).problems)
    local.close()
    damage(tmp_path / "store.db")
    report = copies.check(local.url)
    assert not report.ok and report.problems
    with pytest.raises(StoreUnavailable, match=r"use an older copy|cannot be copied"):
        copies.backup(local.url, tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for page in range(4, len(raw) // 4096, 3):
        raw[page * 4096 : page * 4096 + 4096] = b"\xa5" * 4096
    path.write_bytes(raw)


def test_a_backup_is_made_while_frames_arrive(local: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            local.frames.add([stored_frame(b"more" * 100) for _ in range(5)], NOW)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [copies.backup(local.url, tmp_path / f"copy{i}.db") for i in range(3)]
    finally:
        stop.set()
        writer.join()
    assert all(report.ok and report.frames >= 200 and report.frames % 5 == 0 for report in reports)
    assert (tmp_path / "copy0.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreUnavailable, match="exists"):
        copies.backup(local.url, tmp_path / "copy0.db")


def test_a_restored_store_is_the_copy_and_the_other_is_kept(local: Store, tmp_path: Path) -> None:
    copies.backup(local.url, tmp_path / "copy.db")
    later = stored_frame(b"later")
    local.frames.add([later], NOW)
    with (tmp_path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="stop it first"):
            copies.restore(local.url, tmp_path / "copy.db")
    report, kept = copies.restore(local.url, tmp_path / "copy.db")  # this process still has the old one open
    assert report.ok and kept is not None
    restored, old = Store(local.url), Store(f"sqlite:///{kept}")
    assert restored.frames.get("", later.id) is None and old.frames.get("", later.id) is not None
    assert len(claim(restored, 300)) == 200
    restored.close()
    old.close()


def test_a_store_is_restored_into_an_empty_folder(local: Store, tmp_path: Path) -> None:
    copies.backup(local.url, tmp_path / "copy.db")
    target = tmp_path / "new"
    target.mkdir()
    (target / "store.db-wal").write_bytes(b"of a database that is gone")
    report, kept = copies.restore(sa.make_url(f"sqlite:///{target / 'store.db'}"), tmp_path / "copy.db")
    assert report.ok and kept is None and not (target / "store.db-wal").exists()
    with pytest.raises(StoreUnavailable, match="cannot be copied"):
        copies.restore(local.url, tmp_path / "missing.db")
    assert (tmp_path / "store.db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_restores_belongs_to_the_service(local: Store, tmp_path: Path) -> None:
    copies.backup(local.url, tmp_path / "copy.db")
    target = tmp_path / "new"
    target.mkdir()
    os.chown(target, 10001, 10002)
    report, _ = copies.restore(sa.make_url(f"sqlite:///{target}/store.db"), tmp_path / "copy.db")
    assert report.ok
    for name in ("store.db", "lock"):
        assert (target / name).stat().st_uid == 10001 and (target / name).stat().st_gid == 10002, name


def test_the_commands(local: Store, tmp_path: Path) -> None:
    url = str(local.url)
    assert json.loads(aeic("store", "check", url)[1])["ok"] is True
    assert json.loads(aeic("store", "backup", url, str(tmp_path / "b.db"))[1])["frames"] == 200
    local.retention.mark(0, keep_bytes=0)
    assert aeic("store", "undelete", url) == (0, "0\n", "")
    assert "the store now trusts" in aeic("store", "accept-clock", url)[1]
    local.close()
    assert json.loads(aeic("store", "restore", url, str(tmp_path / "b.db"))[1])["kept"]
    damage(tmp_path / "store.db")
    code, said, _ = aeic("store", "check", url)
    assert code == 4 and json.loads(said)["ok"] is False
    code, _, said = aeic("store", "backup", "postgresql+psycopg://aeic@127.0.0.1:1/none", str(tmp_path / "c.db"))
    assert code == 1 and "pg_dump" in said
