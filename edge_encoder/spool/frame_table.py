"""What a transaction does to the spool's frames, and the counts of them that are kept in memory.

An id is in one table at a time: among the received pictures (received.py) or among the frames. All changes run in the
writer's thread (writer.py), inside a transaction; when one fails, the writer rolls it back and calls recount(). It is
independent of threads and files, and only reads the leases.

A frame's bytes are freed by finish(), which is called in five cases. Its row stays as history until prune(). What
cannot be read back from a damaged file is lost as well (recovery.py).

    the cloud has answered     DELIVERED or REJECTED; from uplink/stream.py, by way of spool.py
    the spool is full          DROPPED, cause `full`: put() drops frames if the policy allows it; by default it raises
                               SpoolFull for the new frame instead: 507, or, for a received picture, which has had its
                               202, another try each second
    the frame is too old       DROPPED, cause `age`: expire(), off by default
    its record is damaged      DROPPED, cause `damaged`: spool.py found it when it read the frame
    it cannot be encoded       FAILED; a received picture only (submission/deferred_encoder.py)

A full disk drops nothing: spool.py then refuses new frames with SpoolFull (disk_reserve.py), but not the frame of a
received picture, which needs no room.
"""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass
from typing import Any

from edge_encoder.errors import IdTaken, SpoolFull
from edge_encoder.spool import schema
from edge_encoder.spool.clock import SpoolClock
from edge_encoder.spool.leases import Leases
from edge_encoder.spool.received import ENTRY as RECEIVED_ENTRY
from edge_encoder.spool.received import ReceivedPictures
from edge_encoder.spool.record import Change, DropCause, Entry, FullPolicy, ReceivedPicture, Record, State
from edge_encoder.spool.schema import FINISHED, WAITING
from edge_encoder.spool.system import System

