"""Computes how many workers a queue needs. Pure logic: no clock, Ray or database.

It scales up at once: by depth, to drain the queue in time, and by age, with one more worker if the oldest job waits too
long. It scales down one at a time, after the queue was empty for a while: starting a worker costs more than idling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloud_decoder.store.records import Backlog


@dataclass
class Autoscaler:
    """Call :meth:`want` at intervals. It keeps the measured speed of a worker, and since when the queue is empty."""

    min_workers: int
    max_workers: int
    drain_target_seconds: float
    max_age_seconds: float
    idle_seconds: float
    frames_per_second: float = 0.0
    """Of one worker, as measured; 0 before the first measurement."""
    _done: int | None = None
    _at: float = 0.0
    _idle_since: float | None = None

    def want(self, backlog: Backlog, workers: int, done: int, now: float) -> int:
        """The number of workers for this backlog. ``done`` counts all frames decoded so far, ``now`` is in seconds."""
        self._learn(backlog, workers, done, now)
        wanted = workers
        if backlog.ready:
            self._idle_since = None
            if self.frames_per_second:
                by_depth = math.ceil(backlog.ready / (self.frames_per_second * self.drain_target_seconds))
                wanted = max(wanted, by_depth)
            if backlog.oldest_seconds > self.max_age_seconds or not workers:
                wanted = max(wanted, workers + 1)
        elif backlog.leased:
            self._idle_since = None
        else:
            self._idle_since = now if self._idle_since is None else self._idle_since
            if now - self._idle_since >= self.idle_seconds:
                self._idle_since = now
                wanted = workers - 1
        return max(self.min_workers, min(self.max_workers, wanted))

    def _learn(self, backlog: Backlog, workers: int, done: int, now: float) -> None:
        """Update the running mean, at times when every worker had enough to do."""
        if self._done is not None and now > self._at and workers and backlog.ready and done > self._done:
            measured = (done - self._done) / (now - self._at) / workers
            self.frames_per_second += (0.3 if self.frames_per_second else 1.0) * (measured - self.frames_per_second)
        self._done, self._at = done, now
