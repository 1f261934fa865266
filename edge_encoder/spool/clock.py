"""Spool time: an uptime-based clock that determines the age of frames.

It advances with the machine's uptime, so neither a wall clock that is set later (NTP) nor one that jumps makes a frame
older. It is saved in the spool at start and end, and in the next transaction after a step of the wall clock. The time
between two starts of the machine is taken from the wall clock only if that is plausible. Otherwise it counts as zero:
keeping a frame too long is harmless, dropping it too early loses it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from edge_encoder.spool.system import System

LONGEST_OFF_SECONDS = 7 * 86_400
"""A machine counts as switched off for at most this long; a longer time is a wall clock that was wrong."""

_STEP_MS = 1000  # a smaller difference from the uptime is drift, or the time between reading the two clocks

SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    spool_ms INTEGER NOT NULL,
    boot_ms INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    boot_id TEXT NOT NULL
);
"""


class SpoolClock:
    """Milliseconds of spool time; starts at 1 with a new spool."""

    def __init__(self, system: System, connection: sqlite3.Connection) -> None:
        self._system = system
        row = connection.execute("SELECT spool_ms, boot_ms, wall_ms, boot_id FROM clock").fetchone()
        self._base_ms = 1 if row is None else self._continued(*row)
        self._since_ms = self._boot_ms()

    def now_ms(self) -> int:
        """The spool time now."""
        return self._base_ms + max(0, self._boot_ms() - self._since_ms)

    def save(self, connection: sqlite3.Connection) -> None:
        """Saves the present time, inside a transaction."""
        values = self.now_ms(), self._boot_ms(), int(self._system.wall_seconds() * 1000), self._system.boot_id()
        connection.execute(
            "INSERT OR REPLACE INTO clock (id, spool_ms, boot_ms, wall_ms, boot_id) VALUES (0,?,?,?,?)", values
        )

    def save_step(self, connection: sqlite3.Connection) -> None:
        """Saves the present time, inside a transaction, if the wall clock was set since the last time: what passes
        until the next start of the machine is measured from there."""
        row = connection.execute("SELECT boot_ms, wall_ms FROM clock").fetchone()
        offset_ms = int(self._system.wall_seconds() * 1000) - self._boot_ms()
        known = row is not None and all(isinstance(value, int) for value in row)
        if not known or abs(offset_ms - (row[1] - row[0])) > _STEP_MS:
            self.save(connection)

    def _boot_ms(self) -> int:
        return int(self._system.boot_seconds() * 1000)

    def _continued(self, spool_ms: Any, boot_ms: Any, wall_ms: Any, boot_id: Any) -> int:
        passed: int
        if not all(isinstance(value, int) and 0 <= value < 1 << 53 for value in (spool_ms, boot_ms, wall_ms)):
            return 1
        if boot_id and boot_id == self._system.boot_id():
            passed = self._boot_ms() - boot_ms
        else:
            passed = int(self._system.wall_seconds() * 1000) - wall_ms
            if passed > LONGEST_OFF_SECONDS * 1000:
                passed = 0
        return int(spool_ms) + max(0, passed)
