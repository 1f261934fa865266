"""Reads what can still be read from a damaged spool file. Never writes to it.

Two passes. Through SQLite: rows are fetched by their number, and a range that fails is halved until the unreadable
rows stand alone. Then by hand: the raw bytes of the file and its WAL are searched for the magic of records.py, which
also works when the file's first page is gone. A record longer than a database page is split by SQLite and only the
first pass can find it; so it is with originals. Frames already delivered may come back; the cloud answers DUPLICATE
and no harm is done.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_encoder.spool.record import MAGIC, DamagedRecord, Original, Record, State

log = logging.getLogger("aeic.edge.spool")


@dataclass
class Recovery:
    """What came out: frames to send again, originals to encode, and how many rows are known to be lost."""

    records: dict[bytes, Record] = field(default_factory=dict)
    originals: dict[bytes, Original] = field(default_factory=dict)
    finished: set[bytes] = field(default_factory=set)  # ids that need no sending
    unreadable: int = 0


def recover(path: Path) -> Recovery:
    """Everything readable in the spool file at `path` (its -wal beside it)."""
    found = Recovery()
    try:
        _through_sqlite(path, found)
    except sqlite3.Error as error:
        log.error("spool %s cannot be read as a database (%s); searching its bytes", path.name, error)
    before = len(found.records)
    for part in (path, path.with_name(path.name + "-wal")):
        if part.is_file() and part.stat().st_size:
            for record in _by_hand(part):
                if record.id.bytes not in found.finished:
                    found.records.setdefault(record.id.bytes, record)
    found.unreadable = max(0, found.unreadable - (len(found.records) - before))
    return found


def _through_sqlite(path: Path, found: Recovery) -> None:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for ident, state, raw in _rows(connection, "frames", "id, state, record", found):
            if state != State.SPOOLED:
                found.finished.add(bytes(ident))
                continue
            try:
                record = Record.parse(raw or b"")
                found.records[record.id.bytes] = record
            except DamagedRecord:
                found.unreadable += 1
        for row in _rows(connection, "originals", "meta, checked, picture", found):
            try:
                original = Original.parse(*row)
            except DamagedRecord:
                found.unreadable += 1
                continue
            if original.id.bytes not in found.finished and original.id.bytes not in found.records:
                found.originals[original.id.bytes] = original


def _rows(connection: sqlite3.Connection, table: str, columns: str, found: Recovery) -> Iterator[tuple[Any, ...]]:
    """Every readable row; the others are counted."""
    try:
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    except sqlite3.DatabaseError:
        row = connection.execute(f"SELECT MAX(seq) FROM {table}").fetchone()
    first = 1
    with contextlib.suppress(sqlite3.DatabaseError):
        first = connection.execute(f"SELECT MIN(seq) FROM {table}").fetchone()[0] or 1
    last = (row[0] if row else 0) or 0
    pending = [(first, last)]
    while pending:
        low, high = pending.pop()
        if low > high:
            continue
        query = f"SELECT {columns} FROM {table} WHERE seq BETWEEN ? AND ?"
        try:
            rows = connection.execute(query, (low, high)).fetchall()
        except sqlite3.DatabaseError:
            if low == high:
                found.unreadable += 1
            else:
                middle = (low + high) // 2
                pending += [(middle + 1, high), (low, middle)]
            continue
        yield from rows


def _by_hand(path: Path) -> Iterator[Record]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        at = raw.find(MAGIC)
        while at >= 0:
            with contextlib.suppress(DamagedRecord):
                yield Record.parse(raw[at : at + (1 << 16)])
            at = raw.find(MAGIC, at + 1)
