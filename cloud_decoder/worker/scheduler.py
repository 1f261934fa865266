"""The jobs that wait, in one place: by content, for entropy decoding, and tile by tile for the device.

Knows urgency and limits; knows no store, no thread and no tensor. One event loop uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from aeic.bitstream import Frame
from aeic_service.errors import Draining, Overloaded
from cloud_decoder.errors import DeviceUnavailable
from cloud_decoder.metrics import Metrics
from cloud_decoder.tiling import Tile
from cloud_decoder.worker.batcher import Batcher, WorkItem
from cloud_decoder.worker.job import DEMAND_PRIORITY, Decoded, Job

POLL_SECONDS = 1.0
"""How long :meth:`Scheduler.change` sleeps at most, so that deadlines are seen."""


class Scheduler:
    """``max_demanded`` jobs that somebody waits for; stored frames are bounded by whoever claims them."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_demanded: int,
        max_batch: int,
        max_batch_pixels: int,
        aging_seconds: float,
        loaded: Callable[[str], bool],
    ) -> None:
        def at_hand(bucket: Any) -> bool:
            return loaded(bucket[0])  # every bucket begins with the bundle's fingerprint

        self.metrics = metrics
        self.max_demanded = max_demanded
        self.draining = False
        self.broken = False
        self.jobs: dict[str, Job] = {}
        self.entropy: Batcher[str] = Batcher(max_cost=2**62, max_items=1, aging_seconds=aging_seconds, at_hand=at_hand)
        self.device: Batcher[tuple[str, Tile]] = Batcher(
            max_cost=max_batch_pixels, max_items=max_batch, aging_seconds=aging_seconds, at_hand=at_hand
        )
        self.pixels_per_second = 1e6  # a running mean, for Retry-After
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self.jobs.values()))

    def has(self, job: Job) -> bool:
        """Whether this very job still counts; it does not once it ended or was dropped."""
        return self.jobs.get(job.digest) is job

    def stored(self, fingerprint: str) -> int:
        """Jobs of one bundle that stored frames wait for."""
        return sum(1 for job in self.jobs.values() if job.rows and job.frame.fingerprint == fingerprint)

    def admit(self) -> None:
        """``Overloaded``, ``Draining`` or ``DeviceUnavailable`` where one more demand is one too many."""
        if self.broken:
            self.metrics.sheds.labels("device").inc()
            raise DeviceUnavailable("the decoder has stopped working; its log says why", retry_after=10.0)
        if self.draining:
            self.metrics.sheds.labels("draining").inc()
            raise Draining()
        if sum(1 for job in self.jobs.values() if job.priority >= DEMAND_PRIORITY) >= self.max_demanded:
            self.metrics.sheds.labels("queue_full").inc()
            seconds = (self.entropy.cost + self.device.cost) / self.pixels_per_second
            message = f"{self.max_demanded} pictures wait already: ask again later"
            raise Overloaded(message, retry_after=min(60.0, max(1.0, seconds)))

    def add(self, digest: str, data: bytes, frame: Frame, priority: int, deadline: float = math.inf) -> Job:
        """A new job, waiting for entropy decoding."""
        done: asyncio.Future[Decoded] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        job = Job(digest, data, frame, priority, time.monotonic(), done, deadline)
        self.jobs[digest] = job
        self.entropy.add(job.entropy_piece())
        self.touch()
        return job

    def add_tiles(self, job: Job) -> None:
        """The next row of a job's tiles waits for the device."""
        for item in job.tile_items():
            self.device.add(item)
            job.outstanding += 1
        self.touch()

    def join(self, job: Job, priority: int, deadline: float) -> None:
        """One more wants it: it is as urgent as the most urgent, and lives as long as the most patient."""
        job.priority = max(job.priority, priority)
        job.deadline = max(job.deadline, deadline)
        self.requeue(job)

    def requeue(self, job: Job) -> None:
        """Its priority or deadline has changed: let it wait at its new place, where it waits at all."""
        if job.digest in self.entropy:
            self.entropy.discard([job.digest])
            self.entropy.add(job.entropy_piece())
        for item in job.tile_items():
            if item.key in self.device:
                self.device.discard([item.key])
                self.device.add(item)

    def take_entropy(self) -> Job | None:
        """The most urgent job that waits for entropy decoding."""
        items = self.entropy.take(time.monotonic())
        return self.jobs[items[0].key] if items else None

    def take_batch(self) -> list[tuple[Job, WorkItem[tuple[str, Tile]]]]:
        """The best batch for the device."""
        return [(self.jobs[item.key[0]], item) for item in self.device.take(time.monotonic())]

    def take_expired(self) -> list[Job]:
        """The jobs whose deadline has passed; they wait no longer, but are not ended yet."""
        now = time.monotonic()
        late = [p.key for p in self.entropy.take_expired(now)] + [p.key[0] for p in self.device.take_expired(now)]
        return [self.jobs[digest] for digest in dict.fromkeys(late)]

    def end(self, job: Job, error: Exception | None) -> None:
        """Take a job out of everything and answer who waits: with ``error``, or as cancelled."""
        self.remove(job)
        if not job.done.done():
            if error is None:
                job.done.cancel()
            else:
                job.done.set_exception(error)

    def remove(self, job: Job) -> None:
        """Take a job out of everything; its answer comes later."""
        if self.has(job):
            del self.jobs[job.digest]
            self.entropy.discard([job.digest])
            self.device.discard(item.key for item in job.tile_items())
        self.touch()

    def touch(self) -> None:
        """Something is different: wake whoever sleeps in :meth:`change`."""
        self._changed.set()

    async def change(self) -> None:
        """Sleep until something is added, taken or ended; or for a second."""
        self.metrics.waiting.labels("entropy").set(len(self.entropy))
        self.metrics.waiting.labels("device").set(len(self.device))
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)


def _seen(done: asyncio.Future[Decoded]) -> None:
    """Nobody may be waiting; then an exception is no news."""
    if not done.cancelled():
        done.exception()
