"""The connection pool of the store. The only module that knows how SQLite and PostgreSQL differ.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit survives a power cut. PostgreSQL keeps its defaults, which
promise the same. Every error of the driver becomes a :class:`~cloud_decoder.errors.StoreUnavailable`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from aeic.errors import remedy
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import migrate
from cloud_decoder.store.records import Lease
from cloud_decoder.store.schema import metadata

T = TypeVar("T")

CLOCK_SECONDS = 30.0
"""How long a measured difference to the database's clock is used."""
TRIES = 5
RETRYABLE = {"40001", "40P01"}
"""PostgreSQL's codes for a transaction that conflicted with another one and may be tried again."""
DAMAGE_MESSAGES = ("malformed", "not a database")
"""Parts of SQLite's messages about pages that are not what SQLite has written."""
UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError)
"""What damaged text, ids and numbers raise while they are read: ``UnicodeDecodeError`` is a ``ValueError``."""
MOST_ROWS = 1 << 53
"""No store has numbered as many rows."""
_OPEN: Counter[str] = Counter()
"""The SQLite files that this process has open: reading the index of a log besides would drop SQLite's locks on it."""
REMEDY = "look at 'aeic store check', then restore a backup with 'aeic store restore'"
POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # No statement of ours takes this long, and an open transaction would keep vacuum from the queue's dead rows.
    "options": "-c statement_timeout=60000 -c idle_in_transaction_session_timeout=60000",
}


