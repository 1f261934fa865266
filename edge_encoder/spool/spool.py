r"""The spool: a durable outbox. Frames stay here, on disk, until the cloud has acknowledged them; received pictures,
until they are encoded.

    receive -> RECEIVED -> (next_received) -> put -> SPOOLED -> (lease) SENDING -> DELIVERED | REJECTED
                   \-> FAILED                DROPPED: by the cap, the age limit, or damage

A put or receive that has returned survives a power cut (SQLite WAL, synchronous=FULL; writer.py commits in groups). A
lease exists in memory only (leases.py), so a restart sends again what was being sent. Frames and received pictures
carry a check value (record.py); a damaged one is dropped and counted, never sent. A damaged file is rebuilt
(recovery.py), and a deleted one is written again from the open file before the next transaction (Writer._usable).
Independent of pictures, HTTP and gRPC.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edge_encoder.errors import SpoolError, SpoolFull
from edge_encoder.spool import database, schema
from edge_encoder.spool.clock import SpoolClock
from edge_encoder.spool.disk_reserve import DiskReserve
from edge_encoder.spool.frame_table import KNOWN, Changes, FrameTable, SpoolLimits
from edge_encoder.spool.leases import Leases
from edge_encoder.spool.lock import FolderLock
from edge_encoder.spool.reader import Reader
from edge_encoder.spool.record import (
    CLOCK_IS_SET_MS,
    CapturedFrom,
    Change,
    DamagedRecord,
    DropCause,
    Entry,
    FullPolicy,
    ReceivedPicture,
    Record,
    State,
)
from edge_encoder.spool.schema import WAITING
from edge_encoder.spool.system import System
from edge_encoder.spool.verification import Verification, Verified
from edge_encoder.spool.writer import Op, Writer

_LIMITS = SpoolLimits()
_PROVEN_SECONDS = 2.0  # a commit this recent shows that the spool can be written

log = logging.getLogger("aeic.edge.spool")


class Spool:
    """The outbox of one edge in `folder`. Thread safe. `on_change` is called from the writer's thread
    with each change, after its commit. `unreadable` counts frames lost to damage, since the start.

    SpoolError when another edge uses the folder or its disk does not work, SpoolFull when a recovery needs more room.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = _LIMITS.max_bytes,
        full_policy: FullPolicy = _LIMITS.full_policy,
        history_frames: int = _LIMITS.history_frames,
        on_change: Callable[[Change], None] | None = None,
        system: System | None = None,
    ) -> None:
        self.path = folder / "spool.sqlite3"
        self.on_change = on_change
        self.unreadable = 0
        self._system = system = system or System()
        self._folder = folder
        self._given_up: set[bytes] = set()  # ids that are counted in `unreadable`
        self._places: dict[Path, tuple[int, int]] = {}  # device and inode of the open file, and of its log
        self._clock: SpoolClock | None = None
        self._frame_table: FrameTable
        self._reader: Reader
        self._writer: Writer
        self._leases = Leases(system.steady_seconds)
        self._encoding = Leases(system.steady_seconds)
        try:
            self._lock = FolderLock(folder)
        except OSError as error:
            raise SpoolError(f"the spool's folder {folder} cannot be used ({error}); look at its disk") from error
        connection: sqlite3.Connection | None = None
        try:
            self._reserve = DiskReserve(folder / "spool.reserve", system=system)
            self._limits = SpoolLimits(max_bytes, full_policy, history_frames)
            connection = self._open_first()
            self._reader = Reader(self.path, lambda op: self._writer.submit(op), system)
            self._reader.open()
        except BaseException as error:
            if connection is not None:
                connection.close()
            self._lock.release()
            if isinstance(error, sqlite3.Error | OSError):
                kind = SpoolFull if database.is_full(error) else SpoolError
                raise kind(f"the spool {self.path} cannot be opened ({error}); look at its disk") from error
            raise
        self._writer = Writer(connection, self, self._reserve, system)
        repair = functools.partial(self._repair, self._places[self.path])
        self._verification = Verification(self.path, system, repair)
        if database.is_large(self.path):
            self._verification.start()

    def put(self, record: Record, *, drops: bool = True) -> Future[Entry]:
        """Stores the frame, in place of its received picture; the future ends after the commit, so its result may be
        promised.

        With `drops` False no other frame is dropped for it, whatever the policy (answers to requests,
        answers/answerer.py). The same id with the same picture
        gives the entry that is there already. Raises (in the future) SpoolFull, IdTaken, or SpoolError when the disk
        fails.
        """

        def put(connection: sqlite3.Connection, changes: Changes) -> Entry:
            if self._frame_table.received.arrived_ms(connection, record.id) is None:  # replacing one needs no room
                self._check_room()
            return self._frame_table.put(connection, record, changes, drops=drops)

        return self._change(put)

    def finish(self, ident: uuid.UUID, state: State, reason: str = "") -> Future[bool]:
        """Marks a frame or received picture DELIVERED, REJECTED or FAILED and frees its bytes; False if it was finished
        before."""
        return self._finish(Change(ident, state, reason))

    def _finish(self, change: Change) -> Future[bool]:
        return self._change(lambda connection, changes: self._frame_table.finish(connection, change, changes))

    def expire(self, max_age_seconds: float) -> Future[int]:
        """Drops frames and received pictures that have been here for longer, by the machine's uptime and not by its
        wall clock (clock.py). Returns how many."""
        return self._change(lambda connection, changes: self._frame_table.expire(connection, max_age_seconds, changes))

    def get(self, ident: uuid.UUID) -> Entry | None:
        """The frame's entry, or None when it was never here or its history is gone."""
        row = self._reader.one(KNOWN, (ident.bytes,))
        return None if row is None else self._frame_table.entry(row)

    def lease(self, limit: int) -> list[Record]:
        """Up to `limit` frames to send now, most urgent first, then oldest first. Each must be finished or released."""
        busy = self._leases.busy()
        rows = self._reader.all(
            f"SELECT id, priority, seq FROM frames WHERE {WAITING} ORDER BY priority DESC, seq LIMIT ?",
            (limit + len(busy),),
        )
        records: list[Record] = []
        skipped = False
        try:
            for ident, priority, seq in rows:
                if ident in busy or len(records) >= limit:
                    continue
                query = "SELECT record, original_width, original_height, captured_from, arrived_ms FROM frames"
                row = self._reader.one(f"{query} WHERE id = ? AND {WAITING}", (ident,))
                if row is None:
                    self._check_findable("frames", priority, seq)
                    skipped = True
                    continue
                try:
                    record = self._timed(_described(Record.parse(row[0]), *row[1:4]), row[4])
                except DamagedRecord as error:
                    self._give_up(ident, error)
                    continue
                self._leases.take(ident)
                records.append(record)
        except SpoolError:
            for record in records:  # the caller does not learn of them
                self._leases.untake(record.id.bytes)
            raise
        if skipped and not records:  # the file may have been repaired, and nothing else says that frames wait
            return self.lease(limit)
        return records

    def _check_findable(self, table: str, priority: int, seq: int) -> None:
        """For a row that was not found by its id: it was finished meanwhile, or the file is damaged. The writer repairs
        it then; SpoolError when it cannot."""
        self._writer.submit(Op(lambda connection: schema.check_findable(connection, table, priority, seq))).result()

    def _timed(self, record: Record, arrived_ms: Any) -> Record:
        """The record with its time of capture derived from its age, where the wall clock was not set when it arrived
        and is set now."""
        assert self._clock is not None
        wall_ms = int(self._system.wall_seconds() * 1000)
        known = record.captured_ms or not isinstance(arrived_ms, int) or not arrived_ms
        if known or wall_ms < CLOCK_IS_SET_MS:
            return record
        age_ms = max(0, self._clock.now_ms() - arrived_ms)
        return dataclasses.replace(record, captured_ms=wall_ms - age_ms, captured_from=CapturedFrom.CLOCK)

    def receive(self, received: ReceivedPicture) -> Future[Entry]:
        """Stores the picture until it is encoded; as put() otherwise."""

        def receive(connection: sqlite3.Connection, changes: Changes) -> Entry:
            self._check_room()
            return self._frame_table.receive(connection, received, changes)

        return self._change(receive)

    def _check_room(self) -> None:
        if not self._reserve.whole:  # the space that is left is for acknowledgements (disk_reserve.py)
            raise SpoolFull(f"the disk of {self.path.parent} is full; make room on it, or wait for the uplink")

    def _give_up(self, ident: bytes, error: DamagedRecord) -> Future[bool]:
        """Counts a frame or received picture that cannot be read as lost, once, and records that."""
        if ident not in self._given_up:
            self._given_up.add(ident)
            self.unreadable += 1
        reason = f"damaged on disk: {error}"
        return self._finish(Change(uuid.UUID(bytes=ident), State.DROPPED, reason, DropCause.DAMAGED))

    def next_received(self) -> tuple[ReceivedPicture, int] | None:
        """The received picture to encode now, most urgent first, then oldest, and the number of this attempt. It must
        be put, finished or released.

        The attempt is recorded on disk before this returns, so that a received picture that crashes the process is
        recognised.
        """
        while True:
            busy = self._encoding.busy()
            query = "SELECT id, priority, seq FROM originals ORDER BY priority DESC, seq LIMIT ?"
            free = next((row for row in self._reader.all(query, (len(busy) + 1,)) if row[0] not in busy), None)
            if free is None:
                return None
            ident, priority, seq = free
            query = "SELECT meta, checked, picture FROM originals WHERE id = ?"
            row = self._reader.one(query, (ident,))
            if row is None:
                self._check_findable("originals", priority, seq)
                continue
            try:
                received = ReceivedPicture.parse(*row)
            except DamagedRecord as error:
                self._give_up(ident, error).result()
                continue
            self._encoding.take(ident)
            try:
                tries = self._change(functools.partial(self._begin, received.id)).result()
            except SpoolError:
                self.release_received(received.id)
                raise
            if tries:
                return received, tries
            self._encoding.forget(ident)

    def _begin(self, ident: uuid.UUID, connection: sqlite3.Connection, changes: Changes) -> int:
        return self._frame_table.received.begin(connection, ident)

    def release_received(self, ident: uuid.UUID, delay_seconds: float = 0.0) -> None:
        """The received picture was not encoded; it is offered again after the delay, doubled per attempt."""
        self._encoding.release(ident.bytes, delay_seconds)

    def reset_attempts(self, ident: uuid.UUID) -> Future[None]:
        """The attempts to encode that received picture so far do not count."""
        return self._change(lambda connection, changes: self._frame_table.received.reset_attempts(connection, ident))

    def oldest(self) -> Record | None:
        """The oldest readable frame that waits, leased or not; nothing is changed."""
        for (raw,) in self._reader.all(f"SELECT record FROM frames WHERE {WAITING} ORDER BY seq LIMIT 16"):
            with contextlib.suppress(DamagedRecord):
                return Record.parse(raw)
        return None

    def release(self, idents: Iterable[uuid.UUID], delay_seconds: float = 0.0) -> None:
        """Returns leased frames unsent; each is offered again after the delay, doubled per attempt (leases.py)."""
        for ident in idents:
            self._leases.release(ident.bytes, delay_seconds)

    def now_ms(self) -> int:
        """The spool time (clock.py): it counts on through restarts, and no step of the wall clock changes it."""
        assert self._clock is not None
        return self._clock.now_ms()

    def next_retry_seconds(self) -> float | None:
        """Seconds until a released frame may be sent again, or None when none waits."""
        return self._leases.next_retry_seconds()

    def next_received_seconds(self) -> float | None:
        """Seconds until a released one may be tried again, or None when none waits."""
        return self._encoding.next_retry_seconds()

    def oldest_age_seconds(self, *, received: bool = True) -> float:
        """How long the oldest frame not yet acknowledged (or picture not yet encoded, if `received`) has been here, or
        0."""
        times = [self._reader.one(f"SELECT MIN(arrived_ms) FROM frames WHERE {WAITING}")[0]]
        if received:
            times.append(self._reader.one("SELECT MIN(arrived_ms) FROM originals")[0])
        now = self.now_ms()
        return max((max(0, now - (arrived or now)) / 1000 for arrived in times if arrived is not None), default=0.0)

    @property
    def limits(self) -> SpoolLimits:
        """How much the spool holds."""
        return self._frame_table.limits

    @property
    def pending_frames(self) -> int:
        """Frames not yet acknowledged."""
        return self._frame_table.frames

    @property
    def pending_bytes(self) -> int:
        """Their bytes, as counted against the cap."""
        return self._frame_table.bytes

    @property
    def received_pictures(self) -> int:
        """Received pictures not yet encoded."""
        return self._frame_table.received.count

    @property
    def received_bytes(self) -> int:
        """Their bytes."""
        return self._frame_table.received.bytes

    @property
    def alive(self) -> bool:
        """False once the writer's thread has ended."""
        return self._writer.alive

    def recoveries(self) -> list[tuple[int, int, bool]]:
        """The recoveries of this spool so far: when (milliseconds since 1970), how many frames and received pictures
        were lost, and whether that is all."""
        rows = self._reader.all("SELECT at_ms, lost, complete FROM recoveries ORDER BY seq")
        return [(int(at_ms), int(lost), bool(complete)) for at_ms, lost, complete in rows]

    def damaged_files(self) -> list[str]:
        """Names of the files beside the spool that a recovery could not read completely; they may hold more frames, and
        are never deleted here."""
        found = self._folder.glob(f"{self.path.name}.damaged-*")
        return sorted(path.name for path in found if not path.name.endswith("-wal"))

    @property
    def verified(self) -> Verified:
        """What is known of the whole file: one of a moderate size is verified when it is opened, a larger one in the
        background (verification.py)."""
        return self._verification.result

    @property
    def restarts(self) -> int:
        """Unexpected errors that the writer survived."""
        return self._writer.restarts

    @property
    def problem(self) -> str:
        """Why the spool accepts no frames now, as far as it is known; empty when it does. probe() finds out."""
        if not self._writer.alive:
            return "the spool's writer has ended"
        if self._writer.failure:
            return f"the spool cannot write ({self._writer.failure})"
        return "" if self._reserve.whole else f"the disk of {self._folder} is full"

    def probe(self) -> Future[None]:
        """Tests whether the spool can be written, by writing; the future ends with SpoolError when not. A commit within
        the last seconds counts as the test."""
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # it cannot be cancelled
        recent = self._system.steady_seconds() - self._writer.last_commit < _PROVEN_SECONDS
        if recent and not self.problem and not self.misplaced():
            done.set_result(None)
            return done

        def finish(written: Future[None]) -> None:
            error = written.exception()
            if error is None and self.problem:  # a full disk: this could be written, a frame could not
                error = SpoolFull(f"{self.problem}; make room on it, or wait for the uplink")
            done.set_exception(error) if error is not None else done.set_result(None)

        self._change(lambda connection, changes: self._save_clock(connection)).add_done_callback(finish)
        return done

    def close(self) -> None:
        """Commits what was handed in and closes the file. A second call does nothing."""
        if self._lock.held:
            self._verification.close()
            self._change(lambda connection, changes: self._save_clock(connection))
            self._writer.close()
            self._reader.close()
            self._lock.release()

    # -- in the writer's thread --------------------------------------------------------------------------------

    def _change(self, apply: Callable[[sqlite3.Connection, Changes], Any]) -> Future[Any]:
        changes: Changes = []

        def run(connection: sqlite3.Connection) -> Any:
            changes.clear()  # it may be the second try
            return apply(connection, changes)

        def after() -> None:
            for change in changes:
                if change.state is not State.SPOOLED:
                    self._leases.forget(change.id.bytes)
                if change.state is not State.RECEIVED:
                    self._encoding.forget(change.id.bytes)
                if self.on_change is not None:
                    self.on_change(change)

        return self._writer.submit(Op(run, after))

    def _repair(self, place: tuple[int, int], error: sqlite3.Error) -> None:
        """Has the writer repair the file at `place` (device and inode), unless another one has taken its place since;
        returns once it is repaired. SpoolError when that fails."""

        def fail(_: sqlite3.Connection) -> None:
            if self._places.get(self.path) == place:
                raise error

        self._writer.submit(Op(fail)).result()

    def _save_clock(self, connection: sqlite3.Connection) -> None:
        assert self._clock is not None
        self._clock.save(connection)

    def recount(self, connection: sqlite3.Connection) -> None:
        """For the writer: restores the counts."""
        self._frame_table.recount(connection)

    def prune(self, connection: sqlite3.Connection) -> None:
        """For the writer: deletes history beyond the limit, and saves a step of the wall clock."""
        self._frame_table.prune(connection)
        if self._clock is not None:
            self._clock.save_step(connection)

    def reopen(self, *, damaged: bool) -> sqlite3.Connection:
        """For the writer: reopens the file, and rebuilds a damaged one."""
        self._reader.close()
        self._lock.take()
        connection = self._open(damaged=damaged)
        try:
            self._reader.open()
        except BaseException:
            connection.close()
            raise
        return connection

    def misplaced(self) -> bool:
        """For the writer: whether the file, its log or the lock is no longer where it was opened."""
        try:
            moved = any(_place(path) != place for path, place in self._places.items())
        except FileNotFoundError:
            return True
        except OSError:
            return False  # the disk fails: the next operation shows it
        return moved or self._lock.misplaced()

    def put_back(self, connection: sqlite3.Connection) -> None:
        """For the writer: writes the open spool to its path again."""
        self._lock.take()
        recovery = database.replace(connection, self.path, self._system, self._places.get(self.path))
        if recovery is not None:
            self.unreadable += recovery.lost

    def _open_first(self) -> sqlite3.Connection:
        try:
            return self._open(damaged=False)
        except (sqlite3.Error, SpoolFull) as error:
            # Deliveries must go on with a full disk, and what they need first may be a new table or a recovery.
            full = isinstance(error, SpoolFull) or database.is_full(error)
            if not full or not self._reserve.spend():
                raise
        return self._open(damaged=False)

    def _open(self, *, damaged: bool) -> sqlite3.Connection:
        """The open file, whose frames are counted. A file that cannot be counted is as damaged as one that SQLite's own
        check refuses, which does not look at everything."""
        try:
            return self._open_and_count(damaged=damaged)
        except sqlite3.Error as error:
            if damaged or not database.is_damage(error):
                raise
            log.error("spool %s is damaged: %s", self.path, error)
        return self._open_and_count(damaged=True)

    def _open_and_count(self, *, damaged: bool) -> sqlite3.Connection:
        connection, recovery = database.open_spool(self.path, self._system, damaged=damaged)
        try:
            # SQLite has its log open by now, and keeps it until the last connection is closed.
            places = {path: _place(path) for path in (self.path, database.log_of(self.path)) if path.exists()}
            if self._clock is None:
                self._clock = SpoolClock(self._system, connection)
                self._frame_table = FrameTable(self._leases, self._limits, self._clock, self._system)
            connection.execute("BEGIN IMMEDIATE")
            try:
                schema.set_unknown_arrivals(connection, self._clock.now_ms())
                self._clock.save(connection)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not database.is_full(error):  # ages can wait until the disk has space
                    raise
            self._frame_table.recount(connection)
        except BaseException:
            connection.close()
            raise
        self._places = places
        if recovery is not None:
            self.unreadable += recovery.lost
        return connection


def _place(path: Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


def _described(record: Record, width: Any, height: Any, captured_from: Any) -> Record:
    """The record with what its row says about the picture; 0 for what no release has written."""
    numbers = [value if isinstance(value, int) and 0 <= value < 1 << 31 else 0 for value in (width, height)]
    known = captured_from if captured_from in list(CapturedFrom) else 0
    return dataclasses.replace(
        record, original_width=numbers[0], original_height=numbers[1], captured_from=CapturedFrom(known)
    )
