"""The one connection that reads the spool, shared by all threads. Damage that it meets is repaired by the writer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_encoder.errors import SpoolError
from edge_encoder.spool import database
from edge_encoder.spool.system import System
from edge_encoder.spool.writer import Op


class Reader:
    """Thread safe. `submit` hands an operation to the writer, which repairs the file when the operation raises its
    damage. open() before the first read."""

    def __init__(self, path: Path, submit: Callable[[Op], Any], system: System) -> None:
        self._path = path
        self._submit = submit
        self._system = system
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """The rows; SpoolError when they cannot be read now."""
        with self._lock:
            connection = self._connection
            if connection is None:
                raise SpoolError("the spool is not open; see the log and try again")
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                failure = error

        def report(_: sqlite3.Connection) -> None:
            if self._connection is connection:  # not reopened since
                raise failure

        self._submit(Op(report))
        raise SpoolError(f"the spool cannot be read ({failure}); look at its disk") from failure

    def one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        """The first row, or None."""
        rows = self.all(query, values)
        return rows[0] if rows else None

    def open(self) -> None:
        """Begins or resumes reading; sqlite3.Error or OSError when the file cannot be opened."""
        with self._lock:
            if self._connection is None:
                self._connection = database.connect(self._path, self._system)

    def close(self) -> None:
        """Ends or suspends reading."""
        with self._lock:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                connection.close()
