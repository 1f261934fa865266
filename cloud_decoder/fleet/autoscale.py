"""How many workers a queue asks for. Pure: no clock, no Ray, no database.

Up at once, by depth (what it takes to be done in time) and by age (one more where the oldest job waits too long). Down
one at a time, after the queue has been empty for a while: a worker's start costs more than its idling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloud_decoder.store.records import Backlog


@dataclass
class Autoscaler:
    """Feed it with :meth:`want`; it remembers how fast a worker is and since when nothing waits."""

    min_workers: int
    max_workers: int
    drain_target_seconds: float
    max_age_seconds: float
    idle_seconds: float
    frames_per_second: float = 0.0
    """Of one worker, as seen; 0 until it was seen."""
    _done: int | None = None
    _at: float = 0.0
    _idle_since: float | None = None

    def want(self, backlog: Backlog, workers: int, done: int, now: float) -> int:
        """The number of workers for this backlog. ``done`` counts decoded frames for ever, ``now`` is in seconds."""
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
        """A running mean over the times when every worker had enough to do."""
        if self._done is not None and now > self._at and workers and backlog.ready and done > self._done:
            seen = (done - self._done) / (now - self._at) / workers
            self.frames_per_second += (0.3 if self.frames_per_second else 1.0) * (seen - self.frames_per_second)
        self._done, self._at = done, now
