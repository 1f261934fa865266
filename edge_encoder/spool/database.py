"""The spool's file: its schema, how it is opened, and how it is set aside and rebuilt when damaged.

`frames` keeps one row per frame; `record` (records.py) is cleared when the frame is finished, the rest of the row stays
as history so that a state can be asked for and a repeated POST recognised. `originals` holds pictures that are not
encoded yet (original.py), `tries` how often that was begun.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from edge_encoder.spool.record import Original, Record, State
from edge_encoder.spool.recovery import recover

log = logging.getLogger("aeic.edge.spool")

# A frame costs its record and about this much for the row and its place in the indexes.
ROW_BYTES = 256
# Files up to this size are checked through and through at start; larger ones when something looks wrong.
_CHECKED_AT_START_BYTES = 64 << 20

# A literal and not a parameter, since SQLite uses a partial index only where it sees the same condition.
SPOOLED = f"state = {State.SPOOLED.value}"
"""The condition of frames that wait to be sent."""
FINISHED = f"state != {State.SPOOLED.value}"
"""The condition of frames of which only the history is kept."""

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS frames (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    size INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    rate INTEGER NOT NULL,
    picture_crc INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    finished_ms INTEGER,
    reason TEXT,
    record BLOB
);
CREATE INDEX IF NOT EXISTS pending ON frames (priority DESC, seq) WHERE {SPOOLED};
CREATE INDEX IF NOT EXISTS oldest ON frames (created_ms) WHERE {SPOOLED};
CREATE INDEX IF NOT EXISTS finished ON frames (finished_ms) WHERE {FINISHED};
CREATE TABLE IF NOT EXISTS originals (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    priority INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    picture_crc INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    meta BLOB NOT NULL,
    checked INTEGER NOT NULL,
    picture BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS waiting ON originals (priority DESC, seq);
CREATE TABLE IF NOT EXISTS tries (id BLOB PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the spool's promises switched on: a commit survives a power cut."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={8 << 20}")
        connection.execute("PRAGMA cache_size=-2048")
        # To overwrite a deleted original would cost as much as to keep it.
        connection.execute("PRAGMA secure_delete=FAST")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def is_damage(error: sqlite3.Error) -> bool:
    """True when the file itself is broken, and not the disk full or busy."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Broken(sqlite3.DatabaseError):
    """The check of the file found damage; carries SQLite's own code for it, so that is_damage() knows it."""

    def __init__(self, verdict: str) -> None:
        super().__init__(f"damaged: {verdict}")
        self.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def check(connection: sqlite3.Connection) -> None:
    """Reads the file through and through; raises a damage error (is_damage) unless all is well."""
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise Broken(verdict)


def insert(connection: sqlite3.Connection, record: Record, cost: int) -> None:
    """Adds the frame as SPOOLED; `cost` is what it takes of the cap, in bytes."""
    connection.execute(
        "INSERT INTO frames (id, state, priority, cost, size, width, height, rate, picture_crc, created_ms, record)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            record.id.bytes,
            State.SPOOLED.value,
            record.priority,
            cost,
            len(record.data),
            record.width,
            record.height,
            record.rate,
            record.picture_crc,
            record.created_ms,
            record.to_bytes(),
        ),
    )


def insert_original(connection: sqlite3.Connection, original: Original) -> int:
    """Adds the original; returns what it costs, in bytes."""
    meta, cost = original.meta(), len(original.picture) + ROW_BYTES
    connection.execute(
        "INSERT INTO originals (id, priority, cost, width, height, picture_crc, created_ms, meta, checked, picture)"
        " VALUES (?,?,?,?,?,?,?,?,?,?)",
        (
            original.id.bytes,
            original.priority,
            cost,
            original.width,
            original.height,
            original.picture_crc,
            original.created_ms,
            meta,
            original.check(meta),
            original.picture,
        ),
    )
    return cost


def open_spool(path: Path) -> tuple[sqlite3.Connection, int]:
    """Opens or makes the file; a damaged one is rebuilt. Returns the connection and how many frames were lost."""
    try:
        connection = connect(path)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        log.error("spool %s is damaged: %s", path, error)
        return rebuild(path)
    try:
        connection.executescript(_SCHEMA)
        connection.execute(f"SELECT COUNT(*), SUM(cost), MAX(seq) FROM frames WHERE {SPOOLED}").fetchone()
        if path.stat().st_size <= _CHECKED_AT_START_BYTES:
            check(connection)
        return connection, 0
    except sqlite3.Error as error:
        connection.close()
        # A foreign schema ("no such column") is as useless to us as a damaged page; a full disk is neither.
        foreign = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
        if not is_damage(error) and not foreign:
            raise
        log.error("spool %s is damaged: %s", path, error)
        return rebuild(path)


def rebuild(path: Path) -> tuple[sqlite3.Connection, int]:
    """Sets the damaged file aside (one is kept, for a look later) and starts a new one with what was readable."""
    for old in path.parent.glob(path.name + ".damaged*"):
        old.unlink()
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    found = recover(aside)
    connection = connect(path)
    connection.executescript(_SCHEMA)
    connection.execute("BEGIN IMMEDIATE")
    for record in sorted(found.records.values(), key=lambda record: (record.created_ms, record.id.bytes)):
        insert(connection, record, len(record.to_bytes()) + ROW_BYTES)
    for original in sorted(found.originals.values(), key=lambda original: (original.created_ms, original.id.bytes)):
        insert_original(connection, original)
    connection.execute("COMMIT")
    log.error(
        "spool rebuilt: %d frames and %d originals kept, at least %d lost; the damaged file is %s",
        len(found.records),
        len(found.originals),
        found.unreadable,
        aside.name,
    )
    return connection, found.unreadable
