"""Frames in flight: those of one stream that are leased and not yet answered.

Frames are answered in the order in which they were sent, so a count is enough to name them. stream.py adds frames that
it has leased from the spool, and returns to the spool what is left when it ends. Independent of gRPC and the spool.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice


@dataclass(slots=True)
class _Sent:
    size: int
    at: float | None = None  # monotonic time of the hand-over to gRPC; None before


class InFlight:
    """Keyed by frame id, in sending order. `progress` is the time of the last answer, or of the first frame sent after
    an idle period."""

    def __init__(self) -> None:
        self.progress = 0.0  # monotonic seconds
        self._frames: dict[uuid.UUID, _Sent] = {}
        self._sent = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def sent(self) -> int:
        """How many were handed to gRPC."""
        return self._sent

    def lease(self, ident: uuid.UUID, size: int) -> None:
        """The frame was leased; it has `size` bytes."""
        self._frames[ident] = _Sent(size)

    def send(self, ident: uuid.UUID) -> None:
        """The frame is handed to gRPC now."""
        now = time.monotonic()
        if not self._sent:
            self.progress = now
        self._sent += 1
        self._frames[ident].at = now

    def first(self, count: int) -> list[uuid.UUID]:
        """The ids of the next `count` frames to be answered; ValueError when fewer were sent."""
        if count > self._sent:
            raise ValueError(f"{count} frames answered, but only {self._sent} sent")
        return list(islice(self._frames, count))

    def answer(self, ident: uuid.UUID) -> tuple[int, float | None]:
        """Removes an answered frame: its bytes, and the seconds since it was sent; (0, None) for an unknown id."""
        frame = self._frames.pop(ident, None)
        if frame is None:
            return 0, None
        self.progress = time.monotonic()
        if frame.at is None:
            return frame.size, None
        self._sent -= 1
        return frame.size, self.progress - frame.at

    def clear(self) -> Iterable[uuid.UUID]:
        """Removes all frames and returns their ids, in sending order."""
        idents = list(self._frames)
        self._frames.clear()
        self._sent = 0
        return idents
