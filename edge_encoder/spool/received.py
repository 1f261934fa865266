"""Pictures that were received and are not encoded yet, and how often the encoding of each was attempted.

All changes run in the writer's thread (writer.py), inside a transaction. Independent of frames: frame_table.py
replaces a received picture by its frame, or gives it up, in one transaction. Once it is encoded, a picture may be kept
outside the spool, for requests of the cloud: originals/ring.py.
"""

from __future__ import annotations

import sqlite3
import uuid

from edge_encoder.spool import schema
from edge_encoder.spool.record import ReceivedPicture, State

ENTRY = f"id, {State.RECEIVED.value}, width, height, 0, 0, priority, picture_crc, created_ms, NULL, '', width, height"
"""The columns of an Entry (record.py), in its order."""


class ReceivedPictures:
    """`count` received pictures of `bytes` wait to be encoded."""

    def __init__(self) -> None:
        self.count = self.bytes = 0

    def recount(self, connection: sqlite3.Connection) -> None:
        """Reads the counts from the table."""
        self.count, self.bytes = connection.execute("SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM originals").fetchone()

    def insert(self, connection: sqlite3.Connection, received: ReceivedPicture, arrived_ms: int) -> None:
        """Adds the received picture; the caller knows that its id is free."""
        self.bytes += schema.insert_received(connection, received, arrived_ms)
        self.count += 1

    def arrived_ms(self, connection: sqlite3.Connection, ident: uuid.UUID) -> int | None:
        """When the received picture of that id arrived, in spool time; None when there is none."""
        row = connection.execute("SELECT arrived_ms FROM originals WHERE id = ?", (ident.bytes,)).fetchone()
        return None if row is None else int(row[0])

    def remove(self, connection: sqlite3.Connection, ident: bytes) -> None:
        """Deletes the received picture, if it is there, and its attempts."""
        connection.execute("DELETE FROM tries WHERE id = ?", (ident,))
        for (cost,) in connection.execute("DELETE FROM originals WHERE id = ? RETURNING cost", (ident,)).fetchall():
            self.count -= 1
            self.bytes -= cost

    def begin(self, connection: sqlite3.Connection, ident: uuid.UUID) -> int:
        """Counts an attempt to encode the received picture: its number, from 1; 0 when it is not here any more."""
        query = (
            "INSERT INTO tries SELECT id, 1 FROM originals WHERE id = ?"
            " ON CONFLICT (id) DO UPDATE SET count = count + 1 RETURNING count"
        )
        rows = connection.execute(query, (ident.bytes,)).fetchall()
        return int(rows[0][0]) if rows else 0

    def reset_attempts(self, connection: sqlite3.Connection, ident: uuid.UUID) -> None:
        """The attempts so far did not fail because of the received picture."""
        connection.execute("DELETE FROM tries WHERE id = ?", (ident.bytes,))
