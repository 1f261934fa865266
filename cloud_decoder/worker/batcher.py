"""Which waiting pieces go to the device together. Pure: no clock, no thread, no tensor.

The device asks when it is free (:meth:`Batcher.take`); nothing is sealed before, so a lone piece never waits for
company and a backlog always leaves in full batches. The most urgent piece picks the shape; pieces of that shape join
it in order of urgency until the batch is full.

Urgency: priority, raised by one for every ``aging_seconds`` waited (so nothing starves), then what the device is set up
for already, then the earlier deadline, then the earlier arrival.

A piece whose cost alone exceeds the cap goes alone: it must go some time, and waiting makes it no smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class WorkItem(Generic[K]):
    """Something the device can do in one go. Times are seconds of one monotonic clock."""

    key: K
    bucket: Hashable
    """Only pieces of one bucket share a batch: same bundle, same latent height and width."""
    cost: int
    """Pixels synthesised."""
    priority: int
    deadline: float
    """``math.inf`` for none."""
    arrived: float


class Batcher(Generic[K]):
    """The pieces that wait, and the choice among them. ``max_cost`` in pixels, ``max_items`` in pieces.

    ``at_hand`` says of a bucket whether the device can begin with it at once; without it every bucket is alike.
    """

    def __init__(
        self,
        *,
        max_cost: int,
        max_items: int,
        aging_seconds: float = 2.0,
        at_hand: Callable[[Hashable], bool] | None = None,
    ) -> None:
        if max_cost < 1 or max_items < 1 or aging_seconds <= 0:
            raise ValueError("max_cost, max_pieces and aging_seconds must be positive")
        self.max_cost = max_cost
        self.max_items = max_items
        self.aging_seconds = aging_seconds
        self._at_hand = at_hand or (lambda bucket: True)
        self._buckets: dict[Hashable, dict[K, WorkItem[K]]] = {}
        self._bucket_of: dict[K, Hashable] = {}

    def __len__(self) -> int:
        return len(self._bucket_of)

    def __contains__(self, key: K) -> bool:
        return key in self._bucket_of

    @property
    def cost(self) -> int:
        """Pixels waiting."""
        return sum(item.cost for bucket in self._buckets.values() for item in bucket.values())

    @property
    def full(self) -> bool:
        """Whether some bucket could fill a batch."""
        return any(
            len(bucket) >= self.max_items or sum(item.cost for item in bucket.values()) >= self.max_cost
            for bucket in self._buckets.values()
        )

    def add(self, item: WorkItem[K]) -> None:
        """Let ``item`` wait. ``ValueError`` where its key waits already."""
        if item.key in self._bucket_of:
            raise ValueError(f"{item.key!r} waits already")
        self._bucket_of[item.key] = item.bucket
        self._buckets.setdefault(item.bucket, {})[item.key] = item

    def discard(self, keys: Iterable[K]) -> None:
        """Forget pieces that nobody wants any more; unknown keys are ignored."""
        for key in keys:
            if key in self._bucket_of:
                bucket = self._bucket_of.pop(key)
                waiting = self._buckets[bucket]
                del waiting[key]
                if not waiting:
                    del self._buckets[bucket]

    def take_expired(self, now: float) -> list[WorkItem[K]]:
        """Remove and return the pieces whose deadline has passed: they must not reach the device."""
        expired = [p for bucket in self._buckets.values() for p in bucket.values() if p.deadline <= now]
        self.discard(item.key for item in expired)
        return expired

    def take(self, now: float) -> list[WorkItem[K]]:
        """Remove and return the best batch there is; empty only where nothing waits."""
        if not self._bucket_of:
            return []
        waiting = (item for bucket in self._buckets.values() for item in bucket.values())
        urgent = min(waiting, key=lambda item: self._urgency(item, now))
        best = sorted(self._buckets[urgent.bucket].values(), key=lambda item: self._urgency(item, now))
        batch = [best[0]]
        cost = best[0].cost
        for item in best[1 : self.max_items]:
            if cost + item.cost > self.max_cost:
                break
            batch.append(item)
            cost += item.cost
        self.discard(item.key for item in batch)
        return batch

    def _urgency(self, item: WorkItem[K], now: float) -> tuple[float, bool, float, float]:
        raised = math.floor(max(0.0, now - item.arrived) / self.aging_seconds)
        return -(item.priority + raised), not self._at_hand(item.bucket), item.deadline, item.arrived
