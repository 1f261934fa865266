"""What a transaction does to the spool's frames, and the counts of them that are kept in memory.

An id is in one place at a time: among the originals (originals.py) or among the frames. All of it runs in the writer's
thread (writer.py), inside a transaction. A change that fails is undone by the writer, which then calls recount(). Knows
nothing of threads or files; leases are only asked about.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from typing import Any

from edge_encoder.errors import IdTaken, SpoolFull
from edge_encoder.spool import database
from edge_encoder.spool.database import FINISHED, SPOOLED
from edge_encoder.spool.leases import Leases
from edge_encoder.spool.originals import ENTRY as ORIGINAL
from edge_encoder.spool.originals import Originals
from edge_encoder.spool.record import Entry, FullPolicy, Original, Record, State

ENTRY = "id, state, width, height, size, rate, priority, picture_crc, created_ms, finished_ms, COALESCE(reason, '')"
"""The columns of an Entry, in its order."""
KNOWN = f"SELECT {ENTRY} FROM frames WHERE id = ?1 UNION ALL SELECT {ORIGINAL} FROM originals WHERE id = ?1"
"""The row of the Entry of an id."""
# Before this moment (2025-01-01) a clock was certainly not set, so nothing is dropped for its age.
_CLOCK_SET_MS = 1_735_689_600_000

Changes = list[tuple[uuid.UUID, State, str]]


class Ledger:
    """`frames` and `bytes` wait to be sent, `history` are finished and remembered; `originals` wait to be encoded."""

    def __init__(self, leases: Leases, max_bytes: int, full_policy: FullPolicy, history_frames: int) -> None:
        self.frames = self.bytes = self.history = 0
        self.max_bytes = max_bytes
        self.full_policy = full_policy
        self.history_frames = history_frames
        self.originals = Originals()
        self._leases = leases

    def recount(self, connection: sqlite3.Connection) -> None:
        """Takes the counts from the table."""
        pending = f"SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM frames WHERE {SPOOLED}"
        self.frames, self.bytes = connection.execute(pending).fetchone()
        self.history = connection.execute(f"SELECT COUNT(*) FROM frames WHERE {FINISHED}").fetchone()[0]
        self.originals.recount(connection)

    def entry(self, row: Any) -> Entry:
        """The entry of a row of ENTRY."""
        ident, state = bytes(row[0]), State(row[1])
        if state is State.SPOOLED and self._leases.is_out(ident):
            state = State.SENDING
        return Entry(uuid.UUID(bytes=ident), state, *row[2:])

    def put(self, connection: sqlite3.Connection, record: Record, changes: Changes) -> Entry:
        """Adds the frame in place of its original, if that is here, dropping others where the policy says so. SpoolFull
        or IdTaken before anything is written."""
        known = self._known(connection, record.id, record.picture_crc)
        if known is not None and known.state not in (State.DROPPED, State.RECEIVED):
            return known
        cost = len(record.to_bytes()) + database.ROW_BYTES
        for ident in self._victims(connection, cost, record.priority):
            self.finish(connection, ident, State.DROPPED, f"spool full, {self.full_policy}", changes)
        self._clear(connection, known)
        database.insert(connection, record, cost)
        self.frames += 1
        self.bytes += cost
        changes.append((record.id, State.SPOOLED, ""))
        return self.entry(connection.execute(KNOWN, (record.id.bytes,)).fetchone())

    def receive(self, connection: sqlite3.Connection, original: Original, changes: Changes) -> Entry:
        """Adds the original, unless its id is known already. IdTaken before anything is written."""
        known = self._known(connection, original.id, original.picture_crc)
        if known is not None and known.state is not State.DROPPED:
            return known
        self._clear(connection, known)
        self.originals.insert(connection, original)
        changes.append((original.id, State.RECEIVED, ""))
        return self.entry(connection.execute(KNOWN, (original.id.bytes,)).fetchone())

    def _known(self, connection: sqlite3.Connection, ident: uuid.UUID, picture_crc: int) -> Entry | None:
        row = connection.execute(KNOWN, (ident.bytes,)).fetchone()
        entry = None if row is None else self.entry(row)
        if entry is not None and entry.picture_crc != picture_crc:
            raise IdTaken(f"id {ident} belongs to another picture; use a fresh id for each picture")
        return entry

    def _clear(self, connection: sqlite3.Connection, known: Entry | None) -> None:
        """Makes room for a new row of an id that is only an original, or was dropped and starts anew."""
        if known is None:
            return
        if known.state is State.RECEIVED:
            self.originals.remove(connection, known.id.bytes)
        else:
            connection.execute("DELETE FROM frames WHERE id = ?", (known.id.bytes,))
            self.history -= 1

    def _victims(self, connection: sqlite3.Connection, cost: int, priority: int) -> list[bytes]:
        """Ids to drop so that `cost` fits; raises SpoolFull (and drops nothing) where the policy gives no room."""
        missing = self.bytes + cost - self.max_bytes
        if missing <= 0:
            return []
        oldest_first = self.full_policy == "drop-oldest"
        victims: list[bytes] = []
        if self.full_policy != "refuse" and cost <= self.max_bytes:
            order = "seq" if oldest_first else "priority, seq"
            query = f"SELECT id, cost FROM frames WHERE {SPOOLED} AND priority <= ? ORDER BY {order}"
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
        """Marks a frame or an original as DELIVERED, REJECTED, DROPPED or FAILED; False if it was finished before."""
        row = connection.execute("SELECT state, cost FROM frames WHERE id = ?", (ident,)).fetchone()
        if row is None:
            return self._give_up(connection, ident, state, reason, changes)
        # A frame dropped for room while its acknowledgement was on the way has arrived after all.
        if not (row[0] == State.SPOOLED or (row[0] == State.DROPPED and state is State.DELIVERED)):
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

    def _give_up(
        self, connection: sqlite3.Connection, ident: bytes, state: State, reason: str, changes: Changes
    ) -> bool:
        """Of an original only the history stays."""
        moved = connection.execute(
            "INSERT INTO frames (id, state, priority, cost, size, width, height, rate, picture_crc, created_ms,"
            " finished_ms, reason) SELECT id, ?, priority, 0, 0, width, height, 0, picture_crc, created_ms, ?, ?"
            " FROM originals WHERE id = ?",
            (state.value, int(time.time() * 1000), reason[:500], ident),
        )
        if not moved.rowcount:
            return False
        self.originals.remove(connection, ident)
        self.history += 1
        changes.append((uuid.UUID(bytes=ident), state, reason))
        return True

    def expire(self, connection: sqlite3.Connection, older_than_ms: int, changes: Changes) -> int:
        """Drops frames and originals created before that moment, except those made before the clock was set; returns
        how many."""
        old = "created_ms < ?1 AND created_ms >= ?2"
        query = f"SELECT id FROM frames WHERE {SPOOLED} AND {old} UNION ALL SELECT id FROM originals WHERE {old}"
        rows = connection.execute(query, (older_than_ms, _CLOCK_SET_MS)).fetchall()
        return sum(self.finish(connection, row[0], State.DROPPED, "too old", changes) for row in rows)

    def prune(self, connection: sqlite3.Connection) -> None:
        """Forgets the oldest finished frames beyond history_frames."""
        # In slices of a twentieth, so that not every commit pays for a deletion.
        over = self.history - self.history_frames
        if over > self.history_frames // 20:
            oldest = f"SELECT seq FROM frames WHERE {FINISHED} ORDER BY finished_ms LIMIT ?"
            connection.execute(f"DELETE FROM frames WHERE seq IN ({oldest})", (over,))
            self.history -= over
