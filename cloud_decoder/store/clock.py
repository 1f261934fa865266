"""Trusted time for the age of stored frames. It follows the wall clock while the wall clock is plausible.

A wall clock may be wrong by years: a dead battery, a bad time server, a virtual machine that was resumed. Retention by
age must not delete anything because of it. The store therefore records the latest time that it has seen:

* At a start, a clock that is further ahead than ``max_jump_seconds`` is refused.
* While the service runs, a clock that moves by more than :data:`SLACK_SECONDS` against a steady clock is refused. If
  the jump is within ``max_jump_seconds`` and lasts for :data:`SETTLE_SECONDS`, it is accepted.
* A clock that is behind the recorded time is refused in the same way.

While the clock is refused, :meth:`TrustedClock.now` counts on from the last accepted time, and retention must not run
(:attr:`TrustedClock.problem` is not empty). That time lags if the service was off before. Frames that arrive meanwhile
would look older than they are, so their times of arrival are corrected when the clock is accepted.
:func:`accept` is the operator's decision that the clock is right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.schema import frames, store_clock

log = logging.getLogger(__name__)

SLACK_SECONDS = 300.0
"""A smaller difference is ignored: time servers step clocks, and a fleet's clocks differ."""
SETTLE_SECONDS = 3600.0
"""A jump while the service runs is accepted after it has lasted this long, if it is small enough."""
DAY = 86_400.0


def steady_seconds() -> float:
    """Seconds of a clock that never jumps and counts the time in which the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class TrustedClock:
    """``wall`` gives seconds since 1970, ``steady`` seconds of a clock that never jumps. Safe from several threads."""

    def __init__(
        self,
        database: Database,
        max_jump_seconds: float,
        *,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._database, self._max_jump = database, max_jump_seconds
        self._wall, self._steady = wall or database.clock, steady
        self._lock = threading.Lock()
        self._trusted: float | None = None  # at the steady time below
        self._at = 0.0
        self._jumped_at: float | None = None
        self._refused_from_ms = 0  # the latest time that was recorded before the clock was refused
        self.problem = ""
        """Why the wall clock is refused, with the remedy; empty while it is trusted."""

    def now(self) -> float:
        """The trusted time, in seconds since 1970. Reads the store only at the first call."""
        with self._lock:
            trusted = self._trusted
        if trusted is None:
            return self.look()
        wall = self._wall()
        with self._lock:
            expected = trusted + self._steady() - self._at if self._trusted == trusted else self._expected()
            return wall if not self.problem and abs(wall - expected) <= SLACK_SECONDS else expected

    def look(self) -> float:
        """Compare the wall clock with the last time seen, record the result, and return the trusted time.

        ``StoreUnavailable`` where the store cannot be read or written.
        """
        with self._database.read() as connection:
            seen_ms = connection.scalar(sa.select(store_clock.c.seen_ms))
        seen = None if seen_ms is None else seen_ms / 1000
        wall = self._wall()
        with self._lock:
            expected, lag = self._expected(seen), 0.0
            if problem := self._judge(wall, seen):
                self._trusted = expected
            else:
                lag = wall - expected if self.problem else 0.0
                self._trusted, self._jumped_at = wall, None
            self._at = self._steady()
            if problem and not self.problem:
                self._refused_from_ms = int(seen_ms or 0)
                log.error("%s", problem)
            elif self.problem and not problem:
                log.warning("the clock is trusted again: %s", _date(wall))
            self.problem = problem
            trusted = self._trusted
        if not problem:
            with self._database.write(durable=False) as connection:
                connection.execute(sa.update(store_clock).values(seen_ms=int(trusted * 1000)))
                if lag > SLACK_SECONDS:
                    arrived = frames.c.received_ms
                    late = sa.update(frames).where(arrived >= self._refused_from_ms, arrived <= int(expected * 1000))
                    connection.execute(late.values(received_ms=arrived + int(lag * 1000)))
        return trusted

    def _expected(self, seen: float | None = None) -> float:
        """The last trusted time and what has passed since; ``seen`` before the first look."""
        if self._trusted is None:
            return self._wall() if seen is None else seen
        return self._trusted + self._steady() - self._at

    def _judge(self, wall: float, seen: float | None) -> str:
        """Why ``wall`` is refused; empty if it is accepted."""
        if seen is None or abs(wall - seen) <= SLACK_SECONDS:  # another process or an operator may have accepted it
            return ""
        ahead = wall - seen
        if self._trusted is None:
            if 0 <= ahead <= self._max_jump:  # the service was off
                return ""
        elif abs(wall - self._expected()) <= SLACK_SECONDS:
            return ""
        if self._jumped_at is None:
            self._jumped_at = self._steady()
        if abs(ahead) <= self._max_jump and self._steady() - self._jumped_at >= SETTLE_SECONDS:
            return ""
        far = f"{abs(ahead) / DAY:.1f} days" if abs(ahead) >= DAY else f"{abs(ahead) / 60:.0f} minutes"
        return (
            f"the clock says {_date(wall)}, which is {far} {'ahead of' if ahead > 0 else 'behind'} the latest"
            f" time that this store has recorded ({_date(seen)}): retention has stopped; correct the clock, or accept"
            " it with 'aeic store accept-clock'"
        )


def accept(database: Database) -> tuple[str, str]:
    """Trust the clock as it is now. Returns the last time seen and the accepted one, as text."""
    now = database.clock()
    with database.write() as connection:
        seen = connection.scalar(sa.select(store_clock.c.seen_ms))
        connection.execute(sa.update(store_clock).values(seen_ms=int(now * 1000)))
    return ("never" if seen is None else _date(seen / 1000)), _date(now)


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"
