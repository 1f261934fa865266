"""The one thread that writes to the spool: group commit, and what happens when a commit fails.

Operations handed in during a commit go into the next one together, so a burst costs one sync instead of one per frame.
When a transaction fails, its operations are retried one by one, so that only the failing one is refused. After
damage, or I/O errors that last, the file is reopened, and rebuilt if necessary (database.py); an operation that met
damage is retried once after that. While opening fails, every operation is refused at once, and opening is retried.
Independent of what the operations do.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_encoder.errors import SpoolError, SpoolFull
from edge_encoder.spool import database
from edge_encoder.spool.disk_reserve import DiskReserve
from edge_encoder.spool.system import System

log = logging.getLogger("aeic.edge.spool")

_BATCH = 256  # operations in one commit at most
# I/O errors may last this long before the file is reopened, and this long pass between two attempts to open it.
_RETRY_SECONDS = 1.0
# Errors of one transaction, after which the connection still works.
_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_NOMEM)


@dataclass(slots=True)
class Op:
    """An operation: `apply` runs inside a transaction and may raise SpoolError before it has written anything;
    `after` runs once the commit is durable, before the future ends."""

    apply: Callable[[sqlite3.Connection], Any]
    after: Callable[[], None] | None = None
    done: Future[Any] = field(default_factory=Future)


class Owner(Protocol):
    """What the writer needs of the spool; all called in its thread."""

    def recount(self, connection: sqlite3.Connection) -> None:
        """Restores the counts kept in memory, after a failure."""

    def prune(self, connection: sqlite3.Connection) -> None:
        """Runs at the end of every transaction."""

    def reopen(self, *, damaged: bool) -> sqlite3.Connection:
        """Reopens the file, and rebuilds a damaged one; the old connection is closed."""

    def misplaced(self) -> bool:
        """Whether the file or its log is no longer where it was opened."""

    def put_back(self, connection: sqlite3.Connection) -> None:
        """Writes the content of such a file to its path again."""


class Writer:
    """Owns the writing connection.

    An operation is done when its transaction is committed and synced to the disk: the connection is that of
    `database.connect`, with synchronous=FULL. On a full disk the `reserve` is used for deliveries, and reserved again
    as soon as the disk has the space. `failure`: why nothing can be written now. `restarts`: programming errors
    survived.
    """

    def __init__(self, connection: sqlite3.Connection, owner: Owner, reserve: DiskReserve, system: System) -> None:
        self.failure = ""
        self.restarts = 0
        self.last_commit = system.steady_seconds()
        self._connection: sqlite3.Connection | None = connection
        self._owner = owner
        self._reserve = reserve
        self._system = system
        self._retry_at = 0.0
        self._failing_since: float | None = None
        self._queue: queue.SimpleQueue[Op | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="spool", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def submit(self, op: Op) -> Future[Any]:
        """Queues the operation; the future ends after its commit or with a SpoolError."""
        if self._closed:
            op.done.set_exception(SpoolError("the spool is closed; the service is stopping"))
        else:
            self._queue.put(op)
        return op.done

    def close(self) -> None:
        """Commits what was handed in and ends the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._close_connection()

    def _loop(self) -> None:
        stop = False
        while not stop:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            stop = None in batch
            # From here on an operation cannot be cancelled; those cancelled before are left out.
            ops = [op for op in batch if op is not None and op.done.set_running_or_notify_cancel()]
            try:
                self._commit(ops)
            except BaseException as error:  # a programming error must neither end the thread nor leave a caller waiting
                log.exception("unexpected error in the spool's writer; it continues")
                self.restarts += 1
                _refuse(ops, SpoolError(f"the spool failed ({error!r}); see the log"))
                self._reopen(damaged=False)

    def _commit(self, batch: list[Op], *, rebuilt: bool = False) -> None:
        connection = self._usable()
        if connection is None:
            _refuse(batch, SpoolError(f"the spool cannot write ({self.failure}); look at its disk"))
            return
        results: list[tuple[Op, Any, SpoolError | None]] = []
        written = connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            for op in batch:
                try:
                    results.append((op, op.apply(connection), None))
                except SpoolError as refused:
                    results.append((op, None, refused))
            self._owner.prune(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._undo(connection, error)
            full = database.is_full(error)
            if full and self._reserve.spend():
                log.error("the disk is full: no frame is accepted until it has space; deliveries are still recorded")
                self._write_back()
                self._commit(batch)
            elif len(batch) > 1:
                for op in batch:
                    self._commit([op])
            elif database.is_damage(error) and self._connection is not None and not rebuilt:
                self._commit(batch, rebuilt=True)
            else:
                log.error("the spool cannot write: %s", error)
                kind = SpoolFull if full else SpoolError
                _refuse(batch, kind(f"the spool cannot write ({error}); look at its disk"))
            return
        if connection.total_changes > written:  # an empty transaction does not touch the disk
            self.last_commit = self._system.steady_seconds()
            self._works()
        if not self._reserve.whole:
            self._write_back()
            if self._reserve.make():
                log.info("the disk has space again")
        for op, result, refusal in results:
            if refusal is not None:
                op.done.set_exception(refusal)
                continue
            if op.after is not None:
                op.after()
            op.done.set_result(result)

    def _write_back(self) -> None:
        """Moves SQLite's log into the database and truncates it, unless it is being read (verification.py): that frees
        space on a full disk."""
        if self._connection is None:
            return
        (wait,) = self._connection.execute("PRAGMA busy_timeout").fetchone()
        try:
            self._connection.execute("PRAGMA busy_timeout=0")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            log.warning("the spool cannot write its log back: %s", error)
        finally:
            self._connection.execute(f"PRAGMA busy_timeout={wait}")

    def _undo(self, connection: sqlite3.Connection, error: Exception) -> None:
        """Rolls back; reopens the file after damage, or when I/O errors last."""
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
            self._fails(error)
        damaged = database.is_damage(error)
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            lasting = self._system.steady_seconds() - (self._failing_since or math.inf) > _RETRY_SECONDS
            if not damaged and not lasting:
                self._owner.recount(connection)
                return
        except sqlite3.Error as again:
            log.error("the spool cannot roll back: %s", again)
        self._reopen(damaged=damaged)

    def _fails(self, error: Exception) -> None:
        self.failure = str(error) or type(error).__name__
        if self._failing_since is None:
            self._failing_since = self._system.steady_seconds()

    def _works(self) -> None:
        if self.failure:
            log.info("the spool works again")
        self.failure, self._failing_since = "", None

    # -- the connection ----------------------------------------------------------------------------------------

    def _usable(self) -> sqlite3.Connection | None:
        """The connection, reopened if necessary; None when that does not succeed now."""
        connection = self._connection
        misplaced = connection is not None and self._owner.misplaced()
        if (connection is None or misplaced) and self._system.steady_seconds() < self._retry_at:
            return None
        if connection is not None and misplaced:
            log.error("the spool's file or its log was deleted or replaced while in use; it is written again")
            if not self._attempt(lambda: self._owner.put_back(connection)):
                return None
            self._reopen(damaged=False)
        elif connection is None:
            self._reopen(damaged=False)
        return self._connection

    def _reopen(self, *, damaged: bool) -> None:
        self._close_connection()

        def reopen() -> None:
            self._connection = self._owner.reopen(damaged=damaged)

        self._attempt(reopen)

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except (OSError, sqlite3.Error, SpoolError) as error:
            if str(error) != self.failure:
                log.error("the spool cannot be opened: %s", error)
            self._fails(error)
            self._retry_at = self._system.steady_seconds() + _RETRY_SECONDS
            return False
        self._retry_at = 0.0
        return True

    def _close_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _refuse(batch: list[Op], error: SpoolError) -> None:
    for op in batch:
        if not op.done.done():
            op.done.set_exception(error)
