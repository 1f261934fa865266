"""A machine with a store that fails on demand: statements, commits, answers, power cuts, and wrong clocks.

Time is simulated: the true time ``truth`` in seconds since 1970, the wall clock's ``error``, and a ``steady`` clock.
simulation.py scripts what happens on it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from cloud_decoder.store.clock import DAY, TrustedClock
from cloud_decoder.store.schema import metadata, store_clock
from cloud_decoder.store.store import Store

T = TypeVar("T")

NOW = 1_700_000_000.0
_STATEMENTS: Any = sa.util.LRUCache(1000)


class Lost(Exception):
    """The change was committed, and its answer was lost."""


class Machine:
    """``store`` is in a folder of its own below ``folder``. With ``fails_in`` set to n, the statement or commit after
    the next n fails; with ``lose_next``, the answer of the next :meth:`call` is lost."""

    def __init__(self, rng: random.Random, open_store: Callable[[Path], Store], folder: Path) -> None:
        self.rng = rng
        self._open_store, self._folder, self._disks = open_store, folder, 0
        self.truth, self.error, self.steady = NOW, 0.0, 1000.0
        self.fails_in: int | None = None
        self.lose_next = False
        self.store = self._open(folder / "0")

    def _open(self, place: Path) -> Store:
        self.place = place
        store = self._open_store(place)
        database = store.database
        database.clock = lambda: self.truth + self.error  # type: ignore[method-assign]  # another clock for the test
        database.engine._compiled_cache = _STATEMENTS  # else each scenario would compile the same statements
        store.trusted_clock = self._clock(store)
        sa.event.listen(database.engine, "before_cursor_execute", self._fault)
        sa.event.listen(database.engine, "commit", self._fault)
        if database.sqlite:
            sa.event.listen(database.engine, "connect", _keep_log)
            database.engine.dispose()  # connections from before the listener
            self._durable = self._log_bytes()
            write = database.write

            @contextmanager
            def watched(durable: bool = True) -> Iterator[sa.Connection]:
                with write(durable) as connection:
                    yield connection
                if durable:
                    self._durable = self._log_bytes()

            database.write = watched  # type: ignore[method-assign]  # keeps what is durable
        return store

    def _clock(self, store: Store) -> TrustedClock:
        return TrustedClock(store.database, 7 * DAY, steady=lambda: self.steady)

    def _log_bytes(self) -> int:
        log = self.place / "store.db-wal"
        return log.stat().st_size if log.exists() else 0

    def _fault(self, *_: object) -> None:
        if self.fails_in is not None:
            self.fails_in -= 1
            if self.fails_in < 0:
                self.fails_in = None
                raise OperationalError("", None, Exception("disk I/O error"))

    def call(self, work: Callable[[], T]) -> T:
        """A change of the store. Its answer may be lost."""
        result = work()
        if self.lose_next:
            self.lose_next = False
            raise Lost
        return result

    def lose_power(self) -> None:
        """The machine stops: every commit that was not durable may be gone. On PostgreSQL the database goes on."""
        if self.store.database.sqlite:
            self._disks += 1
            old, new = self.place, self._folder / str(self._disks)
            new.mkdir()
            shutil.copy(old / "store.db", new / "store.db")
            log = (old / "store.db-wal").read_bytes() if (old / "store.db-wal").exists() else b""
            kept = self.rng.choice(
                [self._durable, len(log), self.rng.randint(self._durable, max(self._durable, len(log)))]
            )
            (new / "store.db-wal").write_bytes(log[:kept])
            self.store.close()
            shutil.rmtree(old)
            self.store = self._open(new)
        else:
            self.store.trusted_clock = self._clock(self.store)

    def pass_time(self, seconds: float) -> None:
        self.truth += seconds
        self.steady += seconds

    def look(self) -> None:
        """What a service does at its start, before it stores frames."""
        self.store.trusted_clock.look()


def _keep_log(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA wal_autocheckpoint=0")  # everything since the start stays in the log


class Stores:
    """Empty stores for scenarios: copies of one SQLite file, or one PostgreSQL database that is emptied."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._template, self._postgresql = folder / "template.db", None
        if url:
            self._postgresql = Store(url)
        else:
            store = Store(f"sqlite:///{self._template}")
            with store.database.write() as connection:
                connection.exec_driver_sql("SELECT 1")
            store.close()

    def __call__(self, place: Path) -> Store:
        """The store in the folder ``place``; a new one where there is none."""
        if self._postgresql is not None:
            url = self._postgresql.url
            with self._postgresql.database.write() as connection:
                # A delete would count in the tallies.
                names = [table.name for table in metadata.sorted_tables if table is not store_clock]
                connection.exec_driver_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY")
                connection.execute(sa.update(store_clock).values(seen_ms=None))
            return Store(url)
        place.mkdir(exist_ok=True)
        if not (place / "store.db").exists():
            shutil.copy(self._template, place / "store.db")
        return Store(f"sqlite:///{place / 'store.db'}")
