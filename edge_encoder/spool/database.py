"""The spool's file: how it is opened, and how a damaged one is replaced by what could be recovered from it.

    spool.sqlite3 (damaged), -wal --recover--> .rebuilding --committed and synced--> .rebuilt-NAME
                      |                                                                  |
                      +--renamed to NAME, once .rebuilt-NAME is complete                 +--renamed to spool.sqlite3

Every step can be interrupted: without a complete .rebuilt file the recovery starts again from the damaged files, which
are untouched; with one, the remaining renames are done. NAME is `salvaged-TIME` where everything was recovered (the
next recovery deletes those that it needs the room of) and `damaged-TIME` otherwise (never deleted here). Another spool
that appears at the path while the file is open is taken over in the same steps.

A log whose last transaction does not verify, and of which nothing says that it was ever whole, needs no recovery: a
power cut leaves such a log. Its whole records are put into the database all the same, since the transaction may have
been acknowledged and damaged later. Those that were not acknowledged are sent as well, which does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from aeic_service import wal
from edge_encoder.errors import SpoolFull
from edge_encoder.spool import schema
from edge_encoder.spool.record import Record
from edge_encoder.spool.recovery import Recovery, records_in, recover
from edge_encoder.spool.system import System

log = logging.getLogger("aeic.edge.spool")

# Files up to this size are verified at start; larger ones afterwards, in the background (verification.py).
_CHECKED_AT_START_BYTES = 64 << 20
_REBUILDING, _REBUILT, _IMAGE = ".rebuilding", ".rebuilt-", ".image"
_UNFINISHED = _REBUILDING, _REBUILDING + "-journal", _REBUILDING + "-wal", _REBUILDING + "-shm"


def connect(path: Path, system: System) -> sqlite3.Connection:
    """A connection whose commits survive a power cut."""
    uri = path.absolute().as_uri() + (f"?vfs={system.vfs}" if system.vfs else "")
    connection = sqlite3.connect(
        uri, isolation_level=None, check_same_thread=False, timeout=30.0, uri=True, factory=schema.Connection
    )
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={8 << 20}")
        connection.execute("PRAGMA cache_size=-2048")
        # Overwriting a deleted received picture would cost as much as storing it.
        connection.execute("PRAGMA secure_delete=FAST")
    except BaseException:
        connection.close()
        raise
    return connection


def is_damage(error: Exception) -> bool:
    """True when the file itself is damaged, as opposed to a full, busy or failing disk."""
    # Python raises this one itself, without a code of SQLite's, for text that is no UTF-8.
    if isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode"):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: Exception) -> bool:
    """True when the disk is full."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def check(connection: sqlite3.Connection) -> None:
    """Verifies the file, its indexes against its rows and the types of values; raises schema.DamagedDatabase."""
    # Twice as long as quick_check, which does not compare indexes with rows: 0.2 s instead of 0.1 s for 86 MiB.
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise schema.DamagedDatabase(verdict)
    schema.check_values(connection)


def is_large(path: Path) -> bool:
    """Whether the file is too large to be verified while it is opened."""
    return path.stat().st_size > _CHECKED_AT_START_BYTES


def open_spool(path: Path, system: System, *, damaged: bool = False) -> tuple[sqlite3.Connection, Recovery | None]:
    """Opens or creates the file. One that is `damaged`, or is found to be, is rebuilt: the Recovery says how.

    SpoolFull when the disk has no room for a recovery; sqlite3.Error or OSError when the disk does not work. Then the
    files are as they were, and a later call tries again.
    """
    _resume(path, system)
    try:
        if damaged:
            raise schema.DamagedDatabase("an operation failed")
        torn = _check_log(path)
        _make_private(path)
        connection = connect(path, system)
        try:
            schema.create(connection)
            schema.check_schema(connection)
            schema.check_numbers(connection)
            _put_back(connection, torn)
            connection.execute(f"SELECT COUNT(*), SUM(cost), MAX(seq) FROM frames WHERE {schema.WAITING}").fetchone()
            if not is_large(path):
                check(connection)
        except BaseException:
            connection.close()
            raise
        return connection, None
    except sqlite3.Error as error:
        # A foreign schema ("no such column") cannot be used either.
        foreign = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
        if not is_damage(error) and not foreign:
            raise
        log.error("spool %s is damaged: %s", path, error)
    recovery = _rebuild(path, system)
    connection = connect(path, system)
    try:
        schema.create(connection)
    except BaseException:
        connection.close()
        raise
    return connection, recovery


def replace(
    connection: sqlite3.Connection, path: Path, system: System, place: tuple[int, int] | None
) -> Recovery | None:
    """Writes the content of an open spool, whose file or log was deleted or replaced, to `path` again.

    `place` is the device and inode of the open file. When another file is at the path, its frames and received pictures
    are added, except those whose ids are in the open spool; the Recovery says what was found in it. It may be the spool
    of a disk that was mounted over the folder while the edge was running.
    """
    _resume(path, system)
    recovery: Recovery | None = None
    with _clean(path, system), contextlib.closing(_scratch(_part(path, _REBUILDING), system)) as target:
        connection.backup(target)
        if _is_other(path, place):
            target.execute("PRAGMA journal_mode=DELETE")  # the copy's header says WAL
            target.execute("PRAGMA journal_mode=OFF")
            target.execute("BEGIN")
            recovery = recover(path, target, _part(path, _IMAGE), system, other=True)
            target.execute("COMMIT")
    _finish(path, system, complete=recovery is None or recovery.complete)
    if recovery is not None:
        log.error(
            "another spool appeared at %s: %d frames and %d received pictures of it are taken over; lost: %s%d",
            path, recovery.frames, recovery.received, "" if recovery.complete else "at least ", recovery.lost,
        )  # fmt: skip
    return recovery


def _is_other(path: Path, place: tuple[int, int] | None) -> bool:
    """Whether a file at the path is not the one at `place` and holds something."""
    log_size = log_of(path).stat().st_size if log_of(path).exists() else 0
    try:
        facts = path.stat()
    except FileNotFoundError:
        return False
    return (facts.st_dev, facts.st_ino) != place and bool(facts.st_size or log_size)


def log_of(path: Path) -> Path:
    """Where SQLite keeps the log of the file. Commits are there until a checkpoint moves them into the file."""
    return _part(path, "-wal")


def _make_private(path: Path) -> None:
    """The spool is readable by its owner only; that of an earlier release was not."""
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.chmod(_part(path, suffix), 0o600)


def _check_log(path: Path) -> dict[bytes, Record]:
    """The whole records of a torn transaction at the end of the log; schema.DamagedDatabase if the log is damaged."""
    found = wal.scan(log_of(path))
    if wal.is_missing(log_of(path)):
        raise schema.DamagedDatabase("its log is missing, and with it the last commits")
    if found is None:
        return {}
    if found.damaged:
        raise schema.DamagedDatabase("its log does not verify")
    # SQLite deletes the log of an empty database, unread.
    if found.committed and (not path.exists() or not path.stat().st_size):
        raise schema.DamagedDatabase("it is empty, and its log is not")
    return records_in(log_of(path), found)


def _put_back(connection: sqlite3.Connection, torn: dict[bytes, Record]) -> None:
    """Adds the records whose ids the database does not know, not even as finished."""
    known = "SELECT EXISTS (SELECT 1 FROM frames WHERE id = :id) OR EXISTS (SELECT 1 FROM originals WHERE id = :id)"
    missing = [record for ident, record in torn.items() if not connection.execute(known, {"id": ident}).fetchone()[0]]
    if not missing:
        return
    connection.execute("BEGIN IMMEDIATE")
    for record in missing:
        schema.insert(connection, record)
    connection.execute("COMMIT")
    log.warning("the spool's log ends in a damaged commit; %d frames of it are restored", len(missing))


def _rebuild(path: Path, system: System) -> Recovery:
    need = 2 * sum(part.stat().st_size for part in (path, log_of(path)) if part.exists())
    for old in sorted(path.parent.glob(f"{path.name}.salvaged-*")):
        if system.free_bytes(path.parent) < need:
            system.unlink(old)
    try:
        with _clean(path, system), contextlib.closing(_scratch(_part(path, _REBUILDING), system)) as target:
            schema.create(target)
            target.execute("BEGIN")
            recovery = recover(path, target, _part(path, _IMAGE), system)
            target.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        if is_full(error) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise SpoolFull(
                f"the recovery of the damaged spool {path} needs up to {need} bytes of free disk space: make"
                " room; nothing is lost, and the recovery is tried again"
            ) from error
        raise
    _finish(path, system, complete=recovery.complete)
    log.error(
        "spool recovered: %d frames and %d received pictures; lost: %s%d",
        recovery.frames, recovery.received, "" if recovery.complete else "at least ", recovery.lost,
    )  # fmt: skip
    return recovery


@contextlib.contextmanager
def _clean(path: Path, system: System) -> Iterator[None]:
    """Deletes the unfinished files of a recovery that fails, and the scratch file of one that does not."""
    parts = [_part(path, suffix) for suffix in _UNFINISHED]
    try:
        yield
    except BaseException:
        for part in parts:
            with contextlib.suppress(OSError):
                system.unlink(part)
        raise
    finally:
        with contextlib.suppress(OSError):
            system.unlink(_part(path, _IMAGE))


def _scratch(path: Path, system: System) -> sqlite3.Connection:
    """A new database without a journal: until it is complete, it may be lost."""
    system.create(path).close()
    uri = path.absolute().as_uri() + (f"?vfs={system.vfs}" if system.vfs else "")
    connection = sqlite3.connect(uri, isolation_level=None, uri=True)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _finish(path: Path, system: System, *, complete: bool) -> None:
    """The file under .rebuilding is complete: makes that durable and visible, then takes it into use."""
    rebuilding = _part(path, _REBUILDING)
    system.sync(rebuilding)
    name = f"{'salvaged' if complete else 'damaged'}-{int(system.wall_seconds())}"
    while _part(path, f".{name}").exists():
        name += "x"
    system.rename(rebuilding, _part(path, _REBUILT + name))
    system.sync(path.parent)
    _resume(path, system)


def _resume(path: Path, system: System) -> None:
    """Completes a recovery that was interrupted after its file was complete; forgets one that was not."""
    for part in (*_UNFINISHED, _IMAGE):
        if _part(path, part).exists():
            system.unlink(_part(path, part))
    for rebuilt in sorted(path.parent.glob(f"{path.name}{_REBUILT}*")):
        aside = _part(path, "." + rebuilt.name.removeprefix(path.name + _REBUILT))
        # The log first: beside the new file it would be taken for its own. A name that is in use was renamed before
        # the interruption; what stands at the path then is not the damaged file.
        for suffix in ("-wal", ""):
            if _part(path, suffix).exists() and not _part(aside, suffix).exists():
                system.rename(_part(path, suffix), _part(aside, suffix))
        for suffix in ("-shm", "-journal"):
            if _part(path, suffix).exists():
                system.unlink(_part(path, suffix))
        system.sync(path.parent)
        system.rename(rebuilt, path)
        system.sync(path.parent)


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
