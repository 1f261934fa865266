"""The spool's table of originals: pictures that were received and are not encoded yet, and how often each was tried.

All that changes it runs in the writer's thread (writer.py), inside a transaction. Knows nothing of frames; that an
original becomes one, or is given up, in a single transaction is the ledger's doing (ledger.py).
"""

from __future__ import annotations

import sqlite3
import uuid

from edge_encoder.spool import database
from edge_encoder.spool.record import Original, State

ENTRY = f"id, {State.RECEIVED.value}, width, height, 0, 0, priority, picture_crc, created_ms, NULL, ''"
"""The columns of an Entry (records.py), in its order."""


class Originals:
    """`count` and `bytes` wait to be encoded."""

    def __init__(self) -> None:
        self.count = self.bytes = 0

    def recount(self, connection: sqlite3.Connection) -> None:
        """Takes the counts from the table."""
        self.count, self.bytes = connection.execute("SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM originals").fetchone()

    def insert(self, connection: sqlite3.Connection, original: Original) -> None:
        """Adds the original; the caller knows that its id is free."""
        self.bytes += database.insert_original(connection, original)
        self.count += 1

    def holds(self, connection: sqlite3.Connection, ident: uuid.UUID) -> bool:
        """Whether an original of that id waits."""
        return connection.execute("SELECT 1 FROM originals WHERE id = ?", (ident.bytes,)).fetchone() is not None

    def remove(self, connection: sqlite3.Connection, ident: bytes) -> None:
        """Forgets the original, if it is there, and its tries."""
        connection.execute("DELETE FROM tries WHERE id = ?", (ident,))
        for (cost,) in connection.execute("DELETE FROM originals WHERE id = ? RETURNING cost", (ident,)).fetchall():
            self.count -= 1
            self.bytes -= cost

    def begin(self, connection: sqlite3.Connection, ident: uuid.UUID) -> int:
        """The original is about to be encoded: which try this is, from 1; 0 when it is not here any more."""
        query = (
            "INSERT INTO tries SELECT id, 1 FROM originals WHERE id = ?"
            " ON CONFLICT (id) DO UPDATE SET count = count + 1 RETURNING count"
        )
        rows = connection.execute(query, (ident.bytes,)).fetchall()
        return int(rows[0][0]) if rows else 0

    def reset_attempts(self, connection: sqlite3.Connection, ident: uuid.UUID) -> None:
        """The tries so far are no fault of the original."""
        connection.execute("DELETE FROM tries WHERE id = ?", (ident.bytes,))
