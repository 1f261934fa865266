"""The spool's tables, and how rows are added to them.

`frames` has one row per frame; `record` (record.py) is cleared when the frame is finished, the rest of the row stays as
history, so that its state can be asked for and a repeated POST is recognised. `originals` holds pictures that were
received and are not encoded yet (received.py), and `tries` how often the encoding of each was attempted. `recoveries`
says what each recovery of the file lost. `arrived_ms` is spool time (clock.py); 0 is unknown.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Mapping
from typing import Any

from edge_encoder.spool import clock
from edge_encoder.spool.record import DamagedRecord, ReceivedPicture, Record, State


class DamagedDatabase(sqlite3.DatabaseError):
    """The file is damaged, as a check of it found; has SQLite's own error code for that."""

    def __init__(self, verdict: str) -> None:
        super().__init__(f"damaged: {verdict}")
        self.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class Connection(sqlite3.Connection):
    """One whose every error is a sqlite3.Error: SQLite's message about a damaged schema may be no UTF-8, on which
    Python raises UnicodeDecodeError."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As in the base class."""
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise DamagedDatabase("its schema is not UTF-8") from error

    def executescript(self, script: str) -> sqlite3.Cursor:
        """As in the base class."""
        try:
            return super().executescript(script)
        except UnicodeDecodeError as error:
            raise DamagedDatabase("its schema is not UTF-8") from error


_MOST_ROWS = 1 << 53  # no spool has numbered as many rows
ROW_BYTES = 256
"""What a row costs besides its record or picture: its other columns and its index entries, about."""

# A literal and not a parameter, since SQLite uses a partial index only where it sees the same condition.
WAITING = f"state = {State.SPOOLED.value}"
"""The condition of frames that wait to be sent."""
FINISHED = f"state != {State.SPOOLED.value}"
"""The condition of frames of which only the history is kept."""
FRAME_COLUMNS = (
    "seq, id, state, priority, cost, size, width, height, rate, picture_crc, created_ms, finished_ms, reason, record"
)

# The table of received pictures is called `originals` since the first release, and a spool can go back to an earlier
# one. The folder edge_encoder/originals has other pictures: those that are kept after they were encoded.
#
# The order decides in which pages the roots of the tables are; recovery.py relies on it for a database whose first page
# is lost. So something new is added at the end.
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
    {{arrived}}
    {{described}}
);
CREATE INDEX IF NOT EXISTS pending ON frames (priority DESC, seq) WHERE {WAITING};
{{oldest}}
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
    {{arrived}}
);
CREATE INDEX IF NOT EXISTS waiting ON originals (priority DESC, seq);
CREATE TABLE IF NOT EXISTS tries (id BLOB PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""
_RECOVERIES = """
CREATE TABLE IF NOT EXISTS recoveries (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    complete INTEGER NOT NULL
);
"""
_ARRIVED = "arrived_ms INTEGER NOT NULL DEFAULT 0"
# About the picture, for people: what a recovery finds without them (record.py) is sent all the same.
_DESCRIBED = tuple(
    f"{name} INTEGER NOT NULL DEFAULT 0" for name in ("original_width", "original_height", "captured_from")
)
_OLDEST = f"CREATE INDEX IF NOT EXISTS arrived ON frames (arrived_ms) WHERE {WAITING};"


def create(connection: sqlite3.Connection) -> None:
    """Creates what is missing of the tables; adds to those of an earlier release what they lack."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    wanted = {"frames": (_ARRIVED, *_DESCRIBED), "originals": (_ARRIVED,)}
    for name, columns in wanted.items():
        if name not in tables:
            continue
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
        for column in columns:
            if column.split()[0] not in present:
                connection.execute(f"ALTER TABLE {name} ADD COLUMN {column}")
                if column is _ARRIVED:
                    connection.execute("DROP INDEX IF EXISTS oldest")  # by the wall clock
    described = "".join(f", {column}" for column in _DESCRIBED)
    schema = _SCHEMA.format(arrived=", " + _ARRIVED, described=described, oldest=_OLDEST)
    connection.executescript(schema + clock.SCHEMA + _RECOVERIES)


def check_schema(connection: sqlite3.Connection) -> None:
    """Raises DamagedDatabase when a table lacks a column that create() gives it: a flipped bit renamed it."""
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        create(new)
        names = [name for (name,) in new.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for name in names:
            if _columns(new, name) - _columns(connection, name):
                raise DamagedDatabase(f"the schema of its table {name}")


def check_numbers(connection: sqlite3.Connection) -> None:
    """Raises DamagedDatabase when SQLite would soon find no number for a new row, and call the disk full: a flipped bit
    made the last number of a table far too large. No check of SQLite's looks at it."""
    for name, seq in connection.execute("SELECT name, seq FROM sqlite_sequence"):
        if not isinstance(seq, int) or seq >= _MOST_ROWS:
            raise DamagedDatabase(f"the number of the last row of {name}")


def check_values(connection: sqlite3.Connection) -> None:
    """Raises DamagedDatabase when a value is not of its column's type: a flipped bit in the header of a row turns a
    number into a text. SQLite checks that only in STRICT tables, which no spool has."""
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql <> ''").fetchall():
        conditions = [
            f"typeof({name}) <> '{kind.lower()}'" + ("" if never_null else f" AND {name} IS NOT NULL")
            for _, name, kind, never_null, _, _ in connection.execute(f"PRAGMA table_info({table})")
            if kind
        ]
        query = f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {' OR '.join(conditions)})"
        if conditions and connection.execute(query).fetchone()[0]:
            raise DamagedDatabase(f"a value in its table {table}")


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def check_findable(connection: sqlite3.Connection, table: str, priority: int, seq: int) -> None:
    """Raises DamagedDatabase when a waiting frame or received picture that an index of `table` names is not found by
    its id."""
    index, waiting = ("pending", f"{WAITING} AND ") if table == "frames" else ("waiting", "")
    query = f"SELECT id FROM {table} INDEXED BY {index} WHERE {waiting}priority = ? AND seq = ?"
    row = connection.execute(query, (priority, seq)).fetchone()
    if row is None:
        return  # it was finished meanwhile
    if connection.execute(f"SELECT seq FROM {table} WHERE {waiting}id = ?", row).fetchone() != (seq,):
        raise DamagedDatabase(f"row {seq} of {table} is not found by its id")


