"""The spool: frames wait here, on disk, until the cloud has acknowledged them.

    put -> SPOOLED -> (lease) SENDING -> DELIVERED | REJECTED        DROPPED: the cap or the age limit took it

Promises. A put that returned survives a power cut (SQLite WAL, synchronous=FULL; writer.py commits in groups). A lease
lives in memory only (leases.py), so a restart sends again what was under way. A frame carries its own check value
(records.py); a damaged one is dropped and counted, never sent. Knows nothing of pictures, HTTP or gRPC.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edge_encoder import spool_file
from edge_encoder.leases import Leases
from edge_encoder.ledger import ENTRY, Changes, Ledger
from edge_encoder.records import DamagedRecord, Entry, Record, SpoolError, SpoolFull, State
from edge_encoder.reserve import Reserve
from edge_encoder.settings import FullPolicy
from edge_encoder.writer import Op, Writer


class Spool:
    """The outbox of one edge box in `folder`. Thread safe. `on_change(id, state, reason)` is called from the writer's
    thread after each commit. `unreadable` counts frames lost to damage, since the start."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 256 << 20,
        full_policy: FullPolicy = "refuse",
        history_frames: int = 20_000,
        on_change: Callable[[uuid.UUID, State, str], None] | None = None,
    ) -> None:
        self.path = folder / "spool.sqlite3"
        self.on_change = on_change
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = (folder / "spool.lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise SpoolError(f"another edge already uses {folder}; stop it or set AEIC_EDGE_DATA_DIR") from None
        connection, self.unreadable = spool_file.open_spool(self.path)
        self._reader = spool_file.connect(self.path)
        self._reading = threading.Lock()
        self._leases = Leases()
        self._ledger = ledger = Ledger(self._leases, max_bytes, full_policy, history_frames)
        ledger.recount(connection)
        self._reserve = Reserve(folder / "spool.reserve")
        self._writer = Writer(
            connection, recount=ledger.recount, rebuild=self._rebuild, prune=ledger.prune, reserve=self._reserve
        )

    def put(self, record: Record) -> Future[Entry]:
        """Keeps the frame; the future ends after the commit, so its result may be promised to the client.

        The same id with the same picture gives the entry that is there already. Raises (in the future) SpoolFull,
        IdTaken, or SpoolError when the disk fails.
        """

        def put(connection: sqlite3.Connection, changes: Changes) -> Entry:
            if not self._reserve.whole:  # what room there is belongs to the acknowledgements (reserve.py)
                raise SpoolFull(f"the disk of {self.path.parent} is full; make room on it, or wait for the uplink")
            return self._ledger.put(connection, record, changes)

        return self._change(put)

    def finish(self, ident: uuid.UUID, state: State, reason: str = "") -> Future[bool]:
        """Marks a frame DELIVERED, REJECTED or DROPPED and frees its bytes; False if it was finished before."""
        return self._change(
            lambda connection, changes: self._ledger.finish(connection, ident.bytes, state, reason, changes)
        )

    def expire(self, older_than_ms: int) -> Future[int]:
        """Drops frames created before that moment, except those made before the clock was set. Returns how many."""
        return self._change(lambda connection, changes: self._ledger.expire(connection, older_than_ms, changes))

    def get(self, ident: uuid.UUID) -> Entry | None:
        """The frame's entry, or None when it was never here or its history is gone."""
        row = self._read_one(f"SELECT {ENTRY} FROM frames WHERE id = ?", (ident.bytes,))
        return None if row is None else self._ledger.entry(row)

    def lease(self, limit: int) -> list[Record]:
        """Up to `limit` frames to send now, most urgent first, then oldest first. Each must be finished or released."""
        busy = self._leases.busy()
        rows = self._read(
            "SELECT id FROM frames WHERE state = 0 ORDER BY priority DESC, seq LIMIT ?", (limit + len(busy),)
        )
        records: list[Record] = []
        for (ident,) in rows:
            if ident in busy or len(records) >= limit:
                continue
            row = self._read_one("SELECT record FROM frames WHERE id = ? AND state = 0", (ident,))
            if row is None:
                continue
            try:
                record = Record.parse(row[0] or b"")
            except DamagedRecord as error:
                self.unreadable += 1
                self.finish(uuid.UUID(bytes=ident), State.DROPPED, f"damaged on disk: {error}")
                continue
            self._leases.take(ident)
            records.append(record)
        return records

    def oldest(self) -> Record | None:
        """The oldest readable frame that waits, whether or not it is leased; it stays as it is."""
        for (raw,) in self._read("SELECT record FROM frames WHERE state = 0 ORDER BY seq LIMIT 16", ()):
            with contextlib.suppress(DamagedRecord):
                return Record.parse(raw or b"")
        return None

    def release(self, idents: Iterable[uuid.UUID], delay_seconds: float = 0.0) -> None:
        """Gives leased frames back unsent; each is offered again after the delay, doubled per attempt (leases.py)."""
        for ident in idents:
            self._leases.release(ident.bytes, delay_seconds)

    def next_retry_seconds(self) -> float | None:
        """Seconds until a resting frame may be sent again, or None when none rests."""
        return self._leases.next_retry_seconds()

    def oldest_age_seconds(self) -> float:
        """Age of the oldest frame not yet acknowledged; 0 when there is none or the clock went back."""
        row = self._read_one("SELECT MIN(created_ms) FROM frames WHERE state = 0", ())
        return 0.0 if row is None or row[0] is None else max(0.0, time.time() - row[0] / 1000)

    @property
    def max_bytes(self) -> int:
        """The cap on pending_bytes."""
        return self._ledger.max_bytes

    @property
    def full_policy(self) -> FullPolicy:
        """What happens at the cap."""
        return self._ledger.full_policy

    @property
    def pending_frames(self) -> int:
        """Frames not yet acknowledged."""
        return self._ledger.frames

    @property
    def pending_bytes(self) -> int:
        """Their bytes, as counted against the cap."""
        return self._ledger.bytes

    @property
    def alive(self) -> bool:
        """False once nothing can be written any more."""
        return self._writer.alive

    def close(self) -> None:
        """Commits what was handed in and closes the file. A second call does nothing."""
        if not self._lock_file.closed:
            self._writer.close()
            with self._reading:
                self._reader.close()
            self._lock_file.close()

    # -- changes, in the writer's thread -----------------------------------------------------------------------

    def _change(self, apply: Callable[[sqlite3.Connection, Changes], Any]) -> Future[Any]:
        changes: Changes = []

        def run(connection: sqlite3.Connection) -> Any:
            changes.clear()  # it may be the second try
            return apply(connection, changes)

        def after() -> None:
            for ident, state, reason in changes:
                if state is not State.SPOOLED:
                    self._leases.forget(ident.bytes)
                if self.on_change is not None:
                    self.on_change(ident, state, reason)

        return self._writer.submit(Op(run, after))

    def _rebuild(self) -> sqlite3.Connection:
        with self._reading:
            self._reader.close()
            self._writer.connection.close()
            connection, lost = spool_file.rebuild(self.path)
            self._reader = spool_file.connect(self.path)
        self.unreadable += lost
        return connection

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._reading:
            reader = self._reader
            try:
                return reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                failure = error

        def report(connection: sqlite3.Connection) -> None:
            if self._reader is reader:  # not rebuilt since: make the writer do it
                raise failure

        if spool_file.is_damage(failure):
            self._writer.submit(Op(report))
        raise SpoolError(f"the spool cannot be read ({failure})") from failure

    def _read_one(self, query: str, values: tuple[Any, ...]) -> Any:
        rows = self._read(query, values)
        return rows[0] if rows else None
