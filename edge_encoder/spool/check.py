"""Checks a spool without changing it, also while an edge uses it: `aeic spool check`."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from aeic_service import wal
from edge_encoder.errors import SpoolError
from edge_encoder.spool import database, schema
from edge_encoder.spool.record import DamagedRecord, ReceivedPicture, Record


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
