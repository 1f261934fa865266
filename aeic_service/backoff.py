"""Exponential backoff: pauses grow by a factor of 1.6 up to a ceiling, with jitter against synchronised fleets."""

from __future__ import annotations

import random

_FACTOR = 1.6
_JITTER = 0.2


class Backoff:
    """Pauses in seconds, from ``least`` to ``most``, without end."""

    def __init__(self, least: float, most: float, rng: random.Random | None = None) -> None:
        self.least = least
        self.most = most
        self._rng = rng or random.Random()
        self._next = least

    def pause(self) -> float:
        """The next pause in seconds: longer than the one before, up to `most`, and 20 % more or less at random."""
        now = self._next
        self._next = min(self.most, now * _FACTOR)
        return now * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def reset(self) -> None:
        """After a success: the next pause is the shortest again."""
        self._next = self.least
