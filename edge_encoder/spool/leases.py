"""Which frames are under way, and which must rest before the next attempt. In memory only: a restart sends again.

A frame's lease is `out` from lease to release. A released one rests for a delay that doubles with every attempt, so
that a frame on which the stream breaks each time lets the others overtake.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_MAX_DOUBLINGS = 6


@dataclass(slots=True)
class _Lease:
    out: bool = True
    attempts: int = 0
    retry_at: float = 0.0  # monotonic seconds


class Leases:
    """Leases by frame id (16 bytes). Thread safe."""

    def __init__(self) -> None:
        self._held: dict[bytes, _Lease] = {}
        self._lock = threading.Lock()

    def busy(self) -> set[bytes]:
        """Ids that must not be sent now."""
        now = time.monotonic()
        with self._lock:
            return {ident for ident, lease in self._held.items() if lease.out or lease.retry_at > now}

    def is_out(self, ident: bytes) -> bool:
        """True while the frame is under way."""
        with self._lock:
            lease = self._held.get(ident)
            return lease is not None and lease.out

    def take(self, ident: bytes) -> None:
        """Marks the frame as under way."""
        with self._lock:
            lease = self._held.setdefault(ident, _Lease())
            lease.out = True
            lease.attempts += 1

    def release(self, ident: bytes, delay_seconds: float) -> None:
        """The attempt came to nothing; the frame rests for the delay, doubled for every attempt before this one."""
        with self._lock:
            lease = self._held.get(ident)
            if lease is not None:
                lease.out = False
                lease.retry_at = time.monotonic() + delay_seconds * 2 ** min(lease.attempts - 1, _MAX_DOUBLINGS)

    def forget(self, ident: bytes) -> None:
        """The frame is finished."""
        with self._lock:
            self._held.pop(ident, None)

    def next_retry_seconds(self) -> float | None:
        """Seconds until a resting frame may go again; None when none rests."""
        now = time.monotonic()
        with self._lock:
            times = [lease.retry_at - now for lease in self._held.values() if not lease.out]
        return max(0.0, min(times)) if times else None