def check_picture(connection: sqlite3.Connection, ident: bytes) -> None:
    """Raises DamagedDatabase when the picture's CRC in the row of a waiting frame or received picture is not the one
    that the check value of its record or description covers."""
    for crc, raw in connection.execute(f"SELECT picture_crc, record FROM frames WHERE id = ? AND {WAITING}", (ident,)):
        try:
            whole = Record.parse(raw).picture_crc == crc
        except DamagedRecord:
            whole = False
        if not whole:
            raise DamagedDatabase("the row of a frame")
    for crc, meta, checked in connection.execute(
        "SELECT picture_crc, meta, checked FROM originals WHERE id = ?", (ident,)
    ):
        if not isinstance(meta, bytes) or not isinstance(crc, int) or zlib.crc32(meta, crc) != checked:
            raise DamagedDatabase("the row of a received picture")


def set_unknown_arrivals(connection: sqlite3.Connection, now_ms: int) -> None:
    """Frames and received pictures whose time of arrival is not known age from now on."""
    for query in (
        f"UPDATE frames SET arrived_ms = ? WHERE arrived_ms = 0 AND {WAITING}",
        "UPDATE originals SET arrived_ms = ? WHERE arrived_ms = 0",
    ):
        connection.execute(query, (now_ms,))


def cost(record: Record) -> int:
    """What the frame takes of the cap, in bytes."""
    return len(record.to_bytes()) + ROW_BYTES


def insert(connection: sqlite3.Connection, record: Record, arrived_ms: int = 0) -> None:
    """Adds the frame as SPOOLED."""
    raw = record.to_bytes()
    connection.execute(
        "INSERT INTO frames (id, state, priority, cost, size, width, height, rate, picture_crc, created_ms, record,"
        " arrived_ms, original_width, original_height, captured_from) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            record.id.bytes,
            State.SPOOLED.value,
            record.priority,
            len(raw) + ROW_BYTES,
            len(record.data),
            record.width,
            record.height,
            record.rate,
            record.picture_crc,
            record.created_ms,
            raw,
            arrived_ms,
            record.original_width,
            record.original_height,
            record.captured_from.value,
        ),
    )


def insert_history(
    connection: sqlite3.Connection, ident: bytes, state: State, numbers: Mapping[str, int], reason: str
) -> None:
    """Adds the row of a finished frame; `numbers` has its other columns."""
    names = "priority, cost, size, width, height, rate, picture_crc, created_ms, finished_ms"
    connection.execute(
        f"INSERT INTO frames (id, state, reason, {names}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (ident, state.value, reason, *(numbers[name] for name in names.split(", "))),
    )


def insert_recovery(connection: sqlite3.Connection, at_ms: int, lost: int, complete: bool) -> None:
    """Records what a recovery lost; `complete` where nothing else can be missing."""
    connection.execute("INSERT INTO recoveries (at_ms, lost, complete) VALUES (?,?,?)", (at_ms, lost, int(complete)))


def insert_received(connection: sqlite3.Connection, received: ReceivedPicture, arrived_ms: int = 0) -> int:
    """Adds the received picture; returns what it takes of the cap, in bytes."""
    meta, size = received.meta(), len(received.picture) + ROW_BYTES
    connection.execute(
        "INSERT INTO originals (id, priority, cost, width, height, picture_crc, created_ms, meta, checked, picture,"
        " arrived_ms) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            received.id.bytes,
            received.priority,
            size,
            received.width,
            received.height,
            received.picture_crc,
            received.created_ms,
            meta,
            received.check(meta),
            received.picture,
            arrived_ms,
        ),
    )
    return size
