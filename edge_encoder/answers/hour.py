"""What the answers about one source cost within the last 60 minutes, kept by request."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator

REQUEST_BYTES = 256
"""What each attempt at a request costs at least, however it ends: a refusal is sent too, and a picture may have been
decoded for it."""
_SECONDS = 3600.0


class Charge:
    """What one request takes of an hour: the bytes `sent` for it so far, and at least REQUEST_BYTES for each attempt.
    While it is worked on, all that is reserved for it."""

    def __init__(self, hour: Hour) -> None:
        self.sent = 0
        self.hour = hour
        self.attempts = 0
        self.working = False
        self.ended_at = 0.0  # monotonic seconds, of the last attempt
        self._reserved = 0

    @property
    def bytes(self) -> int:
        """What is taken of the hour now."""
        least = max(self.sent, self.attempts * REQUEST_BYTES)
        return max(least, self._reserved) if self.working else least

    @property
    def left(self) -> int:
        """What may still be sent of that which is reserved."""
        return max(0, self._reserved - self.sent)

    def reserve(self, total: int) -> bool:
        """Reserves `total` bytes for all attempts together, in place of what was reserved before. Where the hour has
        less, reserves what it has and returns False."""
        self._reserved = 0
        self._reserved = min(total, self.bytes + self.hour.left)
        return self._reserved == total

    def end(self) -> None:
        """The attempt has ended: what is reserved and was not sent is free again."""
        self.working, self._reserved, self.ended_at = False, 0, time.monotonic()


class Hour:
    """At most `limit` bytes within any 60 minutes, counted since the start of the process. A request that comes again
    continues with its own charge. Used in one asyncio loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._charges: dict[uuid.UUID, Charge] = {}

    @property
    def left(self) -> int:
        """Bytes that are neither spent nor reserved."""
        oldest = time.monotonic() - _SECONDS
        for request, charge in list(self._charges.items()):
            if not charge.working and charge.ended_at < oldest:
                del self._charges[request]
        return max(0, self.limit - sum(charge.bytes for charge in self._charges.values()))

    @contextlib.contextmanager
    def attempt(self, request: uuid.UUID) -> Iterator[Charge | None]:
        """Charges an attempt at a request; None where not even REQUEST_BYTES are left for it."""
        left = self.left
        charge = self._charges.get(request) or Charge(self)
        before = charge.bytes
        charge.attempts += 1
        if charge.bytes - before > left:
            charge.attempts -= 1
            yield None
            return
        self._charges[request] = charge
        charge.working = True
        try:
            yield charge
        finally:
            charge.end()
