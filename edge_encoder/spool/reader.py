"""The one connection that reads the spool, for every thread. A broken file that it meets is mended by the writer."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_encoder.errors import SpoolError
from edge_encoder.spool import database
from edge_encoder.spool.writer import Op


class Reader:
    """Thread safe. `submit` hands a change to the writer, which mends the file when the change raises its damage."""

    def __init__(self, path: Path, submit: Callable[[Op], Any]) -> None:
        self._path = path
        self._submit = submit
        self._connection = database.connect(path)
        self._lock = threading.Lock()

    def all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """The rows; SpoolError when they cannot be read now."""
        with self._lock:
            connection = self._connection
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                failure = error

        def report(_: sqlite3.Connection) -> None:
            if self._connection is connection:  # not mended since
                raise failure

        if database.is_damage(failure):
            self._submit(Op(report))
        raise SpoolError(f"the spool cannot be read ({failure})") from failure

    def one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        """The first row, or None."""
        rows = self.all(query, values)
        return rows[0] if rows else None

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """While the file is exchanged; nobody reads, and then from the new one."""
        with self._lock:
            self._connection.close()
            yield
            self._connection = database.connect(self._path)

    def close(self) -> None:
        """Ends all reading."""
        with self._lock:
            self._connection.close()
