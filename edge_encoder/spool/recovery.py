"""Reads what can still be read from a damaged spool file and its log, and writes it into a new one.

Never writes to the damaged files; database.py puts the new one in their place. Three sources, the most trustworthy
first; what one source has decided about an id is not changed by a later one:

    1. the database with the pages of its log that SQLite would use, read row by row: a range of rows that fails is
       halved until the unreadable rows stand alone
    2. the same with the commits of the log behind the damage, part by part, then with the pages after the last of them
    3. the raw bytes of both files, searched for the magic of a record (record.py); this also works without a first
       page. A record or received picture that is larger than a page is split by SQLite, so this search does not find it

Every record carries its own check value, so nothing damaged is taken over. The indexes of the database say which frames
were waiting, so that those that are not found are counted as lost. Frames already delivered may be found again; the
cloud answers DUPLICATE.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aeic_service import wal
from edge_encoder.spool import schema
from edge_encoder.spool.record import FINAL, MAGIC, DamagedRecord, ReceivedPicture, Record, State
from edge_encoder.spool.system import System

log = logging.getLogger("aeic.edge.spool")

_BLOCK = 1 << 20
# Ranges of rows that may fail before the rest is given up: enough for 30,000 rows of which none can be read.
_MAX_FAILURES = 100_000
_REASON = "damaged on disk"
_RECEIVED_COLUMNS = "seq, id, meta, checked, picture"


@dataclass
class Recovery:
    """What was found: `frames` to send, `received` to encode, `lost` of either. `complete` when all tables were read
    and nothing is missing."""

    frames: int = 0
    received: int = 0
    lost: int = 0
    complete: bool = True


def recover(path: Path, target: sqlite3.Connection, image: Path, system: System, *, other: bool = False) -> Recovery:
    """Copies everything readable from the damaged spool at `path` into `target`, in one transaction that the caller
    commits. The tables of `target` are empty, or with `other` those of another spool, whose rows are not changed.
    `image` is a file to work in; the caller deletes it. OSError or sqlite3.Error when the new file cannot be written:
    the damaged files are as they were."""
    recoverer = _Recoverer(target)
    with _writing():
        known = target.execute("SELECT id FROM frames UNION ALL SELECT id FROM originals").fetchall()
    recoverer.placed.update(ident for (ident,) in known)
    log_path = path.with_name(path.name + "-wal")
    found = wal.scan(log_path)
    source = path
    if found is not None:
        _copy(path, image, system)
        _apply(log_path, found, found.committed, image, system)
        source = image
    if not _has_tables(source):
        if source is path:
            _copy(path, image, system)
            source = image
        _replace_first_page(image, found.page_size if found is not None else 4096, system)
        recoverer.found.complete = False
    recoverer.read(source)
    if found is not None:
        recoverer.found.complete &= not found.incomplete
        for pages in filter(None, (*found.behind, found.uncommitted)):
            _apply(log_path, found, pages, image, system)
            recoverer.read(image)
        if other:  # the log may belong to the file that was at the path before, so the database is read without it too
            recoverer.read(path)
    for part in (path, log_path):
        if part.is_file() and part.stat().st_size:
            recoverer.search(part)
    recoverer.found.complete &= not wal.is_missing(log_path)
    recovery = recoverer.finish()
    with _writing():
        schema.insert_recovery(target, int(system.wall_seconds() * 1000), recovery.lost, recovery.complete)
    return recovery


def records_in(log_path: Path, log: wal.Log) -> dict[bytes, Record]:
    """The whole records, by id, in the part of the log that SQLite would discard. OSError when it cannot be read."""
    found: dict[bytes, Record] = {}
    with log_path.open("rb") as file:
        for offset in log.tail:
            file.seek(offset)
            for record in _search(file.read(log.page_size)):
                found[record.id.bytes] = record
    return found


def _search(raw: bytes | mmap.mmap) -> Iterator[Record]:
    at = raw.find(MAGIC)
    while at >= 0:
        with contextlib.suppress(DamagedRecord):
            yield Record.parse(raw[at : at + (1 << 16)])
        at = raw.find(MAGIC, at + 1)


def _has_tables(path: Path) -> bool:
    """Whether the database's first page is whole: it holds the schema, with the columns that are read."""
    try:
        with contextlib.closing(_open(path)) as source:
            names = {name for (name,) in source.execute("SELECT name FROM sqlite_schema")}
            source.execute(f"SELECT {schema.FRAME_COLUMNS} FROM frames LIMIT 0")
            source.execute(f"SELECT {_RECEIVED_COLUMNS} FROM originals LIMIT 0")
            return {b"frames", b"originals"} <= names
    except sqlite3.Error:
        return False


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, factory=schema.Connection)
    connection.text_factory = bytes  # a damaged text is not UTF-8
    return connection


