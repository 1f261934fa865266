"""Verifies a spool that is too large to be verified while it is opened, in a thread beside its work.

A smaller one is verified before it is used (database.py). In a larger one, damage that no read meets could hide a frame
until the next start: an index without an entry for a frame that waits. What is found is handed to the writer, which
repairs the file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from edge_encoder.spool import database
from edge_encoder.spool.system import System


class Verified(StrEnum):
    """What is known of the whole file since the start of the process."""

    RUNNING = "running"
    OK = "ok"
    REPAIRED = "repaired"
    FAILED = "failed"


class Verification:
    """Of the file at `path`. `repair(error)` is called in its thread where the file is damaged, and returns once it is
    repaired."""

    def __init__(self, path: Path, system: System, repair: Callable[[sqlite3.Error], object]) -> None:
        self.result = Verified.OK
        self._path = path
        self._system = system
        self._repair = repair
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins; a file that was verified when it was opened needs no start()."""
        self.result = Verified.RUNNING
        self._thread = threading.Thread(target=self._run, name="spool-verification", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it, finished or not."""
        self._closed = True
        while self._thread is not None and self._thread.is_alive():
            if (connection := self._connection) is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.interrupt()
            self._thread.join(0.05)

    def _run(self) -> None:
        result = Verified.FAILED
        try:
            with contextlib.closing(database.connect(self._path, self._system)) as connection:
                self._connection = connection
                if self._closed:
                    return
                database.check(connection)
            result = Verified.OK
        except sqlite3.Error as error:
            if not self._closed and database.is_damage(error):
                with contextlib.suppress(Exception):  # the writer has logged it, and tries again
                    self._repair(error)
                    result = Verified.REPAIRED
        except OSError:
            pass
        finally:
            self._connection = None
            self.result = result
