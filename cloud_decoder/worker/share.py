"""One worker's share of a queue that many pull from: small claims of alike frames, by the database's clock.

It stands between the store and a :class:`Worker`, which knows no other queue than its own: a
worker alone may lease far ahead, one of many takes what it can begin soon, so that a crash costs little and the next
worker finds something. ``wake`` is called, on any thread, whenever there is room for more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from cloud_decoder.store.records import DecodeResult, LeasedFrame
from cloud_decoder.store.store import Store


class Share:
    """At most ``frames`` leased at once. What it does not say itself, the store says."""

    def __init__(self, store: Store, frames: int, wake: Callable[[], None]) -> None:
        self._store, self._frames, self._wake = store, frames, wake
        self._held: set[int] = set()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(
        self, owner: str, fingerprint: str, limit: int, now: float, lease: float, max_attempts: int
    ) -> list[LeasedFrame]:
        """As the store's, of one bucket, and none before half of what may be held is done: each claim is a commit."""
        with self._lock:
            room = self._frames - len(self._held)
        if room < (self._frames + 1) // 2:
            return []
        limit = min(limit, room)
        claimed = self._store.claim(owner, fingerprint, limit, self._store.clock(), lease, max_attempts, alike=True)
        self._hold(claimed)
        return claimed

    def claim_one(
        self, tenant: str, id: UUID, owner: str, now: float, lease: float, max_attempts: int
    ) -> LeasedFrame | None:
        """As the store's; somebody waits for it, so it counts but is not held back."""
        claimed = self._store.claim_one(tenant, id, owner, self._store.clock(), lease, max_attempts)
        self._hold([claimed] if claimed else [])
        return claimed

    def renew(self, seqs: Iterable[int], owner: str, until: float) -> None:
        """``until`` is by this machine's clock."""
        self._store.renew(seqs, owner, until - time.time() + self._store.clock())

    def release(self, seqs: Iterable[int], owner: str) -> None:
        """As the store's."""
        listed = list(seqs)
        self._drop(listed)
        self._store.release(listed, owner)

    def finish(self, finished: Sequence[DecodeResult], now: float) -> None:
        """As the store's. Where it fails, the lease runs out: the frames are nobody's in any case."""
        self._drop(one.seq for one in finished)
        self._store.finish(finished, now)

    def fail(self, seqs: Iterable[int], reason: str) -> None:
        """As the store's."""
        listed = list(seqs)
        self._drop(listed)
        self._store.fail(listed, reason)

    def _hold(self, claimed: Sequence[LeasedFrame]) -> None:
        with self._lock:
            self._held.update(one.row.seq for one in claimed)

    def _drop(self, seqs: Iterable[int]) -> None:
        with self._lock:
            self._held.difference_update(seqs)
        self._wake()
