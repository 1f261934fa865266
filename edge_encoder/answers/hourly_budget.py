"""What the answers about one source cost within the last 60 minutes, kept by request.

answerer.py has an HourlyBudget of AEIC_EDGE_REQUEST_BYTES_PER_HOUR for each source. The cloud counts separately, when a
request is stored (cloud_decoder/store/requests.py).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator

REQUEST_BYTES = 256
"""What each attempt at a request costs at least, however it ends: a refusal is sent too, and a picture may have been
decoded for it."""
LEAST_PIECE_BYTES = 1 << 10
"""A file is sent in pieces of at least so many bytes."""
PIECE_HEAD_BYTES = 96
"""What each piece costs besides its bytes: the ids and numbers with it, and the frames of gRPC and HTTP/2 around it."""
_SECONDS = 3600.0


def bytes_in_pieces(size: int) -> int:
    """The most that a file of `size` bytes costs if it is sent once."""
    return size + PIECE_HEAD_BYTES * -(-size // LEAST_PIECE_BYTES)


class Charge:
    """What one request takes of an hour: the bytes `sent` for it so far, and at least REQUEST_BYTES for each attempt.
    While it is worked on, all that is reserved for it."""

    def __init__(self, hour: HourlyBudget) -> None:
        self.sent = 0
        self.hour = hour
        self.attempts = 0
        self.ended_at = 0.0  # monotonic seconds, of the last attempt
        self._reserved = 0

    @property
    def bytes(self) -> int:
        """What is taken of the hour now."""
        return max(self.sent, self.attempts * REQUEST_BYTES, self._reserved)

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
        self._reserved, self.ended_at = 0, time.monotonic()


class HourlyBudget:
    """At most `limit` bytes within any 60 minutes, counted since the start of the process. A request that comes again
    continues with its own charge, as one of now. Used in one asyncio loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._working: dict[uuid.UUID, Charge] = {}
        self._ended: dict[uuid.UUID, Charge] = {}  # the longest ago first
        self._spent = 0  # by those that have ended

    @property
    def left(self) -> int:
        """Bytes that are neither spent nor reserved."""
        oldest = time.monotonic() - _SECONDS
        while self._ended:
            request, charge = next(iter(self._ended.items()))
            if charge.ended_at >= oldest:
                break
            self._forget(request)
        return max(0, self.limit - self._spent - sum(charge.bytes for charge in self._working.values()))

    @contextlib.contextmanager
    def attempt(self, request: uuid.UUID) -> Iterator[Charge | None]:
        """Charges an attempt at a request, one at a time; None where not even REQUEST_BYTES are left for it."""
        left = self.left
        charge = self._ended.get(request) or Charge(self)
        if (charge.attempts + 1) * REQUEST_BYTES - charge.bytes > left:
            yield None
            return
        self._forget(request)
        charge.attempts += 1
        self._working[request] = charge
        try:
            yield charge
        finally:
            del self._working[request]
            charge.end()
            self._ended[request] = charge
            self._spent += charge.bytes

    def _forget(self, request: uuid.UUID) -> None:
        charge = self._ended.pop(request, None)
        if charge is not None:
            self._spent -= charge.bytes
