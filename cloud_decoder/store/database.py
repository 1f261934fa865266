"""One connection pool, two databases. The only file that knows how SQLite and PostgreSQL differ.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit survives a power cut. PostgreSQL keeps its defaults, which
promise the same. Whatever goes wrong in the driver is a :class:`~cloud_decoder.errors.StoreUnavailable`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import migrate

T = TypeVar("T")

CLOCK_SECONDS = 30.0
"""How long a measured difference to the database's clock is believed."""
TRIES = 5
RETRYABLE = {"40001", "40P01"}
"""PostgreSQL's codes for a transaction that lost against another and may simply be tried again."""
POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Nothing of ours takes this long; a forgotten transaction would keep vacuum from the queue's dead rows.
    "options": "-c statement_timeout=60000 -c idle_in_transaction_session_timeout=60000",
}


class Database:
    """``url`` is SQLAlchemy's, ``sqlite:///path`` or ``postgresql+psycopg://...``; tables are made where missing."""

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
            raise StoreUnavailable(f"{self.url.drivername} needs {error.name}: pip install 'aeic[fleet]'") from error
        # SQLite has one writer; waiting here costs nothing, while its own busy handler sleeps. PostgreSQL needs no
        # lock.
        self._write_lock = threading.Lock() if self.sqlite else None
        self._skew = (-CLOCK_SECONDS, 0.0)
        if self.sqlite:
            event.listen(self.engine, "connect", _open_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self.insert: Any = sqlite.insert if self.sqlite else postgresql.insert
        try:
            migrate.ensure(self.engine, self.write)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def clock(self) -> float:
        """Seconds since 1970 as the database counts them: the workers of a fleet need one clock for their leases."""
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
        """``work`` in one transaction; once more where it lost against another (a deadlock)."""
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

        PostgreSQL gets an array for each column, not a placeholder for each value: a statement of ever the same text,
        which costs the client a tenth.
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

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction that commits at the end. A store that cannot write says :class:`StoreUnavailable`.

        ``durable`` False is for what may be lost in a power cut, such as a lease: PostgreSQL then answers a commit
        before its disk has it. Nothing is ever half there.
        """
        try:
            if self._write_lock is None:
                with self.engine.begin() as connection:
                    if not durable:
                        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                    yield connection
            else:
                with self._write_lock, self.engine.execution_options(aeic_write=True).begin() as connection:
                    yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable(
                f"the store cannot commit ({_cause(error)}): free its disk or mend the database"
            ) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Reading without a transaction that somebody would have to wait for."""
        engine = self.engine if self.sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"the store cannot be read ({_cause(error)}): mend the database") from error


def transposed(values: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, for :meth:`Database.columns`."""
    return {name: [row[name] for row in values] for name in values[0]}


class StoreBase:
    """What the parts of the store stand on. ``aging_seconds``: this much waiting is worth one of priority."""

    def __init__(self, database: Database, aging_seconds: float = 2.0) -> None:
        self.database, self.aging_seconds = database, aging_seconds
        self.clock, self.close = database.clock, database.close

    def turn(self, now: float, priority: int) -> int:
        """Where in the queue a job of that priority goes: smaller is sooner."""
        return int(now // self.aging_seconds) - priority


def _cause(error: SQLAlchemyError) -> str:
    """The driver's own words: SQLAlchemy's carry the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__).strip()


def _open_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin and commit by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails when another process wrote in between; IMMEDIATE waits
    # instead.
    write = connection.get_execution_options().get("aeic_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
