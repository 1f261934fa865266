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
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aeic.bitstream import Frame
from aeic_service.errors import Draining
from cloud_decoder.decode_backend import Decoded, check_frame
from cloud_decoder.errors import DeviceUnavailable, Expired
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
from cloud_decoder.worker.pipeline import READY_BATCHES, Pipeline
from cloud_decoder.worker.scheduler import Scheduler

log = logging.getLogger(__name__)


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
        self.scheduler = Scheduler(
            metrics,
            max_demanded=settings.max_queue,
            max_batch=decoder.max_batch,
            max_batch_pixels=decoder.max_batch_pixels,
            aging_seconds=settings.aging_seconds,
            loaded=model_pool.loaded,
        )
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
            max_deaths=settings.max_attempts,
            max_pixels=settings.max_pixels_at_once,
        )
        self._loops: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None

    # -- start and stop ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return what an earlier run held to the queue, warm up, and begin."""
        await self._claimer.recover()
        await self._pipeline.warm_up()
        self._loops = [asyncio.ensure_future(loop()) for loop in (*self._pipeline.loops(), self._claimer.run)]
        for loop in self._loops:
            loop.add_done_callback(self._report)
        self._renewing = asyncio.create_task(self._claimer.renew(lambda: [*self.scheduler, *self._completion.held]))

    async def stop(self) -> None:
        """Finish the batch on the device, return the rest, answer every caller. A second call does nothing."""
        if self.scheduler.draining:
            return
        self.scheduler.draining = True
        self.scheduler.touch()
        self.wake()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._completion.drain()
        if self._renewing:
            self._renewing.cancel()
        while left := list(self.scheduler):  # callers that arrive while leases are returned are answered too
            await self._claimer.release(left)
            for job in left:
                self.scheduler.end(job, Draining())
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
        """Not empty once one of its tasks has died, because of a bug or a broken device."""
        renewing = self._renewing is not None and not self._renewing.done()
        dead = not self._loops or any(task.done() for task in self._loops) or not renewing
        return "a part of the worker has died" if dead else ""

    @property
    def failure(self) -> str:
        """Only a restart of the process helps: its tasks do not come back."""
        return self.problem

    @property
    def draining(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self.scheduler.draining

    @property
    def waiting(self) -> dict[str, int]:
        """Items that wait, by stage."""
        return {"entropy": len(self.scheduler.entropy), "device": len(self.scheduler.device)}

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
        """Stop accepting work after a loop has died; return all frames for other workers, or for the next run."""
        if loop.cancelled() or (error := loop.exception()) is None:
            return
        log.critical("a part of the worker has died; this process is not ready any more", exc_info=error)
        self.scheduler.broken = True
        unavailable = DeviceUnavailable("the decoder has stopped working; its log says why", retry_after=10.0)
        for job in self.scheduler:
            self.scheduler.end(job, unavailable)
            self._claimer.release_soon(job)


def _expired(timeout: float) -> Expired:
    return Expired(f"not decoded within {timeout:g} s: ask again, or allow more time", retry_after=1.0)
