"""What a transaction does to the spool's table, and the counts of it that are kept in memory.

All of it runs in the writer's thread (writer.py), inside a transaction. A change that fails is undone by the writer,
which then calls recount(). Knows nothing of threads or files; leases are only asked about.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from typing import Any

from edge_encoder import spool_file
from edge_encoder.leases import Leases
from edge_encoder.records import Entry, IdTaken, Record, SpoolFull, State
from edge_encoder.settings import FullPolicy

ENTRY = "id, state, width, height, size, rate, priority, picture_crc, created_ms, finished_ms, COALESCE(reason, '')"
"""The columns of an Entry, in its order."""
# Before this moment (2025-01-01) a clock was certainly not set, so nothing is dropped for its age.
_CLOCK_SET_MS = 1_735_689_600_000

Changes = list[tuple[uuid.UUID, State, str]]


class Ledger:
    """`frames` and `bytes` wait, `history` are finished and remembered."""

    def __init__(self, leases: Leases, max_bytes: int, full_policy: FullPolicy, history_frames: int) -> None:
        self.frames = self.bytes = self.history = 0
        self.max_bytes = max_bytes
        self.full_policy = full_policy
        self.history_frames = history_frames
        self._leases = leases

    def recount(self, connection: sqlite3.Connection) -> None:
        """Takes the counts from the table."""
        pending = "SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM frames WHERE state = 0"
        self.frames, self.bytes = connection.execute(pending).fetchone()
        self.history = connection.execute("SELECT COUNT(*) FROM frames WHERE state != 0").fetchone()[0]

    def entry(self, row: Any) -> Entry:
        """The entry of a row of ENTRY."""
        ident, state = bytes(row[0]), State(row[1])
        if state is State.SPOOLED and self._leases.is_out(ident):
            state = State.SENDING
        return Entry(uuid.UUID(bytes=ident), state, *row[2:])

    def put(self, connection: sqlite3.Connection, record: Record, changes: Changes) -> Entry:
        """Adds the frame, dropping others where the policy says so. SpoolFull or IdTaken before anything is written."""
        query = f"SELECT {ENTRY} FROM frames WHERE id = ?"
        row = connection.execute(query, (record.id.bytes,)).fetchone()
        if row is not None:
            entry = self.entry(row)
            if entry.picture_crc != record.picture_crc:
                raise IdTaken(f"id {record.id} belongs to another picture; use a fresh id for each picture")
            if entry.state is not State.DROPPED:
                return entry
        cost = len(record.to_bytes()) + spool_file.ROW_BYTES
        for ident in self._victims(connection, cost, record.priority):
            self.finish(connection, ident, State.DROPPED, f"spool full, {self.full_policy}", changes)
        if row is not None:  # dropped before and posted again: it starts anew
            connection.execute("DELETE FROM frames WHERE id = ?", (record.id.bytes,))
            self.history -= 1
        spool_file.insert(connection, record, cost)
        self.frames += 1
        self.bytes += cost
        changes.append((record.id, State.SPOOLED, ""))
        return self.entry(connection.execute(query, (record.id.bytes,)).fetchone())

    def _victims(self, connection: sqlite3.Connection, cost: int, priority: int) -> list[bytes]:
        """Ids to drop so that `cost` fits; raises SpoolFull (and drops nothing) where the policy gives no room."""
        missing = self.bytes + cost - self.max_bytes
        if missing <= 0:
            return []
        oldest_first = self.full_policy == "drop-oldest"
        victims: list[bytes] = []
        if self.full_policy != "refuse" and cost <= self.max_bytes:
            order = "seq" if oldest_first else "priority, seq"
            query = f"SELECT id, cost FROM frames WHERE state = 0 AND priority <= ? ORDER BY {order}"
            for ident, freed in connection.execute(query, (2**32 if oldest_first else priority,)):
                if self._leases.is_out(ident):
                    continue  # it is on the wire; its acknowledgement will free it
                victims.append(ident)
                missing -= freed
                if missing <= 0:
                    return victims
        raise SpoolFull(
            f"the spool holds {self.bytes} of {self.max_bytes} bytes; wait for the uplink, raise"
            " AEIC_EDGE_SPOOL_MAX_BYTES or change AEIC_EDGE_SPOOL_FULL_POLICY"
        )

    def finish(self, connection: sqlite3.Connection, ident: bytes, state: State, reason: str, changes: Changes) -> bool:
        """Marks a frame as DELIVERED, REJECTED or DROPPED; False if it was finished before."""
        row = connection.execute("SELECT state, cost FROM frames WHERE id = ?", (ident,)).fetchone()
        # A frame dropped for room while its acknowledgement was on the way has arrived after all.
        if row is None or not (row[0] == State.SPOOLED or (row[0] == State.DROPPED and state is State.DELIVERED)):
            return False
        connection.execute(
            "UPDATE frames SET state = ?, reason = ?, finished_ms = ?, record = NULL WHERE id = ?",
            (state.value, reason[:500], int(time.time() * 1000), ident),
        )
        if row[0] == State.SPOOLED:
            self.frames -= 1
            self.bytes -= row[1]
            self.history += 1
        changes.append((uuid.UUID(bytes=ident), state, reason))
        return True

    def expire(self, connection: sqlite3.Connection, older_than_ms: int, changes: Changes) -> int:
        """Drops frames created before that moment, except those made before the clock was set. Returns how many."""
        query = "SELECT id FROM frames WHERE state = 0 AND created_ms < ? AND created_ms >= ?"
        rows = connection.execute(query, (older_than_ms, _CLOCK_SET_MS)).fetchall()
        return sum(self.finish(connection, row[0], State.DROPPED, "too old", changes) for row in rows)

    def prune(self, connection: sqlite3.Connection) -> None:
        """Forgets the oldest finished frames beyond history_frames."""
        # In slices of a twentieth, so that not every commit pays for a deletion.
        over = self.history - self.history_frames
        if over > self.history_frames // 20:
            oldest = "SELECT seq FROM frames WHERE state != 0 ORDER BY finished_ms LIMIT ?"
            connection.execute(f"DELETE FROM frames WHERE seq IN ({oldest})", (over,))
            self.history -= over