class Database:
    """``url`` is SQLAlchemy's, ``sqlite:///path`` or ``postgresql+psycopg://...``; missing tables are created."""

    def __init__(self, url: str | sa.URL) -> None:
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = (
            {"connect_args": {"check_same_thread": False}}
            if self.sqlite
            else {"pool_pre_ping": True, "pool_size": 8, "connect_args": POSTGRESQL}
        )
        try:
            self.engine = sa.create_engine(self.url, **options)
        except ModuleNotFoundError as error:
            raise StoreUnavailable(f"{self.url.drivername} needs {error.name}: {remedy('fleet')}") from error
        # SQLite has one writer, and waiting for this lock is cheaper than its busy handler, which sleeps. PostgreSQL
        # needs no lock.
        self._write_lock = threading.Lock() if self.sqlite else None
        self._skew = (-CLOCK_SECONDS, 0.0)
        if self.sqlite:
            event.listen(self.engine, "connect", _open_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self.insert: Any = sqlite.insert if self.sqlite else postgresql.insert
        self.damage = ""
        """What SQLite said when it met a damaged page; a check that finds none empties it."""
        self._files: dict[str, tuple[int, int]] = {}
        self._keeper: sqlite3.Connection | None = None
        self._keeper_lock = threading.Lock()
        self._checkpointed = False
        self._closed = False
        if self.path is not None:
            self._real_path = os.path.realpath(self.path)
            _OPEN[self._real_path] += 1
        try:
            migrate.ensure(self.engine, self.write)
            self._correct_numbers()
            self._watch()
        except UNREADABLE as error:
            self.close()
            if not self.sqlite:
                raise
            raise StoreUnavailable(f"the store is damaged ({type(error).__name__}: {error}): {REMEDY}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        with self._keeper_lock:
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None
        if self.path is not None and not self._closed:
            _OPEN[self._real_path] -= 1
        self._closed = True

    @property
    def path(self) -> str | None:
        """The file of an SQLite database; None for one in memory, and for PostgreSQL."""
        return path_of(self.url)

    @property
    def replaced(self) -> str:
        """Why nothing more may be written: the file or its log was deleted or replaced, and SQLite would write to the
        old one.

        Empty where all is well. Where only the log is gone, what it holds is moved into the file at once.
        """
        gone = [path for path, identity in self._files.items() if _identity(path) != identity]
        if not gone:
            return ""
        changed = f"{gone[0]} was deleted or replaced while the service runs"
        if self.path in gone:
            return (
                f"the database file {changed}: before you stop the service, copy what it still holds from"
                f" /proc/{os.getpid()}/fd, then restore the file"
            )
        if problem := self._checkpoint():
            return (
                f"the database's log {changed}, and what it holds cannot be moved into {self.path} ({problem}): before"
                f" you stop the service, copy both from /proc/{os.getpid()}/fd"
            )
        return (
            f"the database's log {changed}; what it held is in {self.path} now: remove {gone[0]} if it is there, then"
            " start the service again"
        )

    def _must_be_there(self) -> None:
        if gone := self.replaced:
            raise StoreUnavailable(gone)

    def _watch(self) -> None:
        """Remember which files SQLite has open, and keep one connection open.

        As long as one is open, SQLite itself deletes no log. A new connection would not find a deleted one, so only
        this connection can read it safely.
        """
        if self.path is None:
            return
        try:
            self._keeper = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5.0)
            self._keeper.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()  # opens the log
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store cannot be read ({error}): repair the database") from error
        paths = (self.path, f"{self.path}-wal")
        self._files = {path: _identity(path) for path in paths if os.path.exists(path)}

    def _correct_numbers(self) -> None:
        """SQLite calls the disk full where the number of a table's last row is the largest there is: a flipped bit."""
        if not self.sqlite:
            return
        largest = "SELECT name FROM sqlite_sequence WHERE seq > :most OR typeof(seq) != 'integer'"
        with self.write() as connection:
            for name in connection.execute(sa.text(largest), {"most": MOST_ROWS}).scalars().all():
                if name in metadata.tables:
                    last = f"(SELECT COALESCE(MAX(seq), 0) FROM {name})"
                    update = f"UPDATE sqlite_sequence SET seq = {last} WHERE name = :name"
                    connection.execute(sa.text(update), {"name": name})

    def _checkpoint(self) -> str:
        """Move what the log holds into the database file, once; why it cannot be done, or nothing."""
        with self._keeper_lock:
            if self._checkpointed:
                return ""
            if self._keeper is None:
                return "the store is closed"
            try:
                busy, _, _ = self._keeper.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            except sqlite3.Error as error:
                return str(error)
            self._checkpointed = not busy
            return "it is in use" if busy else ""

    def clock(self) -> float:
        """Seconds since 1970 by the database's clock: the workers of a fleet need one clock for their leases."""
        if self.sqlite:
            return time.time()
        measured, skew = self._skew
        if time.monotonic() - measured >= CLOCK_SECONDS:
            started = time.time()
            with self.read() as connection:
                there = float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")))
            skew = there - (started + time.time()) / 2
            self._skew = (time.monotonic(), skew)
        return time.time() + skew

    def commit(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction, again if it conflicted with another one (a deadlock)."""
        for _ in range(TRIES - 1):
            try:
                with self.write() as connection:
                    return work(connection)
            except StoreUnavailable as error:
                original = getattr(error.__cause__, "orig", None)
                if getattr(original, "sqlstate", None) not in RETRYABLE:
                    raise
        with self.write() as connection:
            return work(connection)

    def insert_rows(self, connection: sa.Connection, insert: Any, values: list[dict[str, Any]]) -> sa.CursorResult[Any]:
        """Execute ``insert`` for all ``values``, which have the same keys.

        PostgreSQL gets an array for each column, not a placeholder for each value. The statement's text is then always
        the same, which costs the client a tenth.
        """
        if self.sqlite:
            return connection.execute(insert, values)
        names = list(values[0])
        given = self.columns({name: insert.table.c[name].type for name in names})
        return connection.execute(insert.from_select(names, given), transposed(values))

    def columns(self, types: dict[str, Any]) -> sa.Select[Any]:
        """PostgreSQL: rows out of one array parameter for each column."""
        return sa.select(
            *(sa.func.unnest(sa.bindparam(name, type_=sa.ARRAY(kind))).label(name) for name, kind in types.items())
        )

    def among(self, column: sa.ColumnElement[int], values: Iterable[int]) -> sa.ColumnElement[bool]:
        """``column IN values``; on PostgreSQL as one array, so that the statement's text is always the same."""
        listed = list(values)
        if self.sqlite:
            return column.in_(listed)
        return column == sa.func.any(sa.cast(listed, sa.ARRAY(sa.BigInteger)))

    def leased(
        self, seq: sa.ColumnElement[int], owner: sa.ColumnElement[Any], leases: Iterable[Lease]
    ) -> sa.ColumnElement[bool]:
        """``(seq, owner)`` is one of ``leases``; on PostgreSQL as two arrays."""
        listed = list(leases)
        if self.sqlite:
            return sa.tuple_(seq, owner).in_([(one.seq, one.token) for one in listed])
        seqs = sa.cast([one.seq for one in listed], sa.ARRAY(sa.BigInteger))
        tokens = sa.cast([one.token for one in listed], sa.ARRAY(sa.String))
        return sa.tuple_(seq, owner).in_(sa.select(sa.func.unnest(seqs), sa.func.unnest(tokens)))

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that commits at the end. ``StoreUnavailable`` where the store cannot write.

        ``durable`` False is for what may be lost in a power cut, such as a lease: the database then confirms a commit
        before it is on disk. The transaction is atomic all the same.
        """
        self._must_be_there()
        try:
            if self._write_lock is None:
                with self.engine.begin() as connection:
                    if not durable:
                        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                    yield connection
            else:
                engine = self.engine.execution_options(aeic_write="FULL" if durable else "NORMAL")
                with self._write_lock, engine.begin() as connection:
                    yield connection
                self._must_be_there()  # else the commit has reached a file that no restart will find
        except SQLAlchemyError as error:
            raise self._unavailable(error, "the store cannot commit", "free its disk or repair the database") from error
        except UnicodeDecodeError as error:
            raise self._unreadable(error) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading, without a transaction that could block others."""
        self._must_be_there()
        engine = self.engine if self.sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._unavailable(error, "the store cannot be read", "repair the database") from error
        except UnicodeDecodeError as error:
            raise self._unreadable(error) from error

    def _unavailable(self, error: SQLAlchemyError, what: str, remedy: str) -> StoreUnavailable:
        cause = _cause(error)
        if self.sqlite and any(words in cause for words in DAMAGE_MESSAGES):
            self.damage, remedy = cause, REMEDY
        return StoreUnavailable(f"{what} ({cause}): {remedy}")

    def _unreadable(self, error: UnicodeDecodeError) -> StoreUnavailable:
        self.damage = f"a text in it is damaged: {error}"
        return StoreUnavailable(f"the store cannot be read ({error}): {REMEDY}")


def path_of(url: sa.URL) -> str | None:
    """The file of an SQLite database; None for one in memory, and for PostgreSQL."""
    sqlite_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return url.database if sqlite_file else None


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether this process has the SQLite file open, by this or another path."""
    return _OPEN[os.path.realpath(path)] > 0


def transposed(values: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, for :meth:`Database.columns`."""
    return {name: [row[name] for row in values] for name in values[0]}


def _identity(path: str) -> tuple[int, int]:
    """Device and inode; zeros where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _cause(error: SQLAlchemyError) -> str:
    """The driver's message. SQLAlchemy's own would contain the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__).strip()


def _open_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite begins transactions, not the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails where another process wrote in between. IMMEDIATE waits
    # instead.
    write = connection.get_execution_options().get("aeic_write")
    if write:
        connection.exec_driver_sql(f"PRAGMA synchronous={write}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
