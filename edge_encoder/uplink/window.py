"""The edge's own limit on the frames in flight. Nothing else slows sending: a stream sends as fast as gRPC takes.

stream.py sends while fewer frames are in flight than this window and that of the cloud's Welcome allow. An overloaded
cloud answers late, which shrinks this window, or ends the stream; uplink.py then pauses, longer each time, and connects
again. The frames wait in the spool.
"""

from __future__ import annotations

LEAST = 2
SLOW_SECONDS = 3.0
QUICK_SECONDS = 1.5


class Window:
    """The number of frames that may be in flight, `frames`: from LEAST (or `most`, if that is less) to `most`.

    A frame in flight cannot be overtaken. On a slow link a full window would delay an urgent frame by minutes, so the
    window shrinks by one with every answer that took longer than SLOW_SECONDS and grows by one with every answer that
    took less than QUICK_SECONDS. It starts full and outlives its stream. Pure logic: no clock.
    """

    def __init__(self, most: int, slow_seconds: float = SLOW_SECONDS, quick_seconds: float = QUICK_SECONDS) -> None:
        self.frames = most
        self._most = most
        self._slow_seconds = slow_seconds
        self._quick_seconds = quick_seconds

    def answered(self, seconds: float) -> None:
        """An answer arrived `seconds` after its frame was sent."""
        if seconds > self._slow_seconds:
            self.frames = max(min(LEAST, self._most), self.frames - 1)
        elif seconds < self._quick_seconds:
            self.frames = min(self._most, self.frames + 1)
