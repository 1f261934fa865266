"""The one thread that writes to the spool: group commit, and what to do when a commit fails.

Changes handed in while a commit is under way go into the next one together, so a burst costs one sync, not one per
frame. When a transaction fails, its changes are tried again one by one, so that only the impossible one is refused;
a broken file is rebuilt first (spool_file.py). Knows nothing of what the changes are.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from edge_encoder.errors import SpoolError, SpoolFull
from edge_encoder.spool import database
from edge_encoder.spool.disk_reserve import DiskReserve

log = logging.getLogger("aeic.edge.spool")

_BATCH = 256  # changes in one commit at most


@dataclass(slots=True)
class Op:
    """A change: `apply` runs inside a transaction and may raise SpoolError before it has written anything;
    `after` runs once the commit is safe, before the future ends."""

    apply: Callable[[sqlite3.Connection], Any]
    after: Callable[[], None] | None = None
    done: Future[Any] = field(default_factory=Future)


class Writer:
    """Owns the writing connection. `recount(connection)` is called after a failure, to make good what is counted in
    memory; `rebuild()` returns a new connection for a broken file; `prune` joins every transaction. On a full disk the
    `reserve` is spent on what is under way, and taken again as soon as the disk has the room."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        recount: Callable[[sqlite3.Connection], None],
        rebuild: Callable[[], sqlite3.Connection],
        prune: Callable[[sqlite3.Connection], None],
        reserve: DiskReserve,
    ) -> None:
        self.connection = connection
        self._reserve = reserve
        self._recount = recount
        self._rebuild = rebuild
        self._prune = prune
        self._queue: queue.SimpleQueue[Op | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="spool", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def submit(self, op: Op) -> Future[Any]:
        """Queues the change; the future ends after its commit or with a SpoolError."""
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
        self.connection.close()

    def _loop(self) -> None:
        stop = False
        while not stop:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            stop = None in batch
            # From here on it cannot be cancelled; whoever was cancelled before wants nothing any more.
            self._commit([op for op in batch if op is not None and op.done.set_running_or_notify_cancel()])

    def _commit(self, batch: list[Op]) -> None:
        results: list[tuple[Op, Any, SpoolError | None]] = []
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            for op in batch:
                try:
                    results.append((op, op.apply(self.connection), None))
                except SpoolError as refused:
                    results.append((op, None, refused))
            self._prune(self.connection)
            self.connection.execute("COMMIT")
        except Exception as error:  # whatever it was, the thread must live on and the callers must hear of it
            self._undo(error)
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            if full and self._reserve.spend():
                log.error("the disk is full: no frame is taken until it has room; deliveries are still written")
                self._write_back()
                self._commit(batch)
                return
            if len(batch) > 1:
                for op in batch:
                    self._commit([op])
                return
            log.error("spool cannot write: %s", error)
            kind = SpoolFull if full else SpoolError
            for op in batch:
                op.done.set_exception(kind(f"the spool cannot write ({error}); look at its disk"))
            return
        if not self._reserve.whole:
            self._write_back()
            if self._reserve.make():
                log.info("the disk has room again")
        for op, result, refusal in results:
            if refusal is not None:
                op.done.set_exception(refusal)
                continue
            if op.after is not None:
                op.after()
            op.done.set_result(result)

    def _write_back(self) -> None:
        """Moves SQLite's log into the spool's file and cuts it to nothing: there is the room on a full disk."""
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            log.warning("spool cannot write its log back: %s", error)

    def _undo(self, error: Exception) -> None:
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and database.is_damage(error):
                self.connection = self._rebuild()
            self._recount(self.connection)
        except sqlite3.Error as again:
            log.error("spool cannot roll back: %s", again)
