"""Chooses the default rate point so that frames stay below a target age on a link of unknown speed.

The expected wait of a new frame is the larger of the age of the oldest frame and the backlog divided by the recent
throughput of the link. When it exceeds three quarters of the target age, the rate drops by one point, and by another
after each further quarter. When it stays below one quarter for a whole target age, the rate rises by one point, up to
the ceiling, which is the bundle's default. The wide dead band keeps the quality from oscillating.

EdgeService calls `observe` once a second, if AEIC_EDGE_TARGET_AGE_SECONDS is set (service.py, `_housekeeping`).
Submitter reads `rate` for each picture that asks for neither a rate point nor a number of bytes
(submission/submitter.py, `_make`). Without a target age such a picture gets the bundle's default rate point or, where
the edge's own settings limit the bytes, the best one that fits, up to the highest (encoder.py, `encode`). Pure logic:
time and the state of the spool are passed in.
"""

from __future__ import annotations

_DOWN_AT = 0.75
_UP_AT = 0.25
_SMOOTHING_SECONDS = 10.0


class LinkAdaptation:
    """Rate points 0..ceiling; begins at the ceiling. Times are seconds of any steady clock."""

    def __init__(self, ceiling: int, target_age_seconds: float) -> None:
        self.rate = ceiling
        self._ceiling = ceiling
        self._target_age = target_age_seconds
        self._link: float | None = None  # bytes per second while there was something to send
        self._moved: float | None = None
        self._calm_since: float | None = None
        self._last: tuple[float, int] | None = None

    def observe(self, now: float, oldest_seconds: float, backlog_bytes: int, sent_bytes: int) -> int:
        """Takes the state at `now` (`sent_bytes` never decreases) and returns the rate point for new frames."""
        if self._last is not None:
            span, sent = now - self._last[0], sent_bytes - self._last[1]
            if span > 0 and (backlog_bytes or sent):
                speed, weight = sent / span, min(1.0, span / _SMOOTHING_SECONDS)
                self._link = speed if self._link is None else self._link + weight * (speed - self._link)
        self._last = (now, sent_bytes)
        wait = max(oldest_seconds, self._drain_seconds(backlog_bytes))
        if wait > _DOWN_AT * self._target_age:
            self._calm_since = None
            if self.rate > 0 and (self._moved is None or now - self._moved >= self._target_age / 4):
                self.rate, self._moved = self.rate - 1, now
        elif wait < _UP_AT * self._target_age:
            if self._calm_since is None:
                self._calm_since = now
            elif self.rate < self._ceiling and now - self._calm_since >= self._target_age:
                self.rate, self._moved, self._calm_since = self.rate + 1, now, now
        else:
            self._calm_since = None
        return self.rate

    def _drain_seconds(self, backlog_bytes: int) -> float:
        # Without a measured throughput only the age of the oldest frame counts.
        return backlog_bytes / self._link if backlog_bytes and self._link else 0.0
