"""Leases: which frames are being sent, and which wait before their next attempt. In memory only: a restart sends again.

A frame's lease is out from take() to release(). A released frame waits for a delay that doubles with every attempt, so
that a frame on which the stream breaks each time does not hold up the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

_MAX_DOUBLINGS = 6


@dataclass(slots=True)
class _Lease:
    out: bool = True
    attempts: int = 0
    retry_at: float = 0.0


class Leases:
    """Leases by frame id (16 bytes). Thread safe. `clock` is in seconds and never jumps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[bytes, _Lease] = {}
        self._lock = threading.Lock()

    def busy(self) -> set[bytes]:
        """Ids that must not be sent now."""
        now = self._clock()
        with self._lock:
            return {ident for ident, lease in self._held.items() if lease.out or lease.retry_at > now}

    def is_out(self, ident: bytes) -> bool:
        """True while the frame is being sent."""
        with self._lock:
            lease = self._held.get(ident)
            return lease is not None and lease.out

    def take(self, ident: bytes) -> None:
        """Marks the frame as being sent."""
        with self._lock:
            lease = self._held.setdefault(ident, _Lease())
            lease.out = True
            lease.attempts += 1

    def untake(self, ident: bytes) -> None:
        """Undoes take(): there was no attempt."""
        with self._lock:
            lease = self._held.get(ident)
            if lease is not None:
                lease.out = False
                lease.attempts -= 1

    def release(self, ident: bytes, delay_seconds: float) -> None:
        """The attempt failed; the frame waits for the delay, doubled for every attempt before this one."""
        with self._lock:
            lease = self._held.get(ident)
            if lease is not None:
                lease.out = False
                lease.retry_at = self._clock() + delay_seconds * 2 ** min(lease.attempts - 1, _MAX_DOUBLINGS)

    def forget(self, ident: bytes) -> None:
        """The frame is finished."""
        with self._lock:
            self._held.pop(ident, None)

    def next_retry_seconds(self) -> float | None:
        """Seconds until a released frame may be sent again; None when none waits."""
        now = self._clock()
        with self._lock:
            times = [lease.retry_at - now for lease in self._held.values() if not lease.out]
        return max(0.0, min(times)) if times else None
