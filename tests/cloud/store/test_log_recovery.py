"""A damaged log of an SQLite store loses no frame that was acknowledged, or says that it has."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import make_url

from aeic_service import wal
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import log_recovery
from cloud_decoder.store.backup import check
from cloud_decoder.store.log_recovery import set_aside
from cloud_decoder.store.records import DecodeResult, FrameState
from cloud_decoder.store.store import Store
from tests.support.frames import NOW, claim, stored_frame

FRAMES = 90  # fewer than the pages of the log that SQLite moves into the database by itself
ERASED = UUID(int=3)
KILLED = f"""
import os, signal, sys
from uuid import UUID
from cloud_decoder.store.store import Store
from tests.support.frames import NOW, stored_frame

store = Store(f"sqlite:///{{sys.argv[1]}}/store.db")
for number in range({FRAMES}):
    store.frames.add([stored_frame(b"frame %d" % number * 50, UUID(int=number))], NOW + number)
store.retention.delete("", UUID(int={ERASED.int}), int(NOW * 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store whose process was killed: its last commits are in the log only."""
    folder = tmp_path_factory.mktemp("killed")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert ended.returncode == -signal.SIGKILL
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "data")
    return tmp_path / "data"


def opened(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'store.db'}")


def flip(folder: Path, part: float) -> None:
    """Flips a bit of a page, that far into the log."""
    path = folder / "store.db-wal"
    raw = bytearray(path.read_bytes())
    raw[32 + int(part * (len(raw) // 4120)) * 4120 + 24 + 1000] ^= 1
    path.write_bytes(raw)


def lost(store: Store) -> set[int]:
    found = {number for number in range(FRAMES) if store.frames.get("", UUID(int=number)) is not None}
    return set(range(FRAMES)) - found


def test_a_whole_log_is_used_as_it_is(folder: Path) -> None:
    store = opened(folder)
    assert (lost(store), store.log_problem) == (set(), "")
    store.close()
    assert [path.name for path in folder.iterdir()] == ["store.db"]


@pytest.mark.parametrize("part", [0.02, 0.3])
def test_a_flipped_bit_in_the_log_loses_no_later_frame(folder: Path, part: float) -> None:
    flip(folder, part)
    store = opened(folder)
    assert lost(store) == set()
    assert "frames were put back, 0 are lost" in store.log_problem
    row = store.frames.get("", UUID(int=FRAMES - 1))
    assert row is not None and row.state is FrameState.RECEIVED
    assert row.received_ms == int((NOW + FRAMES - 1) * 1000)
    erased = store.frames.get("", ERASED)
    assert erased is not None and erased.erased  # a deletion was acknowledged too
    assert len(claim(store, limit=2 * FRAMES)) == FRAMES - 1
    store.close()
    kept = {path.name.partition("Z")[2] for path in folder.glob("store.db.damaged-*")}
    assert kept == {"", ".log"}
    again = opened(folder)
    assert (lost(again), again.log_problem) == (set(), "")
    again.close()


def test_a_damaged_log_that_the_database_has_is_left_out(tmp_path: Path) -> None:
    """SQLite would put its older pages in the place of the newer ones in the database."""
    store = opened(tmp_path)
    for number in range(20):
        store.frames.add([stored_frame(b"frame %d" % number * 50, UUID(int=number))], NOW)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        shutil.copytree(tmp_path, tmp_path / "data")
    store.close()
    flip(tmp_path / "data", 0.4)
    again = opened(tmp_path / "data")
    assert not {number for number in range(20) if again.frames.get("", UUID(int=number)) is None}
    assert len(claim(again, 100)) == 20 and again.log_problem == ""
    again.close()


@pytest.fixture(scope="module")
def half_moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store whose process was killed when a checkpoint had moved half of the log into the database."""
    folder = tmp_path_factory.mktemp("half_moved")
    Store(f"sqlite:///{folder / 'store.db'}").close()
    store = opened(folder)
    for number in range(400, 800):  # more pages than a later transaction changes
        store.frames.add([stored_frame(b"frame %d" % number * 50, UUID(int=number * 7919 % 1000 << 100))], NOW)
    store.close()
    store = opened(folder)
    with contextlib.closing(sqlite3.connect(folder / "store.db")) as reader:
        for number in range(FRAMES // 2):
            if number == FRAMES // 4:
                reader.execute("BEGIN")
                reader.execute("SELECT COUNT(*) FROM frames").fetchone()
            store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store)], NOW)
            store.frames.add([stored_frame(b"frame %d" % number * 50, UUID(int=number))], NOW + number)
        with contextlib.closing(sqlite3.connect(folder / "store.db")) as connection:
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert 0.3 < moved / pages < 0.7
        shutil.copytree(folder, folder / "killed")
    store.close()
    return folder / "killed"


