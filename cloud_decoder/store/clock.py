"""Trusted time for the age of stored frames. It follows the wall clock while the wall clock is plausible.

A wall clock may be wrong by years: a dead battery, a bad time server, a virtual machine that was resumed. Retention by
age must not delete anything because of it. The store therefore records the latest time that it has seen:

* At a start, a clock that is further ahead than ``max_jump_seconds`` is refused.
* While the service runs, a clock that moves by more than :data:`SLACK_SECONDS` against a steady clock is refused. If
  the jump is within ``max_jump_seconds`` and lasts for :data:`SETTLE_SECONDS`, it is accepted.
* A clock that is behind the recorded time is refused in the same way.

While the clock is refused, :meth:`TrustedClock.now` counts on from the last accepted time, and retention must not run
(:attr:`TrustedClock.problem` is not empty). Each look records that time too, so that all processes count alike and a
restart goes on from there. It lags if the service was off before. Frames that arrive meanwhile would look older than
they are, so their times of arrival are corrected by the first process that accepts the clock, which may be one that
starts then. :func:`accept` is the operator's decision that the clock is right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.schema import frames, store_clock

log = logging.getLogger(__name__)

SLACK_SECONDS = 300.0
"""A smaller difference is ignored: time servers step clocks, and a fleet's clocks differ."""
SETTLE_SECONDS = 3600.0
"""A jump while the service runs is accepted after it has lasted this long, if it is small enough."""
DAY = 86_400.0
_NEWEST = sa.select(frames.c.received_ms).order_by(frames.c.seq.desc()).limit(1).scalar_subquery()
_SEEN = sa.select(store_clock.c.seen_ms, store_clock.c.refused_ms, sa.func.coalesce(_NEWEST, 0).label("newest_ms"))


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
            found = connection.execute(_SEEN).one()
        seen = None if found.seen_ms is None else found.seen_ms / 1000
        wall, since_ms = self._wall(), found.seen_ms
        with self._lock:
            if self._trusted is not None or since_ms is None:
                expected = self._expected()
            else:
                # A start counts on from the frames of the run before it: all that arrive now come after them.
                if since_ms <= found.newest_ms <= wall * 1000:
                    since_ms = found.newest_ms + 1
                expected = since_ms / 1000
            at = self._steady()
            problem = self._judge(wall, seen)
        if not problem:
            self._accept(wall, expected)
        with self._lock:
            self._trusted, self._at = expected if problem else wall, at
            if problem and not self.problem:
                log.error("%s", problem)
            elif self.problem and not problem:
                log.warning("the clock is trusted again: %s", _date(wall))
            self._jumped_at = self._jumped_at if problem else None
            self.problem, trusted = problem, self._trusted
        if problem:
            self._count_on(found, expected, since_ms)
        return trusted

    def _count_on(self, found: Any, expected: float, since_ms: int) -> None:
        """Record the time ``expected`` although the clock is refused, and that it is since ``since_ms``."""
        values = {
            "seen_ms": max(found.seen_ms, int(expected * 1000)),
            "refused_ms": since_ms if found.refused_ms is None else found.refused_ms,
        }
        # Another process or an operator may have accepted the clock since, or looked at it.
        unchanged = [
            store_clock.c[name].is_not_distinct_from(getattr(found, name)) for name in ("seen_ms", "refused_ms")
        ]
        with self._database.write() as connection:
            connection.execute(sa.update(store_clock).where(*unchanged).values(values))

    def _accept(self, wall: float, expected: float) -> None:
        """Record ``wall`` as the time seen, and correct the frames that arrived while it was refused."""
        with self._database.write(durable=False) as connection:
            found = connection.execute(_SEEN.with_for_update(of=store_clock)).one()
            connection.execute(sa.update(store_clock).values(seen_ms=int(wall * 1000), refused_ms=None))
            if found.refused_ms is not None:
                if self._trusted is None:  # the time that was recorded is an operator's, or lacks what came after it
                    expected = found.newest_ms / 1000
                _correct(connection, found.refused_ms, wall, wall - expected)
            elif self.problem:  # another process has corrected what arrived until it accepted
                lag = wall - expected
                since_ms = found.seen_ms - int((lag + SLACK_SECONDS) * 1000)
                _correct(connection, since_ms, expected, lag)

    def _expected(self) -> float:
        """The last trusted time and what has passed since; the wall clock before the first look."""
        if self._trusted is None:
            return self._wall()
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


def _correct(connection: sa.Connection, since_ms: int, until: float, lag: float) -> None:
    """Add ``lag`` seconds to the times of arrival from ``since_ms`` until ``until``, in seconds."""
    if lag > SLACK_SECONDS:
        arrived = frames.c.received_ms
        late = sa.update(frames).where(arrived >= since_ms, arrived <= int(until * 1000))
        connection.execute(late.values(received_ms=arrived + int(lag * 1000)))


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"
