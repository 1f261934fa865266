"""Whether the store can be written: a real commit, to the file that a restart will find."""

from __future__ import annotations

import threading
import time

import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.database import Database
from cloud_decoder.store.schema import store_clock

PROBE_SECONDS = 2.0
"""A result is used for this long, so that frequent probes do not become frequent commits."""
ANSWER_SECONDS = 5.0
"""A store that does not answer within this time is not ready."""


class StoreHealth:
    """Safe from several threads. At most one probe runs at a time, in a separate thread: a hung disk blocks it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._running = False
        self._started = self._probed = -PROBE_SECONDS
        self._result = ""

    def problem(self) -> str:
        """Why the store cannot be written; empty if it can. Blocks for at most :data:`ANSWER_SECONDS`."""
        with self._lock:
            if not self._running and time.monotonic() - self._probed >= PROBE_SECONDS:
                self._running, self._started = True, time.monotonic()
                self._finished.clear()
                threading.Thread(target=self._run, name="store-probe", daemon=True).start()
            running = self._running
        if running and not self._finished.wait(max(0.0, self._started + ANSWER_SECONDS - time.monotonic())):
            return f"the store has not answered for {time.monotonic() - self._started:.0f} s: look at its disk"
        return self._result

    def _run(self) -> None:
        result = self._probe()
        with self._lock:
            self._result, self._probed, self._running = result, time.monotonic(), False
        self._finished.set()

    def _probe(self) -> str:
        try:
            if gone := self._database.replaced:
                return gone
            with self._database.write() as connection:
                connection.execute(sa.update(store_clock).values(probes=store_clock.c.probes + 1))
        except StoreUnavailable as error:
            return str(error)
        except Exception as error:  # the pool is closed, or the machine has no memory left
            return f"the store cannot be probed ({type(error).__name__})"
        if self._database.damage:
            return f"the store is damaged ({self._database.damage}): aeic store check, then restore a backup"
        return ""
