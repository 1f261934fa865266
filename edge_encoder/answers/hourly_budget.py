"""What the answers about one source cost within the last 60 minutes, kept by request.

answerer.py has an HourlyBudget of AEIC_EDGE_REQUEST_BYTES_PER_HOUR for each source. What is charged is written to a
file before it is sent (charge_file.py), so that a box in a loop of restarts does not spend more than one that runs. The
cloud counts separately, when a request is stored (cloud_decoder/store/requests.py).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_encoder.answers.charge_file import ChargeFile

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

    def __init__(self, hour: HourlyBudget, request: uuid.UUID) -> None:
        self.sent = 0
        self.hour = hour
        self.request = request
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

    def spend(self, size: int) -> None:
        """So many bytes are about to be sent; fewer than 0: they were not."""
        self.sent += size
        self.hour.record(self)

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
    """At most `limit` bytes within any 60 minutes. A request that comes again continues with its own charge, as one of
    now. `record(charge)` is called before what a charge counts is sent. Used in one asyncio loop."""

    def __init__(self, limit: int, record: Callable[[Charge], None] = lambda charge: None) -> None:
        self.limit = limit
        self.record = record
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
        charge = self._ended.get(request) or Charge(self, request)
        if (charge.attempts + 1) * REQUEST_BYTES - charge.bytes > left:
            yield None
            return
        self._forget(request)
        charge.attempts += 1
        self._working[request] = charge
        try:
            self.record(charge)
            yield charge
        finally:
            del self._working[request]
            charge.end()
            self._ended[request] = charge
            self._spent += charge.bytes

    def restore(self, request: uuid.UUID, attempts: int, sent: int, age: float) -> None:
        """Counts what an earlier process has charged, `age` seconds ago. The longest ago first."""
        charge = Charge(self, request)
        charge.attempts, charge.sent, charge.ended_at = attempts, sent, time.monotonic() - age
        self._ended[request] = charge
        self._spent += charge.bytes

    def _forget(self, request: uuid.UUID) -> None:
        charge = self._ended.pop(request, None)
        if charge is not None:
            self._spent -= charge.bytes


class HourlyBudgets:
    """An HourlyBudget of `limit` bytes for each source, and `refusals`, one of `refusal_bytes` for what no source pays
    for. They continue where an earlier process has ended, by the file at `path` and a clock that counts on through
    restarts, `now_ms()`."""

    def __init__(self, limit: int, refusal_bytes: int, path: Path, now_ms: Callable[[], int]) -> None:
        self._limit = limit
        self._file = ChargeFile(path, _SECONDS, now_ms)
        self.refusals = self._new("", refusal_bytes)
        self._of = {"": self.refusals}
        for one in self._file.found:
            self.of(one.source).restore(one.request, one.attempts, one.sent, one.age)

    def of(self, source: str) -> HourlyBudget:
        """The hour of a source; a source has a name."""
        if source not in self._of:
            self._of[source] = self._new(source, self._limit)
        return self._of[source]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _new(self, source: str, limit: int) -> HourlyBudget:
        def record(charge: Charge) -> None:
            self._file.record(source, charge.request, charge.attempts, charge.sent)

        return HourlyBudget(limit, record)
