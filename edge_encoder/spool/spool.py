r"""The spool: frames wait here, on disk, until the cloud has acknowledged them; originals, until they are encoded.

    receive -> RECEIVED -> (next_original) -> put -> SPOOLED -> (lease) SENDING -> DELIVERED | REJECTED
                   \-> FAILED                DROPPED: the cap or the age limit took it

Promises. A put or receive that returned survives a power cut (SQLite WAL, synchronous=FULL; writer.py commits in
groups). A lease lives in memory only (leases.py), so a restart does again what was under way. A frame carries its own
check value (records.py), and so does an original; a damaged one is dropped and counted, never sent. Knows nothing of
pictures, HTTP or gRPC.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edge_encoder.errors import SpoolError, SpoolFull
from edge_encoder.spool import database
from edge_encoder.spool.database import SPOOLED
from edge_encoder.spool.disk_reserve import DiskReserve
from edge_encoder.spool.leases import Leases
from edge_encoder.spool.ledger import KNOWN, Changes, Ledger
from edge_encoder.spool.reader import Reader
from edge_encoder.spool.record import DamagedRecord, Entry, FullPolicy, Original, Record, State
from edge_encoder.spool.writer import Op, Writer


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
        connection, self.unreadable = database.open_spool(self.path)
        self._leases = Leases()
        self._encoding = Leases()
        self._ledger = ledger = Ledger(self._leases, max_bytes, full_policy, history_frames)
        ledger.recount(connection)
        self._reserve = DiskReserve(folder / "spool.reserve")
        self._writer = Writer(
            connection, recount=ledger.recount, rebuild=self._rebuild, prune=ledger.prune, reserve=self._reserve
        )
        self._reader = Reader(self.path, self._writer.submit)

    def put(self, record: Record) -> Future[Entry]:
        """Keeps the frame, in place of its original; the future ends after the commit, so its result may be promised.

        The same id with the same picture gives the entry that is there already. Raises (in the future) SpoolFull,
        IdTaken, or SpoolError when the disk fails.
        """

        def put(connection: sqlite3.Connection, changes: Changes) -> Entry:
            if not self._ledger.originals.holds(connection, record.id):  # in place of its original it takes no room
                self._check_room()
            return self._ledger.put(connection, record, changes)

        return self._change(put)

    def finish(self, ident: uuid.UUID, state: State, reason: str = "") -> Future[bool]:
        """Marks a frame or original DELIVERED, REJECTED, DROPPED or FAILED and frees its bytes; False if it was
        finished before."""
        return self._change(
            lambda connection, changes: self._ledger.finish(connection, ident.bytes, state, reason, changes)
        )

    def expire(self, older_than_ms: int) -> Future[int]:
        """Drops frames created before that moment, except those made before the clock was set. Returns how many."""
        return self._change(lambda connection, changes: self._ledger.expire(connection, older_than_ms, changes))

    def get(self, ident: uuid.UUID) -> Entry | None:
        """The frame's entry, or None when it was never here or its history is gone."""
        row = self._reader.one(KNOWN, (ident.bytes,))
        return None if row is None else self._ledger.entry(row)

    def lease(self, limit: int) -> list[Record]:
        """Up to `limit` frames to send now, most urgent first, then oldest first. Each must be finished or released."""
        busy = self._leases.busy()
        rows = self._reader.all(
            f"SELECT id FROM frames WHERE {SPOOLED} ORDER BY priority DESC, seq LIMIT ?", (limit + len(busy),)
        )
        records: list[Record] = []
        for (ident,) in rows:
            if ident in busy or len(records) >= limit:
                continue
            row = self._reader.one(f"SELECT record FROM frames WHERE id = ? AND {SPOOLED}", (ident,))
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

    def receive(self, original: Original) -> Future[Entry]:
        """Keeps the picture until it is encoded; as put() otherwise."""

        def receive(connection: sqlite3.Connection, changes: Changes) -> Entry:
            self._check_room()
            return self._ledger.receive(connection, original, changes)

        return self._change(receive)

    def _check_room(self) -> None:
        if not self._reserve.whole:  # what room there is belongs to the acknowledgements (reserve.py)
            raise SpoolFull(f"the disk of {self.path.parent} is full; make room on it, or wait for the uplink")

    def next_original(self) -> tuple[Original, int] | None:
        """The original to encode now, most urgent first, then oldest, and which try of it this is. It must be put,
        finished or released.

        The try is counted on disk before this returns: an original that ends the process is known by it.
        """
        while True:
            busy = self._encoding.busy()
            query = "SELECT id FROM originals ORDER BY priority DESC, seq LIMIT ?"
            free = [ident for (ident,) in self._reader.all(query, (len(busy) + 1,)) if ident not in busy]
            if not free:
                return None
            query = "SELECT meta, checked, picture FROM originals WHERE id = ?"
            row = self._reader.one(query, (free[0],))
            if row is None:
                continue
            try:
                original = Original.parse(*row)
            except DamagedRecord as error:
                self.unreadable += 1
                self.finish(uuid.UUID(bytes=free[0]), State.DROPPED, f"damaged on disk: {error}").result()
                continue
            self._encoding.take(free[0])
            try:
                tries = self._change(functools.partial(self._begin, original.id)).result()
            except SpoolError:
                self.release_original(original.id)
                raise
            if tries:
                return original, tries
            self._encoding.forget(free[0])

    def _begin(self, ident: uuid.UUID, connection: sqlite3.Connection, changes: Changes) -> int:
        return self._ledger.originals.begin(connection, ident)

    def release_original(self, ident: uuid.UUID, delay_seconds: float = 0.0) -> None:
        """It was not encoded; it is offered again after the delay, doubled per attempt."""
        self._encoding.release(ident.bytes, delay_seconds)

    def absolve_original(self, ident: uuid.UUID) -> Future[None]:
        """The tries of that original so far do not count against it."""
        return self._change(lambda connection, changes: self._ledger.originals.reset_attempts(connection, ident))

    def oldest(self) -> Record | None:
        """The oldest readable frame that waits, whether or not it is leased; it stays as it is."""
        for (raw,) in self._reader.all(f"SELECT record FROM frames WHERE {SPOOLED} ORDER BY seq LIMIT 16"):
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

    def next_original_seconds(self) -> float | None:
        """Seconds until a resting original may be tried again, or None when none rests."""
        return self._encoding.next_retry_seconds()

    def oldest_age_seconds(self, *, originals: bool = True) -> float:
        """Age of the oldest frame not yet acknowledged (or original, if those count); 0 when there is none or the clock
        went back."""
        oldest = "SELECT MIN(created_ms) FROM"
        times = [self._reader.one(f"{oldest} frames WHERE {SPOOLED}")[0]]
        if originals:
            times.append(self._reader.one(f"{oldest} originals")[0])
        ages = [time.time() - created / 1000 for created in times if created is not None]
        return max(0.0, *ages) if ages else 0.0

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
    def originals(self) -> int:
        """Originals not yet encoded."""
        return self._ledger.originals.count

    @property
    def original_bytes(self) -> int:
        """Their bytes."""
        return self._ledger.originals.bytes

    @property
    def alive(self) -> bool:
        """False once nothing can be written any more."""
        return self._writer.alive

    def close(self) -> None:
        """Commits what was handed in and closes the file. A second call does nothing."""
        if not self._lock_file.closed:
            self._writer.close()
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
                if state is not State.RECEIVED:
                    self._encoding.forget(ident.bytes)
                if self.on_change is not None:
                    self.on_change(ident, state, reason)

        return self._writer.submit(Op(run, after))

    def _rebuild(self) -> sqlite3.Connection:
        with self._reader.closed():
            self._writer.connection.close()
            connection, lost = database.rebuild(self.path)
        self.unreadable += lost
        return connection