def _replace_first_page(image: Path, page_size: int, system: System) -> None:
    """Gives the image the first page of a new spool. Tables are always created in the same order, so their roots are in
    the same pages."""
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        new.execute(f"PRAGMA page_size={page_size}")
        schema.create(new)
        page = bytearray(new.serialize()[:page_size])
    with image.open("r+b", buffering=0) as file:
        pages = max(1, file.seek(0, 2) // page_size)
        page[28:32] = pages.to_bytes(4, "big")
        system.write(file, 0, bytes(page))


def _copy(path: Path, image: Path, system: System) -> None:
    offset = 0
    with system.create(image) as file:
        if path.is_file():
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    system.write(file, offset, block)
                    offset += len(block)


def _apply(log_path: Path, log: wal.Log, pages: list[tuple[int, int]], image: Path, system: System) -> None:
    """Writes the log's pages into the image."""
    with log_path.open("rb") as source, image.open("r+b", buffering=0) as file:
        for number, offset in pages:
            source.seek(offset)
            system.write(file, (number - 1) * log.page_size, source.read(log.page_size))
        if file.seek(0, 2) < log.pages * log.page_size:  # SQLite opens no database that is shorter than it says
            file.truncate(log.pages * log.page_size)


@dataclass
class _Recoverer:
    """Rows found so far. `placed`: ids that are in the target; `missing`: ids known to have waited, with their row."""

    target: sqlite3.Connection
    found: Recovery = field(default_factory=Recovery)
    placed: set[bytes] = field(default_factory=set)
    missing: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    unnamed: set[tuple[str, int]] = field(default_factory=set)  # lost rows whose id is not known either
    failures: int = 0
    earlier: bool = False  # whether the earlier recoveries were read

    # -- through SQLite ----------------------------------------------------------------------------------------

    def read(self, path: Path) -> None:
        """Reads the tables of a database whose log, if it had one, is applied."""
        try:
            with contextlib.closing(_open(path)) as source:
                source.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
                self._earlier(source)
                self._frames(source)
                self._received(source)
        except sqlite3.Error as error:
            log.error("spool %s cannot be read as a database (%s); its bytes are searched", path.name, error)
            self.found.complete = False

    def _earlier(self, source: sqlite3.Connection) -> None:
        if self.earlier:
            return
        rows: list[Any] = []
        with contextlib.suppress(sqlite3.DatabaseError):  # a spool of an earlier release has no such table
            rows = source.execute("SELECT at_ms, lost, complete FROM recoveries").fetchall()
            self.earlier = True
        for row in rows:
            if all(isinstance(value, int) for value in row):
                with _writing():
                    schema.insert_recovery(self.target, *row)

    def _frames(self, source: sqlite3.Connection) -> None:
        names = dict(_indexed(source, "SELECT seq, id FROM frames INDEXED BY sqlite_autoindex_frames_1"))
        waiting, sure = _known(source, f"SELECT seq FROM frames INDEXED BY pending WHERE {schema.WAITING}")
        seen: set[int] = set()
        for row in self._rows(source, "frames", schema.FRAME_COLUMNS, waiting, sure):
            seq, ident, state, record = row[0], row[1], row[2], row[-1]
            seen.add(seq)
            # A finished frame has no record. One that still has it was waiting, and its state is damaged.
            if _is_id(ident) and state in FINAL and record is None:
                self._history(row)
                continue
            try:
                self._frame(Record.parse(record))
            except DamagedRecord:
                if _is_id(ident):
                    self.missing.setdefault(ident, row)
                else:
                    self.unnamed.add(("frames", seq))
        self._lost("frames", waiting - seen, names)

    def _received(self, source: sqlite3.Connection) -> None:
        names = dict(_indexed(source, "SELECT seq, id FROM originals INDEXED BY sqlite_autoindex_originals_1"))
        waiting, sure = _known(source, "SELECT seq FROM originals INDEXED BY waiting")
        seen: set[int] = set()
        for seq, ident, meta, checked, picture in self._rows(source, "originals", _RECEIVED_COLUMNS, waiting, sure):
            seen.add(seq)
            try:
                received = ReceivedPicture.parse(meta, checked, picture)
            except DamagedRecord:
                if _is_id(ident):
                    self.missing.setdefault(ident, ())
                else:
                    self.unnamed.add(("originals", seq))
                continue
            if received.id.bytes not in self.placed:
                self.placed.add(received.id.bytes)
                with _writing():
                    schema.insert_received(self.target, received)
                self.found.received += 1
        self._lost("originals", waiting - seen, names)

    def _rows(
        self, source: sqlite3.Connection, table: str, columns: str, waiting: set[int], sure: bool
    ) -> Iterator[tuple[Any, ...]]:
        """Every readable row. Rows that cannot be read are lost where they may have waited: those in `waiting`, or all
        of them unless that is `sure` to name every one."""
        self.found.complete &= sure  # without a whole index nothing says that no row is missing
        pending = [_span(source, table, waiting)]
        while pending:
            low, high = pending.pop()
            if low > high:
                continue
            begin = low
            try:
                query = f"SELECT {columns} FROM {table} WHERE seq BETWEEN ? AND ? ORDER BY seq"
                for row in source.execute(query, (low, high)):
                    low = max(low, row[0] + 1)  # the rows of a damaged table need not rise
                    yield row
            except (sqlite3.DatabaseError, OverflowError, MemoryError):
                self.failures += 1
                if low > begin:
                    pending.append((low, high))
                    continue
                if self.failures > _MAX_FAILURES:
                    self.found.complete = False
                    return
                if low < high:
                    middle = (low + high) // 2
                    pending += [(middle + 1, high), (low, middle)]
                elif not sure:
                    self.unnamed.add((table, low))

    def _lost(self, table: str, seqs: set[int], names: dict[int, bytes]) -> None:
        for seq in seqs:
            ident = names.get(seq, b"")
            if _is_id(ident):
                self.unnamed.discard((table, seq))
                self.missing.setdefault(ident, ())
            else:
                self.unnamed.add((table, seq))

    # -- by hand -----------------------------------------------------------------------------------------------

    def search(self, path: Path) -> None:
        """Searches the bytes of the file for records."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            for record in _search(raw):
                self._frame(record)

    # -- into the target ---------------------------------------------------------------------------------------

    def _frame(self, record: Record) -> None:
        if record.id.bytes not in self.placed:
            self.placed.add(record.id.bytes)
            with _writing():
                schema.insert(self.target, record)
            self.found.frames += 1

    def _history(self, row: tuple[Any, ...]) -> None:
        ident = row[1]
        if ident in self.placed:
            return
        self.placed.add(ident)
        with _writing():
            schema.insert_history(self.target, ident, State(row[2]), _numbers(row), _text(row[12]))

    def finish(self) -> Recovery:
        """Writes down what is lost, and counts it."""
        for ident, row in self.missing.items():
            if ident not in self.placed:
                self.found.lost += 1
                schema.insert_history(self.target, ident, State.DROPPED, _numbers(row), _REASON)
        # Their ids are not known, so the number includes those that were found elsewhere: an upper bound.
        self.found.lost += len(self.unnamed)
        self.found.complete &= not self.found.lost
        return self.found


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Raises what goes wrong with the target as OSError, which no reading of a damaged file does."""
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def _span(source: sqlite3.Connection, table: str, waiting: set[int]) -> tuple[int, int]:
    """The first and last row number."""
    first, last = 1, max(waiting, default=0)
    for query in f"SELECT MIN(seq) FROM {table}", f"SELECT MAX(seq) FROM {table}":
        with contextlib.suppress(sqlite3.DatabaseError, OverflowError):
            value = source.execute(query).fetchone()[0]
            if isinstance(value, int):
                first, last = (max(1, value), last) if "MIN" in query else (first, max(last, value))
    with contextlib.suppress(sqlite3.DatabaseError, OverflowError):
        row = source.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        if row and isinstance(row[0], int):
            last = max(last, row[0])
    return min(first, *waiting) if waiting else first, last


def _indexed(source: sqlite3.Connection, query: str) -> Iterator[tuple[int, bytes]]:
    """Rows of an index, up to the first that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError, OverflowError):
        yield from source.execute(query)


def _known(source: sqlite3.Connection, query: str) -> tuple[set[int], bool]:
    """The row numbers in an index, and whether all of it could be read."""
    seqs: set[int] = set()
    try:
        for (seq,) in source.execute(query):
            if isinstance(seq, int):
                seqs.add(seq)
    except (sqlite3.DatabaseError, OverflowError):
        return seqs, False
    return seqs, True


def _is_id(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 16


def _numbers(row: tuple[Any, ...]) -> dict[str, int]:
    """The whole numbers of a row of FRAME_COLUMNS; 0 for what is none."""
    values = row[3:12] if len(row) > 12 else (0,) * 9
    names = ("priority", "cost", "size", "width", "height", "rate", "picture_crc", "created_ms", "finished_ms")
    return {name: value if isinstance(value, int) else 0 for name, value in zip(names, values, strict=True)}


def _text(value: Any) -> str:
    return value.decode(errors="replace")[:500] if isinstance(value, bytes) else ""
