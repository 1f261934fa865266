"""From waiting frames to pictures: lease, entropy decoding, batch, device, cache, done.

::

    store -- claimer --> +---------+ urgency +---------+ best batch +--------+      +------------+  cache, store,
    stored frame ------> | entropy | ------> | entropy | ---------> | device | ---> | completion | ---> callers
    POST /v1/decode ---> | queue   |         | threads |  by shape  |        |      | threads    |
                         +---------+         +---------+            +--------+      +------------+
                          scheduler          `----------- pipeline ------------'

All bookkeeping happens in one event loop; threads do the computing and the blocking calls. All callers that want the
same bytes share one :class:`~cloud_decoder.worker.job.DecodeJob`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aeic.bitstream import Frame
from aeic_service.errors import Draining
from cloud_decoder.decode_backend import Decoded, check_frame
from cloud_decoder.errors import DeviceUnavailable, Expired, StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.images import formats
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import Store, StoredFrame
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Picture
from cloud_decoder.worker.claimer import Claimer, ClaimSettings
from cloud_decoder.worker.completion import Completion
from cloud_decoder.worker.job import DEMAND_PRIORITY, DecodeJob
from cloud_decoder.worker.pipeline import READY_BATCHES, TURN_PIXELS, Pipeline, PipelineLimits
from cloud_decoder.worker.scheduler import Scheduler, SchedulerSettings

log = logging.getLogger(__name__)

REVIVE_SECONDS = 0.5
REVIVE_MOST_SECONDS = 30.0
"""Pause before a worker that has failed begins again: the first one, and the longest."""
FAILURE_SECONDS = 60.0
"""A worker that has not worked for this long should be started in another process: liveness reports it."""
FAILURES, FAILURES_SECONDS = 10, 300.0
"""So should one that has failed this often within this time."""


@dataclass(frozen=True)
class WorkerSettings:
    """Limits of a worker. Those of its claims are explained in :class:`~cloud_decoder.worker.claimer.ClaimSettings`."""

    owner: str = "cloud"
    lease_seconds: float = 60.0
    max_attempts: int = 3
    max_leased: int | None = None
    max_queue: int = 256
    """Requested decodes that may wait."""
    max_pixels: int = 8192 * 8192
    """Pixels of the largest picture."""
    max_pixels_at_once: int = 2**62
    """Pixels held between entropy decoding and the end of the synthesis; the frame that reaches it is still begun."""
    aging_seconds: float = 2.0
    """Waiting this long raises a priority by one."""


class Worker:
    """The :class:`~cloud_decoder.decode_backend.DecodeBackend` that decodes here, on one device.

    ``model_pool`` stays its maker's to close; its default bundle's decoder sets the limits for all bundles.
    """

    def __init__(
        self,
        model_pool: ModelPool,
        store: Store,
        cache: PictureCache,
        metrics: Metrics,
        event_bus: EventBus,
        settings: WorkerSettings,
    ) -> None:
        decoder = model_pool.first()
        model_pool.on_load = metrics.model_load_seconds.observe
        self.device, self._decoder = decoder.device, decoder
        self._model_pool, self.metrics, self._max_pixels = model_pool, metrics, settings.max_pixels
        scheduling = SchedulerSettings(
            max_demanded=settings.max_queue,
            max_batch=decoder.max_batch,
            max_batch_pixels=decoder.max_batch_pixels,
            aging_seconds=settings.aging_seconds,
            large_pixels=TURN_PIXELS if decoder.shares_cpu else 2**62,
        )
        self.scheduler = Scheduler(metrics, model_pool.loaded, scheduling)
        self._store_threads = ThreadPoolExecutor(2, "store")
        self._image_threads = ThreadPoolExecutor(formats.THREADS, "image")
        claims = ClaimSettings(
            owner=settings.owner,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            lookahead=max(32, 2 * READY_BATCHES * decoder.max_batch),
            max_leased=settings.max_leased,
        )
        self._claimer = Claimer(store, self.scheduler, self._store_threads, model_pool, claims)
        self._completion = Completion(self._claimer, cache, metrics, event_bus, self._image_threads)
        self._pipeline = Pipeline(
            model_pool,
            self.scheduler,
            self._completion,
            self._claimer,
            metrics,
            PipelineLimits(max_pixels=settings.max_pixels_at_once, max_deaths=settings.max_attempts),
        )
        self._loops: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._broken_at: float | None = None
        self._failures: deque[float] = deque(maxlen=FAILURES)

    # -- start and stop ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return what an earlier run held to the queue, warm up, and begin."""
        await self._claimer.recover()
        await self._pipeline.warm_up()
        self._begin()
        self._renewing = asyncio.create_task(self._claimer.renew(lambda: [*self.scheduler, *self._completion.held]))

    def _begin(self) -> None:
        self._loops = [asyncio.ensure_future(loop()) for loop in (*self._pipeline.loops(), self._claimer.run)]
        for loop in self._loops:
            loop.add_done_callback(self._report)

    async def stop(self) -> None:
        """Finish the batch on the device, return the rest, answer every caller. A second call does nothing."""
        if self.scheduler.draining:
            return
        self.scheduler.draining = True
        self.scheduler.touch()
        self.wake()
        if self._reviving:
            self._reviving.cancel()
            await asyncio.gather(self._reviving, return_exceptions=True)
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._completion.drain()
        if self._renewing:
            self._renewing.cancel()
        while left := list(self.scheduler):  # callers that arrive while leases are returned are answered too
            await self._claimer.release(left)
            for job in left:
                self.scheduler.end(job, Draining())
        with contextlib.suppress(StoreUnavailable):  # the leases run out by themselves
            await self._claimer.settle()
        self._pipeline.close()
        for threads in (self._store_threads, self._image_threads):
            threads.shutdown(wait=True)

    def wake(self) -> None:
        """There are new frames in the store."""
        self._claimer.wake()

    @property
    def runtime(self) -> str:
        """That of the default bundle; final after :meth:`start`."""
        return self._decoder.runtime

    @property
    def problem(self) -> str:
        """Why nothing can be decoded now: a part of it has failed, the device's process is away, or leases run out."""
        if not self._loops:
            return "the decoder has not started"
        if self.scheduler.broken or any(loop.done() for loop in self._loops):
            return "the decoder has stopped working and is being started again"
        if self._renewing is None or self._renewing.done() or self._claimer.lapsing:
            return "the leases of this worker are not being renewed"
        return self._model_pool.problem

    @property
    def failure(self) -> str:
        """Why only a restart of the process helps: it cannot be repaired, or fails again and again."""
        if self._renewing is not None and self._renewing.done() and not self.draining:
            return "the leases of this worker are not being renewed"
        now = time.monotonic()
        if self._broken_at is not None and now - self._broken_at > FAILURE_SECONDS:
            return f"the decoder has not worked for {now - self._broken_at:.0f} s"
        recent = sum(1 for at in self._failures if now - at < FAILURES_SECONDS)
        return f"the decoder has failed {recent} times" if recent >= FAILURES else ""

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although frames are decoded, such as a GPU that is excluded."""
        return self._pipeline.warnings

    @property
    def draining(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self.scheduler.draining

    @property
    def waiting(self) -> dict[str, int]:
        """Items that wait, by stage."""
        return self.scheduler.waiting

    # -- for callers ------------------------------------------------------------------------------------------------

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """See :meth:`DecodeBackend.decode <cloud_decoder.decode_backend.DecodeBackend.decode>`."""
        frame = self.check(data)
        digest = hashlib.sha256(data).hexdigest()
        job, deadline = self.scheduler.jobs.get(digest), time.monotonic() + timeout
        if job is None:
            self.scheduler.admit()
            job = self.scheduler.add(digest, data, frame, priority, deadline)
        else:
            self.scheduler.join(job, priority, deadline)
        return await self.wait(job, timeout)

    def check(self, data: bytes) -> Frame:
        """See :func:`cloud_decoder.decode_backend.check_frame`."""
        return check_frame(data, self._model_pool, self._max_pixels)

    async def decode_stored(self, row: StoredFrame, *, timeout: float) -> Decoded | None:
        """See :meth:`DecodeBackend.decode_stored <cloud_decoder.decode_backend.DecodeBackend.decode_stored>`."""
        job = await self.demand(row)
        if job is None:
            return None
        if timeout <= 0:
            job.pinned = True
            raise _expired(timeout)
        return await self.wait(job, timeout, pin=True)

    async def demand(self, row: StoredFrame) -> DecodeJob | None:
        """The job that decodes a stored frame; None where another worker has it, or it is just ending."""
        self._model_pool.bundle(row.fingerprint)
        if job := self.scheduler.jobs.get(row.digest):
            job.keep = True
            self.scheduler.join(job, DEMAND_PRIORITY, job.deadline)
            return job
        self.scheduler.admit()
        return await self._claimer.demand(row)

    async def wait(self, job: DecodeJob, timeout: float, *, pin: bool = False) -> Decoded:
        """Wait for a job, which is dropped once no caller and no stored frame needs it.

        With ``pin`` the job stays when the time runs out: the caller will ask again. ``Expired`` after ``timeout``.
        """
        job.waiters += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(job.done)
        except TimeoutError:
            job.pinned |= pin
            raise _expired(timeout) from None
        finally:
            job.waiters -= 1
            if not job.wanted and self.scheduler.has(job):
                self._drop(job)

    async def encode(self, picture: Picture, format: str, width: int | None = None) -> bytes:
        """:func:`cloud_decoder.images.formats.encode` on a thread, counted."""
        started = time.monotonic()
        data = await run_on(self._image_threads, formats.encode, picture, format, width)
        self.metrics.image_seconds.observe(time.monotonic() - started)
        return data

    def _drop(self, job: DecodeJob) -> None:
        """End a job that is not wanted any more, before it reaches the device, and return its frames to the queue."""
        self.metrics.decodes.labels("cancelled").inc()
        self.scheduler.end(job, None)
        self._claimer.release_soon(job)

    def _report(self, loop: asyncio.Future[None]) -> None:
        """After a loop has died: answer all callers, return all frames for other workers, and begin again."""
        if loop.cancelled() or (error := loop.exception()) is None:
            return
        log.critical("a part of the worker has died and is started again", exc_info=error)
        self.scheduler.broken = True
        self._broken_at = self._broken_at or time.monotonic()
        self._failures.append(time.monotonic())
        unavailable = DeviceUnavailable("the decoder has stopped working; its log says why", retry_after=10.0)
        for job in self.scheduler:
            self.scheduler.end(job, unavailable)
            self._claimer.release_soon(job)
        self.wake()  # the claimer ends
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """Start the device and all loops again, with exponential backoff until it works."""
        pause = REVIVE_SECONDS
        while not self.draining:
            with contextlib.suppress(StoreUnavailable):
                await self._claimer.settle()  # the frames that were returned
            await asyncio.sleep(pause)
            for loop in self._loops:
                loop.cancel()
            await asyncio.gather(*self._loops, return_exceptions=True)
            try:
                await self._pipeline.revive()
            except Exception as error:
                log.error("the decoder cannot be started: %s", error)
                pause = min(2 * pause, REVIVE_MOST_SECONDS)
                continue
            log.warning("the decoder works again")
            self.metrics.task_restarts.labels("worker").inc()
            self.scheduler.broken, self._broken_at = False, None
            self._begin()
            return


def _expired(timeout: float) -> Expired:
    return Expired(f"not decoded within {timeout:g} s: ask again, or allow more time", retry_after=1.0)