@pytest.mark.parametrize("part", [0.02, 0.2, 0.8])
def test_a_damaged_log_of_which_the_database_has_a_part(half_moved: Path, tmp_path: Path, part: float) -> None:
    """A store that is put together of older and newer pages is damaged."""
    folder = Path(shutil.copytree(half_moved, tmp_path / "data"))
    flip(folder, part)
    store = opened(folder)
    assert {number for number in lost(store) if number < FRAMES // 2} == set()
    store.close()
    assert check(make_url(f"sqlite:///{folder / 'store.db'}")).ok


@pytest.mark.parametrize("step", ["sync", "set_moved", "rename", "unlink"])
def test_a_checkpoint_of_a_damaged_log_is_taken_up_again(
    half_moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = Path(shutil.copytree(half_moved, tmp_path / "data"))
    flip(folder, 0.2)
    with monkeypatch.context() as patched:
        where = {"sync": log_recovery, "set_moved": wal}.get(step, Path)
        patched.setattr(where, step, _stopped)
        with pytest.raises(StoreUnavailable):
            log_recovery.set_aside(folder / "store.db")
    store = opened(folder)
    assert {number for number in lost(store) if number < FRAMES // 2} == set() and store.log_problem == ""
    store.close()
    assert check(make_url(f"sqlite:///{folder / 'store.db'}")).ok


def test_frames_that_are_gone_are_counted(folder: Path) -> None:
    path = folder / "store.db-wal"
    raw = bytearray(path.read_bytes())
    begin = raw.find(b"frame 80" * 3)  # everywhere the page that has it occurs
    while begin >= 0:
        raw[begin] ^= 0xFF
        begin = raw.find(b"frame 80" * 3, begin)
    path.write_bytes(raw)
    store = opened(folder)
    gone = lost(store)
    assert 80 in gone
    assert f"{len(gone)} are lost" in store.log_problem
    store.close()


@pytest.mark.parametrize("kept", [0, 20])
def test_a_log_that_is_gone_is_reported(folder: Path, kept: int) -> None:
    path = folder / "store.db-wal"
    path.write_bytes(path.read_bytes()[:kept]) if kept else path.unlink()
    store = opened(folder)
    assert "is missing, and with it the last commits" in store.log_problem
    store.close()
    again = opened(folder)
    assert again.log_problem == ""
    again.close()


def test_an_empty_file_beside_a_full_log_is_refused(folder: Path) -> None:
    (folder / "store.db").write_bytes(b"")
    log = (folder / "store.db-wal").read_bytes()
    with pytest.raises(StoreUnavailable, match="restore a backup"):
        opened(folder)
    assert (folder / "store.db-wal").read_bytes() == log


def test_an_interrupted_recovery_is_taken_up_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(folder, 0.2)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", _full_disk)  # before anything is saved
        with pytest.raises(StoreUnavailable, match="make room"):
            opened(folder)
    with monkeypatch.context() as patched:
        patched.setattr(log_recovery, "put_back", _stopped)  # after SQLite has discarded the rest of the log
        with pytest.raises(InterruptedError):
            opened(folder)
    store = opened(folder)
    assert lost(store) == set()
    assert ", 0 are lost" in store.log_problem
    store.close()


def test_a_store_in_use_is_left_alone(folder: Path) -> None:
    """As by `aeic store requeue` while the cloud runs: its log changes all the time."""
    store = opened(folder)
    store.frames.add([stored_frame(b"one more")], NOW)
    assert in_use_elsewhere(folder)
    store.close()


def test_a_second_opening_in_the_same_process_leaves_the_locks_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that closes any file descriptor of a file drops all its locks on that file, also SQLite's."""
    store = opened(folder)
    monkeypatch.chdir(folder)
    again = Store("sqlite:///store.db")
    check(make_url(f"sqlite:///{folder / 'store.db'}"))
    assert in_use_elsewhere(folder)
    again.close()
    store.close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_store_that_may_only_be_read_can_be_checked(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real: Any = Path.open

    def refuse(self: Path, mode: str = "r", *arguments: int) -> object:
        if "+" in mode:
            raise OSError(code, "refused")
        return real(self, mode, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    assert check(make_url(f"sqlite:///{folder / 'store.db'}")).ok


def test_two_processes_put_the_same_frames_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(folder, 0.2)
    kept, exists = folder / "store.db.salvage", Path.exists

    def exists_no_longer(self: Path) -> bool:
        found = exists(self)
        if found and self == kept:  # right after this call, the other process has done it
            kept.rename(folder / "store.db.damaged-by-the-other")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(log_recovery, "set_aside", lambda path: _set_aside(path, patched, exists_no_longer))
        store = opened(folder)
    assert store.log_problem == "" and not kept.exists()
    store.close()


def test_saved_frames_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "store.db.salvage").write_bytes(b"no database")
    with pytest.raises(StoreUnavailable, match=r"store\.db\.salvage, .* move it away"):
        opened(folder)


def in_use_elsewhere(folder: Path) -> bool:
    """Whether another process sees that the store is in use."""
    code = "import sys; from pathlib import Path; from cloud_decoder.store import log_recovery as recovery;"
    code += "print(recovery._in_use(Path(sys.argv[1])))"
    seen = subprocess.run(
        [sys.executable, "-c", code, str(folder / "store.db")], check=True, capture_output=True, text=True
    )
    return seen.stdout.strip() == "True"


@pytest.mark.parametrize("number", [2**63 - 1, "text"])
def test_a_last_number_that_no_row_can_follow_is_corrected(tmp_path: Path, number: object) -> None:
    """SQLite says that the disk is full then."""
    store = opened(tmp_path)
    store.frames.add([stored_frame(b"first")], NOW)
    store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    with contextlib.closing(connection), connection:
        connection.execute("UPDATE sqlite_sequence SET seq = ?", (number,))
    again = opened(tmp_path)
    again.frames.add([stored_frame(b"second")], NOW)
    assert sum(again.frames.counts().values()) == 2
    again.close()


def test_the_check_sees_a_damaged_log(folder: Path) -> None:
    flip(folder, 0.2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = check(make_url(f"sqlite:///{folder / 'store.db'}"))
    assert not report.ok and "log is damaged" in report.problems[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _set_aside(path: Path, patch: pytest.MonkeyPatch, exists: Callable[[Path], bool]) -> str:
    found = set_aside(path)
    patch.setattr(Path, "exists", exists)
    return found


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _stopped(*_: object) -> str:
    raise InterruptedError
