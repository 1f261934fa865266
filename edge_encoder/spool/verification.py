"""Verifies a whole spool: in a thread beside its work, or without changing it for `aeic spool check`.

A small spool is verified before it is used (database.py). In a larger one, damage that no read meets could hide a frame
until the next start: an index without an entry for a frame that waits. `Verification` looks for it while the spool
works. What it finds is handed to the writer, which repairs the file. `check` reads any spool, also one in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from aeic_service import wal
from edge_encoder.errors import SpoolError
from edge_encoder.spool import database, schema
from edge_encoder.spool.record import DamagedRecord, ReceivedPicture, Record
from edge_encoder.spool.system import System


class Verified(StrEnum):
    """What is known of the whole file since the start of the process."""

    RUNNING = "running"
    OK = "ok"
    REPAIRED = "repaired"
    FAILED = "failed"


class Verification:
    """Of the file at `path`. `repair(error)` is called in its thread where the file is damaged, and returns once it is
    repaired."""

    def __init__(self, path: Path, system: System, repair: Callable[[sqlite3.Error], object]) -> None:
        self.result = Verified.OK
        self._path = path
        self._system = system
        self._repair = repair
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins; a file that was verified when it was opened needs no start()."""
        self.result = Verified.RUNNING
        self._thread = threading.Thread(target=self._run, name="spool-verification", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it, finished or not."""
        self._closed = True
        while self._thread is not None and self._thread.is_alive():
            if (connection := self._connection) is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.interrupt()
            self._thread.join(0.05)

    def _run(self) -> None:
        result = Verified.FAILED
        try:
            with contextlib.closing(database.connect(self._path, self._system)) as connection:
                self._connection = connection
                if self._closed:
                    return
                database.check(connection)
            result = Verified.OK
        except sqlite3.Error as error:
            if not self._closed and database.is_damage(error):
                with contextlib.suppress(Exception):  # the writer has logged it, and tries again
                    self._repair(error)
                    result = Verified.REPAIRED
        except OSError:
            pass
        finally:
            self._connection = None
            self.result = result


@dataclass
class SpoolCheck:
    """What was found. `database` and `log` are "ok" or say what is wrong; `unreadable` of the waiting `frames` and
    `originals` cannot be read; `recoveries` are those so far, with what each lost; `kept` are files that they left, of
    which `damaged` ones may hold more."""

    spool: str
    in_use: bool
    database: str = "ok"
    log: str = "ok"
    frames: int = 0
    originals: int = 0
    unreadable: int = 0
    recoveries: list[dict[str, int]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return self.database == self.log == "ok" and not self.unreadable


def check(folder: Path) -> SpoolCheck:
    """Reads the whole spool in `folder`. SpoolError when there is none."""
    path = folder / "spool.sqlite3"
    if not path.is_file():
        raise SpoolError(f"there is no spool in {folder}; give the edge's AEIC_EDGE_DATA_DIR")
    report = SpoolCheck(str(path), in_use=_in_use(folder / "spool.lock"))
    report.kept = sorted(each.name for each in folder.glob("spool.sqlite3.*") if not each.name.endswith("-wal"))
    way = "mode=ro"
    if not report.in_use:  # the log of a running edge changes while it is read
        log_path = path.with_name(path.name + "-wal")
        found = wal.scan(log_path)
        if wal.is_missing(log_path):
            report.log = "gone, and with it the last commits"
            way = "immutable=1"
        if found is not None and found.damaged:
            report.log = "damaged; the next start of the edge recovers the spool"
        if found is not None and found.incomplete:
            # SQLite would write its index of the log anew, and only the present one shows the damage. What is in the
            # log is not counted then.
            way = "immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?{way}", uri=True, factory=schema.Connection)
        ) as connection:
            connection.execute("BEGIN")  # one moment of a spool in use
            database.check(connection)
            _rows(connection, report)
    except sqlite3.Error as error:
        report.database = f"{error}; the next start of the edge recovers the spool"
    return report


def _rows(connection: sqlite3.Connection, report: SpoolCheck) -> None:
    for (record,) in connection.execute(f"SELECT record FROM frames WHERE {schema.WAITING}"):
        report.frames += 1
        try:
            Record.parse(record)
        except DamagedRecord:
            report.unreadable += 1
    with contextlib.suppress(sqlite3.OperationalError):  # no such table in a spool of an earlier release
        rows = connection.execute("SELECT at_ms, lost, complete FROM recoveries").fetchall()
        report.recoveries = [dict(zip(("at_unix_ms", "lost", "complete"), row, strict=True)) for row in rows]
    for row in connection.execute("SELECT meta, checked, picture FROM originals"):
        report.originals += 1
        try:
            ReceivedPicture.parse(*row)
        except DamagedRecord:
            report.unreadable += 1


def _in_use(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
