"""What requests have cost lately, on disk, so that a restart of the box does not begin the hour again.

Each row is written before the bytes that it counts are sent. Rows are not synced one by one: they survive the end of
the process, and a power cut loses those of the last seconds. Where the file cannot be read or written, the process
counts in memory only. Used in one asyncio loop; a write goes to the page cache.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("aeic.edge.answers")

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA wal_autocheckpoint = 64;
CREATE TABLE IF NOT EXISTS charges (
    source TEXT NOT NULL,
    request BLOB NOT NULL,
    attempts INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (source, request)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS charges_at ON charges (at_ms);
"""


@dataclass(frozen=True, slots=True)
class Charged:
    """A request about a source ("": one that no source pays for): how often it was attempted, the bytes that were sent
    for it, and how many seconds ago."""

    source: str
    request: uuid.UUID
    attempts: int
    sent: int
    age: float


class ChargeFile:
    """Rows of the last `seconds` in the file at `path`, by a clock that counts on through restarts, `now_ms()`. A row
    of the future counts as one of now: after a clock that was set back, the hour is longer and never shorter."""

    def __init__(self, path: Path, seconds: float, now_ms: Callable[[], int]) -> None:
        self._path, self._keep_ms, self._now_ms = path, int(seconds * 1000), now_ms
        self._connection: sqlite3.Connection | None = None
        self._failed = False
        self.found: list[Charged] = []
        """What an earlier process has recorded, the longest ago first."""
        try:
            try:
                self.found = self._open()
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                if not _is_damage(error):
                    raise
                log.warning("%s is damaged and begins again: %s", path, error)
                self.close()
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                self.found = self._open()
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._fails(error)
            self.close()

    def record(self, source: str, request: uuid.UUID, attempts: int, sent: int) -> None:
        """Writes what a request has cost until now, in place of what was written of it before. Where the disk fails,
        the next time makes up for it."""
        if self._connection is None:
            return
        now_ms = self._now_ms()
        try:
            with self._connection:
                self._connection.execute("DELETE FROM charges WHERE at_ms < ?", (now_ms - self._keep_ms,))
                row = source, request.bytes, attempts, sent, now_ms
                self._connection.execute("INSERT OR REPLACE INTO charges VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            self._fails(error)

    def close(self) -> None:
        """Nothing is recorded any more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> list[Charged]:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # for the service's user only
        self._connection = connection = sqlite3.connect(self._path, timeout=0, check_same_thread=False)
        connection.executescript(_SCHEMA)
        now_ms = self._now_ms()
        with connection:
            connection.execute("DELETE FROM charges WHERE at_ms < ?", (now_ms - self._keep_ms,))
            connection.execute("UPDATE charges SET at_ms = ? WHERE at_ms > ?", (now_ms, now_ms))
        rows = connection.execute(
            "SELECT source, request, attempts, sent, at_ms FROM charges ORDER BY at_ms"
        ).fetchall()
        return [_charged(row, now_ms) for row in rows]

    def _fails(self, error: Exception) -> None:
        if not self._failed:
            log.warning("%s cannot be used: a restart may begin the hour of requests again: %s", self._path, error)
        self._failed = True


def _charged(row: tuple[object, ...], now_ms: int) -> Charged:
    """A row of the file. ValueError for one that this class has not written: SQLite takes any type in any column."""
    match row:
        case str(source), bytes(request), int(attempts), int(sent), int(at_ms) if attempts >= 0 and sent >= 0:
            return Charged(source, uuid.UUID(bytes=request), attempts, sent, (now_ms - at_ms) / 1000)
    raise ValueError("a row has wrong types")


def _is_damage(error: Exception) -> bool:
    """Whether what is in the file is wrong, such as another table or text that is no UTF-8, and not the disk."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR
