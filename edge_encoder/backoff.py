"""How long to pause before the next try: growing by 1.6, within a ceiling, shaken so that a fleet does not march."""

from __future__ import annotations

import random

_FACTOR = 1.6
_JITTER = 0.2


class Backoff:
    """Pauses in seconds, from `least` to `most`; never ends."""

    def __init__(self, least: float, most: float, rng: random.Random | None = None) -> None:
        self.least = least
        self.most = most
        self._rng = rng or random.Random()
        self._next = least

    def pause(self) -> float:
        """The pause to make now; the following one is longer."""
        now = self._next
        self._next = min(self.most, now * _FACTOR)
        return now * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def reset(self) -> None:
        """It works again: begin with the shortest pause next time."""
        self._next = self.least