ENTRY = (
    "id, state, width, height, size, rate, priority, picture_crc, created_ms, finished_ms, COALESCE(reason, ''),"
    " original_width, original_height"
)
"""The columns of an Entry, in its order."""
KNOWN = f"SELECT {ENTRY} FROM frames WHERE id = ?1 UNION ALL SELECT {RECEIVED_ENTRY} FROM originals WHERE id = ?1"
"""The row of the Entry of an id."""
Changes = list[Change]


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much the spool holds: bytes of frames not yet acknowledged, what happens beyond, and finished frames that are
    remembered."""

    max_bytes: int = 256 << 20
    full_policy: FullPolicy = "refuse"
    history_frames: int = 20_000


class FrameTable:
    """`frames` of `bytes` wait to be sent, `history` are finished and remembered; `received` wait to be encoded."""

    def __init__(self, leases: Leases, limits: SpoolLimits, clock: SpoolClock, system: System) -> None:
        self.frames = self.bytes = self.history = 0
        self.limits = limits
        self.received = ReceivedPictures()
        self._leases = leases
        self._clock = clock
        self._system = system

    def recount(self, connection: sqlite3.Connection) -> None:
        """Reads the counts from the tables."""
        pending = f"SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM frames WHERE {WAITING}"
        self.frames, self.bytes = connection.execute(pending).fetchone()
        self.history = connection.execute(f"SELECT COUNT(*) FROM frames WHERE {FINISHED}").fetchone()[0]
        self.received.recount(connection)

    def entry(self, row: Any) -> Entry:
        """The entry of a row of ENTRY."""
        ident, state = bytes(row[0]), State(row[1])
        if state is State.SPOOLED and self._leases.is_out(ident):
            state = State.SENDING
        return Entry(uuid.UUID(bytes=ident), state, *row[2:])

    def put(self, connection: sqlite3.Connection, record: Record, changes: Changes, *, drops: bool = True) -> Entry:
        """Adds the frame in place of its received picture, if there is one, dropping others where the policy says so
        and `drops` is True. SpoolFull or IdTaken before anything is written."""
        known = self._known(connection, record.id, record.picture_crc)
        if known is not None and known.state not in (State.DROPPED, State.RECEIVED):
            return known
        cost = schema.cost(record)
        for ident in self._victims(connection, cost, record.priority, drops):
            self._drop(connection, ident, DropCause.FULL, f"spool full, {self.limits.full_policy}", changes)
        arrived = self.received.arrived_ms(connection, record.id)
        self._clear(connection, known)
        schema.insert(connection, record, self._clock.now_ms() if arrived is None else arrived)
        self.frames += 1
        self.bytes += cost
        changes.append(Change(record.id, State.SPOOLED))
        return self.entry(connection.execute(KNOWN, (record.id.bytes,)).fetchone())

    def receive(self, connection: sqlite3.Connection, received: ReceivedPicture, changes: Changes) -> Entry:
        """Adds the received picture, unless its id is known already. IdTaken before anything is written."""
        known = self._known(connection, received.id, received.picture_crc)
        if known is not None and known.state is not State.DROPPED:
            return known
        self._clear(connection, known)
        self.received.insert(connection, received, self._clock.now_ms())
        changes.append(Change(received.id, State.RECEIVED))
        return self.entry(connection.execute(KNOWN, (received.id.bytes,)).fetchone())

    def _known(self, connection: sqlite3.Connection, ident: uuid.UUID, picture_crc: int) -> Entry | None:
        row = connection.execute(KNOWN, (ident.bytes,)).fetchone()
        entry = None if row is None else self.entry(row)
        if entry is not None and entry.picture_crc != picture_crc:
            schema.check_picture(connection, ident.bytes)
            raise IdTaken(f"id {ident} belongs to another picture; use a fresh id for each picture")
        return entry

    def _clear(self, connection: sqlite3.Connection, known: Entry | None) -> None:
        """Deletes the row of an id that is a received picture, or that was dropped and is posted again."""
        if known is None:
            return
        if known.state is State.RECEIVED:
            self.received.remove(connection, known.id.bytes)
        else:
            connection.execute("DELETE FROM frames WHERE id = ?", (known.id.bytes,))
            self.history -= 1

    def _victims(self, connection: sqlite3.Connection, cost: int, priority: int, drops: bool) -> list[bytes]:
        """Ids to drop so that `cost` fits; SpoolFull where the policy allows none.

        `refuse` allows none. `drop-oldest` takes the oldest frames, `drop-lowest-priority` those of the lowest priority
        and never one above that of the new frame. Frames in flight and received pictures are never taken.
        """
        missing = self.bytes + cost - self.limits.max_bytes
        if missing <= 0:
            return []
        oldest_first = self.limits.full_policy == "drop-oldest"
        victims: list[bytes] = []
        if drops and self.limits.full_policy != "refuse" and cost <= self.limits.max_bytes:
            order = "seq" if oldest_first else "priority, seq"
            query = f"SELECT id, cost FROM frames WHERE {WAITING} AND priority <= ? ORDER BY {order}"
            for ident, freed in connection.execute(query, (2**32 if oldest_first else priority,)):
                if self._leases.is_out(ident):
                    continue  # it is being sent; its acknowledgement frees it
                victims.append(ident)
                missing -= freed
                if missing <= 0:
                    return victims
        raise SpoolFull(
            f"the spool holds {self.bytes} of {self.limits.max_bytes} bytes; wait for the uplink, raise"
            " AEIC_EDGE_SPOOL_MAX_BYTES or change AEIC_EDGE_SPOOL_FULL_POLICY"
        )

    def finish(self, connection: sqlite3.Connection, change: Change, changes: Changes) -> bool:
        """Marks a frame or received picture as DELIVERED, REJECTED, DROPPED or FAILED; False if it was finished
        before."""
        ident, state = change.id.bytes, change.state
        row = connection.execute("SELECT state, cost FROM frames WHERE id = ?", (ident,)).fetchone()
        if row is None:
            return self._give_up(connection, change, changes)
        # A frame that was dropped while its acknowledgement was on the way has been delivered.
        if not (row[0] == State.SPOOLED or (row[0] == State.DROPPED and state is State.DELIVERED)):
            return False
        connection.execute(
            "UPDATE frames SET state = ?, reason = ?, finished_ms = ?, record = NULL WHERE id = ?",
            (state.value, change.reason[:500], int(self._system.wall_seconds() * 1000), ident),
        )
        if row[0] == State.SPOOLED:
            self.frames -= 1
            self.bytes -= row[1]
            self.history += 1
        changes.append(change)
        return True

    def _drop(
        self, connection: sqlite3.Connection, ident: bytes, cause: DropCause, reason: str, changes: Changes
    ) -> bool:
        return self.finish(connection, Change(uuid.UUID(bytes=ident), State.DROPPED, reason, cause), changes)

    def _give_up(self, connection: sqlite3.Connection, change: Change, changes: Changes) -> bool:
        """Turns a received picture into the history of a frame."""
        moved = connection.execute(
            "INSERT INTO frames (id, state, priority, cost, size, width, height, rate, picture_crc, created_ms,"
            " finished_ms, reason) SELECT id, ?, priority, 0, 0, width, height, 0, picture_crc, created_ms, ?, ?"
            " FROM originals WHERE id = ?",
            (change.state.value, int(self._system.wall_seconds() * 1000), change.reason[:500], change.id.bytes),
        )
        if not moved.rowcount:
            return False
        self.received.remove(connection, change.id.bytes)
        self.history += 1
        changes.append(change)
        return True

    def expire(self, connection: sqlite3.Connection, max_age_seconds: float, changes: Changes) -> int:
        """Drops frames and received pictures that arrived longer ago, in spool time; returns how many."""
        limit = self._clock.now_ms() - int(max_age_seconds * 1000)
        query = (
            f"SELECT id FROM frames WHERE {WAITING} AND arrived_ms < ?1"
            " UNION ALL SELECT id FROM originals WHERE arrived_ms < ?1"
        )
        rows = connection.execute(query, (limit,)).fetchall()
        return sum(self._drop(connection, row[0], DropCause.AGE, "too old", changes) for row in rows)

    def prune(self, connection: sqlite3.Connection) -> None:
        """Deletes the oldest finished frames beyond history_frames."""
        # In batches of a twentieth, so that few commits include a deletion.
        over = self.history - self.limits.history_frames
        if over > self.limits.history_frames // 20:
            oldest = f"SELECT seq FROM frames WHERE {FINISHED} ORDER BY finished_ms LIMIT ?"
            connection.execute(f"DELETE FROM frames WHERE seq IN ({oldest})", (over,))
            self.history -= over
