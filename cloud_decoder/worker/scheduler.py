"""The worker's jobs, indexed by digest, with queues for both stages: frames for entropy decoding, tiles for the device.

Frames over a size may have an entropy queue of their own, so that small ones do not wait for a large one.
It knows urgency and limits, but no store, no thread and no tensor. Use it from one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aeic.bitstream import Frame
from aeic_service.errors import Draining, Overloaded
from cloud_decoder.errors import DeviceUnavailable
from cloud_decoder.metrics import Metrics
from cloud_decoder.tiling import Tile
from cloud_decoder.worker.batcher import Batcher, Bucket, WorkItem
from cloud_decoder.worker.job import DEMAND_PRIORITY, Decoded, DecodeJob

POLL_SECONDS = 1.0
"""The longest sleep of :meth:`Scheduler.change`, so that passed deadlines are noticed."""


@dataclass(frozen=True)
class SchedulerSettings:
    """Limits of the queues."""

    max_demanded: int
    """Jobs that callers wait for. The claimer limits those of stored frames."""
    max_batch: int
    """Tiles of a batch."""
    max_batch_pixels: int
    aging_seconds: float
    """Waiting this long raises a priority by one."""
    large_pixels: int = 2**62
    """Jobs with more of them wait in ``Scheduler.large`` for entropy decoding, all others in ``Scheduler.entropy``."""


class Scheduler:
    """The jobs and their queues. A bundle's jobs are taken once ``loaded`` is true of its fingerprint."""

    def __init__(self, metrics: Metrics, loaded: Callable[[str], bool], settings: SchedulerSettings) -> None:
        def ready(bucket: Bucket) -> bool:
            return loaded(bucket[0])

        self.metrics = metrics
        self.settings = settings
        self.draining = False
        self.broken = False
        self.jobs: dict[str, DecodeJob] = {}
        aging = settings.aging_seconds
        self.entropy, self.large = (
            Batcher[str](max_cost=2**62, max_items=1, aging_seconds=aging, ready=ready) for _ in range(2)
        )
        self.device: Batcher[tuple[str, Tile]] = Batcher(
            max_cost=settings.max_batch_pixels, max_items=settings.max_batch, aging_seconds=aging, ready=ready
        )
        self.pixels_per_second = 1e6  # a running mean, for Retry-After
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[DecodeJob]:
        return iter(list(self.jobs.values()))

    def has(self, job: DecodeJob) -> bool:
        """Whether ``job`` is still scheduled; it is not once it ended or was dropped."""
        return self.jobs.get(job.digest) is job

    @property
    def waiting(self) -> dict[str, int]:
        """Items that wait, by stage."""
        return {"entropy": len(self.entropy) + len(self.large), "device": len(self.device)}

    def stored(self, fingerprint: str) -> int:
        """Jobs of one bundle that stored frames wait for."""
        return sum(1 for job in self.jobs.values() if job.rows and job.frame.fingerprint == fingerprint)

    def admit(self) -> None:
        """Raise ``Overloaded``, ``Draining`` or ``DeviceUnavailable`` where no further caller can be served."""
        if self.broken:
            self.metrics.sheds.labels("device").inc()
            raise DeviceUnavailable("the decoder has stopped working; its log says why", retry_after=10.0)
        if self.draining:
            self.metrics.sheds.labels("draining").inc()
            raise Draining()
        if sum(1 for job in self.jobs.values() if job.priority >= DEMAND_PRIORITY) >= self.settings.max_demanded:
            self.metrics.sheds.labels("queue_full").inc()
            seconds = (self.entropy.cost + self.large.cost + self.device.cost) / self.pixels_per_second
            message = f"{self.settings.max_demanded} pictures are waiting already: try again later"
            raise Overloaded(message, retry_after=min(60.0, max(1.0, seconds)))

    def add(self, digest: str, data: bytes, frame: Frame, priority: int, deadline: float = math.inf) -> DecodeJob:
        """A new job, waiting for entropy decoding."""
        done: asyncio.Future[Decoded] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_retrieve_exception)
        job = DecodeJob(digest, data, frame, priority, time.monotonic(), done, deadline)
        self.jobs[digest] = job
        self._entropy_queue(job).add(job.entropy_item())
        self.touch()
        return job

    def add_tiles(self, job: DecodeJob) -> None:
        """Queue the next row of the job's tiles for the device."""
        for item in job.tile_items():
            self.device.add(item)
            job.outstanding += 1
        self.touch()

    def join(self, job: DecodeJob, priority: int, deadline: float) -> None:
        """Add a caller: the job takes the highest priority and the latest deadline of its callers."""
        job.priority = max(job.priority, priority)
        job.deadline = max(job.deadline, deadline)
        self.requeue(job)

    def requeue(self, job: DecodeJob) -> None:
        """Move a waiting job to its new place after its priority or deadline has changed."""
        queue = self._entropy_queue(job)
        if job.digest in queue:
            queue.discard([job.digest])
            queue.add(job.entropy_item())
        for item in job.tile_items():
            if item.key in self.device:
                self.device.discard([item.key])
                self.device.add(item)

    def take_entropy(self, queue: Batcher[str], limit: int = 1, max_cost: int = 2**62) -> list[DecodeJob]:
        """The most urgent jobs of an entropy queue, at most ``limit`` and at most ``max_cost`` pixels together.

        The first one may be larger than that; it is then alone, as a suspect always is.
        """
        group: list[DecodeJob] = []
        while len(group) < limit and sum(job.cost for job in group) < max_cost:
            if not (items := queue.take(time.monotonic())):
                break
            job = self.jobs[items[0].key]
            if group and (job.suspect or sum(one.cost for one in group) + job.cost > max_cost):
                queue.add(items[0])
                break
            group.append(job)
            if job.suspect:
                break
        return group

    def take_tile(self, job: DecodeJob) -> list[tuple[DecodeJob, WorkItem[tuple[str, Tile]]]]:
        """One waiting tile of ``job`` as a separate batch; empty if none waits."""
        if not self.has(job):
            return []
        items = [item for item in job.tile_items() if item.key in self.device][:1]
        self.device.discard(item.key for item in items)
        return [(job, item) for item in items]

    def take_batch(self) -> list[tuple[DecodeJob, WorkItem[tuple[str, Tile]]]]:
        """The best batch for the device."""
        return [(self.jobs[item.key[0]], item) for item in self.device.take(time.monotonic())]

    def take_expired(self) -> list[DecodeJob]:
        """The jobs whose deadline has passed. They are taken from the queues; the caller has to :meth:`end` them."""
        now = time.monotonic()
        late = [item.key for queue in (self.entropy, self.large) for item in queue.take_expired(now)]
        late += [item.key[0] for item in self.device.take_expired(now)]
        return [self.jobs[digest] for digest in dict.fromkeys(late)]

    def end(self, job: DecodeJob, error: Exception | None) -> None:
        """Remove a job and answer its callers with ``error``, or with a cancellation if that is None."""
        self.remove(job)
        if not job.done.done():
            if error is None:
                job.done.cancel()
            else:
                job.done.set_exception(error)

    def remove(self, job: DecodeJob) -> None:
        """Remove a job whose callers are answered later."""
        if self.has(job):
            del self.jobs[job.digest]
            self._entropy_queue(job).discard([job.digest])
            self.device.discard(item.key for item in job.tile_items())
        self.touch()

    def _entropy_queue(self, job: DecodeJob) -> Batcher[str]:
        return self.large if job.cost > self.settings.large_pixels else self.entropy

    def touch(self) -> None:
        """Wake every task that sleeps in :meth:`change`."""
        self._changed.set()

    async def change(self) -> None:
        """Sleep until a job is added or removed, at most :data:`POLL_SECONDS`."""
        self.metrics.waiting.labels("entropy").set(self.waiting["entropy"])
        self.metrics.waiting.labels("device").set(len(self.device))
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)


def _retrieve_exception(done: asyncio.Future[Decoded]) -> None:
    """Without this, asyncio logs the exception of a job that no caller waits for."""
    if not done.cancelled():
        done.exception()
