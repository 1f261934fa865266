"""Chooses which waiting items form the next batch. Pure logic: no clock, threads or tensors.

scheduler.py has one batcher for entropy decoding, whose items are frames, and one for the device, whose items are
pictures and tiles of pictures. All belong to jobs of this worker: stored frames that it has claimed, by turns of the
tenants (claimer.py, ``JobQueue.claim``), and bitstreams that callers wait for. The device's items are those that are
entropy-decoded; a more urgent frame that is not does not hold them up.

A batch is chosen when its stage is free (:meth:`Batcher.take`) and not before. On a CPU, where the stages take turns,
entropy decoding first runs ahead for a batch (``Pipeline._take_turns``). A suspect (job.py) takes its turn in both
stages at once, ahead of the device's queue (``Pipeline._decode_suspect``).
The most urgent item decides the bucket; items of the same bucket join it in order of urgency until the batch is full.

Urgency: priority, raised by one for every ``aging_seconds`` of waiting in this worker so that nothing starves; then
buckets that the device is ready for; then the lower turn, so that the rows of a large picture do not all go before a
small one that arrived later; then the earlier deadline; then the earlier arrival.

An item whose cost alone exceeds the limit forms a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Bucket = tuple[Any, ...]
"""What the items of a batch have in common. On the device: the bundle's fingerprint, then the height and width of the
latents of a tile, or of a whole picture. For entropy decoding, where every batch has one frame: the fingerprint.
A suspect's bucket also has its digest, so that it is alone (worker/job.py)."""


@dataclass(frozen=True)
class WorkItem(Generic[K]):
    """A unit of work for the device. Times are seconds of one monotonic clock."""

    key: K
    bucket: Bucket
    """Only items of one bucket share a batch."""
    cost: int
    """Pixels synthesised."""
    priority: int
    deadline: float
    """``math.inf`` for none."""
    arrived: float
    turn: int = 0
    """How many items of the same work were served before this one."""


class Batcher(Generic[K]):
    """The waiting items, and the choice among them. A batch has at most ``max_items`` and ``max_cost`` pixels.

    For the device these limits are ``max_batch`` and ``max_batch_pixels`` of the decoder. ``Pipeline.warm_up`` lowers
    ``max_cost`` to what every device has memory for.

    ``ready`` says whether the device can begin with a bucket at once; by default all buckets are equal.
    """

    def __init__(
        self,
        *,
        max_cost: int,
        max_items: int,
        aging_seconds: float = 2.0,
        ready: Callable[[Bucket], bool] | None = None,
    ) -> None:
        if max_cost < 1 or max_items < 1 or aging_seconds <= 0:
            raise ValueError("max_cost, max_items and aging_seconds must be positive")
        self.max_cost = max_cost
        self.max_items = max_items
        self.aging_seconds = aging_seconds
        self._ready = ready or (lambda bucket: True)
        self._buckets: dict[Bucket, dict[K, WorkItem[K]]] = {}
        self._bucket_of: dict[K, Bucket] = {}

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
        """Whether a bucket has enough items for a full batch."""
        return any(
            len(bucket) >= self.max_items or sum(item.cost for item in bucket.values()) >= self.max_cost
            for bucket in self._buckets.values()
        )

    def add(self, item: WorkItem[K]) -> None:
        """Add a waiting item. ``ValueError`` where an item with its key waits already."""
        if item.key in self._bucket_of:
            raise ValueError(f"{item.key!r} waits already")
        self._bucket_of[item.key] = item.bucket
        self._buckets.setdefault(item.bucket, {})[item.key] = item

    def discard(self, keys: Iterable[K]) -> None:
        """Remove items; unknown keys are ignored."""
        for key in keys:
            if key in self._bucket_of:
                bucket = self._bucket_of.pop(key)
                waiting = self._buckets[bucket]
                del waiting[key]
                if not waiting:
                    del self._buckets[bucket]

    def take_expired(self, now: float) -> list[WorkItem[K]]:
        """Remove and return the items whose deadline has passed: they must not reach the device."""
        expired = [item for bucket in self._buckets.values() for item in bucket.values() if item.deadline <= now]
        self.discard(item.key for item in expired)
        return expired

    def take(self, now: float) -> list[WorkItem[K]]:
        """Remove and return the most urgent batch; empty only where nothing waits."""
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

    def _urgency(self, item: WorkItem[K], now: float) -> tuple[float, bool, int, float, float]:
        raised = math.floor(max(0.0, now - item.arrived) / self.aging_seconds)
        return -(item.priority + raised), not self._ready(item.bucket), item.turn, item.deadline, item.arrived
