"""What is still in a damaged log of an SQLite store, and how it gets back into the store.

SQLite takes the first part of its log that does not verify for the end of the log, and discards what follows: after one
flipped bit, every later commit, without a word. So the log is read before SQLite opens the store (aeic_service/wal.py):

    store.db, -wal (damaged) --set_aside()--> .salvage: the frames behind the damage, and a copy of the log
                                                  |
    store.db (opened by SQLite) <--put_back()-----+--> .damaged-TIME, which nothing here deletes

Damage in what a checkpoint has moved into the database already loses nothing: the rest of the log is moved too.

Both steps can be interrupted and are taken up again by the next start. A frame that is put back counts as one that has
just arrived: it keeps its time of arrival and is decoded again. Deletions by clients are repeated. Leases, results and
requests in that part of the log are given up: nothing depends on them, or they end by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeic_service import wal
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.database import is_open
from cloud_decoder.store.frames import Frames
from cloud_decoder.store.records import DeletedBy, FrameState, NewFrame
from cloud_decoder.store.retention import Retention

log = logging.getLogger(__name__)

_COLUMNS = tuple(NewFrame.__dataclass_fields__)
_NUMBERS = {"captured_ms", "priority", "width", "height", "rate", "wanted", "received_ms"}
_IN_USE_BYTE = 128
"""Of SQLite's index of the log: every connection holds a lock on it (UNIX_SHM_DMS in SQLite's os_unix.c)."""
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_BASE = "SELECT COALESCE(MAX(seq), 0) FROM frames"
_BY_INDEX = "SELECT seq FROM frames INDEXED BY frames_by_arrival WHERE seq > ?"
_BY_TABLE = "SELECT seq FROM frames WHERE seq > ? ORDER BY seq"
_FOUND_BY_ID = "SELECT seq FROM frames WHERE tenant = ? AND id = ?"
_ERASED = f"SELECT tenant, id FROM frames WHERE deleted_ms IS NOT NULL AND deleted_by = '{DeletedBy.CLIENT.value}'"


@dataclass
class _Salvage:
    """``frames`` by their number in the damaged store, ``known`` the numbers that its index has, ``erased`` those that
    clients had deleted, by tenant and id."""

    frames: dict[int, dict[str, Any]] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    erased: set[tuple[str, str]] = field(default_factory=set)

    @property
    def lost(self) -> int:
        return len(self.known - set(self.frames))


def set_aside(path: Path) -> str:
    """Before SQLite opens the store at ``path``: saves what it would discard of a damaged log. What an operator should
    know of a log that is gone; empty if all is well.

    Does nothing while the store is in use. ``StoreUnavailable`` where the log of a file that is empty holds
    commits, and where the disk has no room.
    """
    log_path = path.with_name(path.name + "-wal")
    try:
        if _in_use(path):
            return ""
        if wal.is_missing(log_path):
            text = f"the log {log_path} is missing, and with it the last commits: compare with a backup"
            log.critical("%s", text)
            return text
        found = wal.scan(log_path)
        if found is None:
            return ""
        empty = not path.exists() or not path.stat().st_size
        if found.committed and empty:
            raise StoreUnavailable(
                f"{path} is empty, and its log is not: restore a backup with 'aeic store restore', or move {log_path}"
                " away to start with an empty store"
            )
        rest = wal.unmoved(log_path, found) if found.damaged and not empty else None
        if rest is not None:
            _finish_checkpoint(path, log_path, found, rest)
        elif found.damaged and not _part(path, ".salvage").exists():
            _salvage(path, log_path, found)
    except OSError as error:
        raise StoreUnavailable(
            f"the damaged log {log_path} cannot be saved ({error}): make room on its disk"
        ) from error
    return ""


def problem(path: Path) -> str:
    """What is wrong with the log of the store at ``path``, for people; empty if nothing is, or if the store is in use.
    Changes nothing."""
    log_path = path.with_name(path.name + "-wal")
    if _in_use(path):
        return ""
    if wal.is_missing(log_path):
        return "its log is missing, and with it the last commits"
    found = wal.scan(log_path)
    if found is not None and found.damaged:
        return "its log is damaged: the next start of the service puts back the frames that are whole"
    return ""


def put_back(path: Path, stored: Frames, retention: Retention, clock: Callable[[], float]) -> str:
    """After SQLite has opened the store: adds what :func:`set_aside` has saved. What an operator should know of it."""
    kept = _part(path, ".salvage")
    if not kept.exists():
        return ""
    try:
        with contextlib.closing(_open(kept)) as saved:
            rows = saved.execute("SELECT * FROM frames ORDER BY seq").fetchall()
            erased = saved.execute("SELECT tenant, id FROM erased").fetchall()
            (lost,) = saved.execute("SELECT lost FROM summary").fetchone()
    except sqlite3.Error as error:
        if not kept.exists():  # another process was faster
            return ""
        raise StoreUnavailable(
            f"{kept}, which was saved from a damaged log, cannot be read ({error}): move it away"
        ) from error
    for row in rows:
        values = {name: row[name] for name in _COLUMNS} | {"id": uuid.UUID(row["id"]), "wanted": bool(row["wanted"])}
        stored.add([NewFrame(**values)], clock(), received=row["received_ms"] / 1000)
    for tenant, id in erased:
        frame = stored.get(tenant, uuid.UUID(id))
        if frame is not None and not frame.erased:
            retention.delete(tenant, frame.id, int(clock() * 1000))
    name = f".damaged-{_now()}"
    for suffix in (".log", ""):
        with contextlib.suppress(FileNotFoundError):
            _part(path, ".salvage" + suffix).rename(_part(path, name + suffix))
    text = f"the log of the store was damaged: {len(rows)} frames were put back, {lost} are lost; see {path.name}{name}"
    log.critical("%s", text)
    return text if rows or lost else ""


def _finish_checkpoint(path: Path, log_path: Path, found: wal.Log, rest: list[tuple[int, int]]) -> None:
    """Moves the rest of the log into the database, which has the damaged part of it already, and puts the log aside."""
    _apply(log_path, found, rest, path)
    sync(path)
    wal.set_moved(log_path)  # so that an interruption after the next step does not look like a lost log
    log_path.rename(_part(path, f".damaged-{_now()}.log"))
    sync(path.parent)
    _part(path, "-shm").unlink()
    log.error("the log %s is damaged; the database already has all of it, so it is ignored", log_path)


def _salvage(path: Path, log_path: Path, found: wal.Log) -> None:
    """Reads the part of the log that SQLite would discard, and saves it."""
    image, unfinished = _part(path, ".image"), _part(path, ".salvaging")
    salvage = _Salvage()
    try:
        shutil.copyfile(path, image)
        _apply(log_path, found, found.committed, image)
        base = _base(image)
        for pages in filter(None, found.behind):
            _apply(log_path, found, pages, image)
            _read(image, base, salvage, promised=True)
        # Half of a transaction that was never acknowledged may be among these, and pages in which a bit has changed.
        # A frame counts only if it is whole.
        tail = [(_number(log_path, offset), offset) for offset in found.tail]
        for pages in filter(None, (found.uncommitted, [page for page in tail if 0 < page[0] <= found.pages])):
            _apply(log_path, found, pages, image)
            _read(image, base, salvage, promised=False)
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(unfinished)) as target:
            _save(target, salvage)
        copy = _part(path, ".salvage.log")  # not -wal, which SQLite would take for the log of .salvage
        shutil.copyfile(log_path, copy)
        os.chmod(copy, 0o600)
        sync(copy)
        sync(unfinished)
        unfinished.rename(_part(path, ".salvage"))
        sync(path.parent)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the damaged log {log_path} cannot be saved ({error}): look at its disk") from error
    finally:
        image.unlink(missing_ok=True)
    log.error("the log %s is damaged; %d frames after the damage are intact", log_path, len(salvage.frames))


def _base(image: Path) -> int:
    """The last number that SQLite will find."""
    with contextlib.closing(_open(image)) as source, contextlib.suppress(*_UNREADABLE):
        return int(source.execute(_BASE).fetchone()[0])
    return 0


def _read(image: Path, base: int, salvage: _Salvage, *, promised: bool) -> None:
    with contextlib.closing(_open(image)) as source:
        present = _columns(source)
        names = ", ".join([*(name for name in _COLUMNS if name in present), "received_ms", "state"])
        known = set(_values(source, _BY_INDEX, base)) | set(_values(source, _BY_TABLE, base))
        if promised:
            salvage.known |= known
        for seq in sorted(known - set(salvage.frames)):
            with contextlib.suppress(*_UNREADABLE):
                row = source.execute(f"SELECT {names} FROM frames WHERE seq = ?", (seq,)).fetchone()
                if row is None:
                    continue
                if row["state"] == FrameState.PRUNED.value:
                    salvage.known.discard(seq)
                elif _is_whole(row) and [seq] == list(_values(source, _FOUND_BY_ID, row["tenant"], row["id"])):
                    salvage.frames[seq] = dict(row)
        with contextlib.suppress(*_UNREADABLE):
            salvage.erased |= {(str(row[0]), str(row[1])) for row in source.execute(_ERASED)}


def _is_whole(row: sqlite3.Row) -> bool:
    """Whether a row is what was stored, as far as its digest and the types of its values say."""
    numbers = all(isinstance(row[name], int) for name in _NUMBERS)
    return (
        numbers
        and isinstance(row["bitstream"], bytes)
        and hashlib.sha256(row["bitstream"]).hexdigest() == row["digest"]
    )


def _save(target: sqlite3.Connection, salvage: _Salvage) -> None:
    names = [*_COLUMNS, "received_ms"]
    target.execute(f"CREATE TABLE frames (seq INTEGER PRIMARY KEY, {', '.join(names)})")
    target.execute("CREATE TABLE erased (tenant, id)")
    target.execute("CREATE TABLE summary (lost INTEGER)")
    target.executemany(
        f"INSERT INTO frames VALUES ({', '.join('?' * (len(names) + 1))})",
        ((seq, *(row.get(name) for name in names)) for seq, row in salvage.frames.items()),
    )
    target.executemany("INSERT INTO erased VALUES (?, ?)", sorted(salvage.erased))
    target.execute("INSERT INTO summary VALUES (?)", (salvage.lost,))
    target.commit()


def _apply(log_path: Path, found: wal.Log, pages: Iterable[tuple[int, int]], image: Path) -> None:
    """Writes pages of the log into the image or the database."""
    with log_path.open("rb") as source, image.open("r+b") as file:
        for number, offset in pages:
            source.seek(offset)
            file.seek((number - 1) * found.page_size)
            file.write(source.read(found.page_size))
        if file.seek(0, os.SEEK_END) < found.pages * found.page_size:
            file.truncate(found.pages * found.page_size)  # SQLite opens no database that is shorter than it says


def _number(log_path: Path, offset: int) -> int:
    """The page of the database that a frame of the log holds, whose content is at ``offset``."""
    with log_path.open("rb") as file:
        file.seek(offset - wal.FRAME_BYTES)
        return int.from_bytes(file.read(4), "big")


def _open(image: Path) -> sqlite3.Connection:
    """For reading; creates no file."""
    connection = sqlite3.connect(f"{image.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def _columns(source: sqlite3.Connection) -> set[str]:
    """Those of the frames; a store of an earlier release has fewer."""
    with contextlib.suppress(*_UNREADABLE):
        return {str(row[1]) for row in source.execute("PRAGMA table_info(frames)")}
    return set()


def _values(source: sqlite3.Connection, query: str, *given: object) -> Iterator[int]:
    """The numbers that a query finds, up to the first that cannot be read."""
    with contextlib.suppress(*_UNREADABLE):
        for (value,) in source.execute(query, given):
            yield value


def _in_use(path: Path) -> bool:
    """Whether this or another process has the store open."""
    if is_open(path):  # opening and closing the index here would drop the locks that SQLite holds on it
        return True
    try:
        index = path.with_name(path.name + "-shm").open("r+b")
    except FileNotFoundError:
        return False
    except PermissionError:  # of another user, who may be using it
        return True
    except OSError as error:
        if error.errno == errno.EROFS:  # a snapshot
            return False
        raise
    with index:
        try:
            fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _IN_USE_BYTE)
        except OSError:
            return True
    return False


def _now() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
