"""From waiting frames to pictures: lease, entropy decoding, batch, device, cache, done.

::

    store --feeder--> +---------+ urgency +---------+ best batch +--------+      +----------+  cache, store,
    demand ---------> | entropy | ------> | entropy | ---------> | device | ---> | delivery | ---> callers
    POST decode ----> | queue   |         | threads |  by shape  |        |      | threads  |
                      +---------+         +---------+            +--------+      +----------+
                         pool             `------------- stages ----------'

All bookkeeping is in one event loop; only numbers are crunched on threads. Everybody who wants the same bytes shares
one :class:`~cloud_decoder.worker.job.Job`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from aeic.bitstream import Frame
from aeic.errors import Damaged, TooLarge
from aeic_service.errors import Draining
from cloud_decoder.errors import DeviceUnavailable, Expired
from cloud_decoder.events import EventBus
from cloud_decoder.images import formats
from cloud_decoder.images.disk_cache import Cache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import Store, StoredFrame
from cloud_decoder.tiling import Picture
from cloud_decoder.worker.claimer import Claimer
from cloud_decoder.worker.completion import Completion
from cloud_decoder.worker.job import DEMAND_PRIORITY, Decoded, Job
from cloud_decoder.worker.pipeline import Pipeline
from cloud_decoder.worker.scheduler import Scheduler

log = logging.getLogger(__name__)


class Worker:
    """Decodes on one device. Make it, ``await start()``, and ``await stop()`` in one event loop.

    ``decoder`` is the default bundle's, whose limits hold for all; ``model_pool`` may hold more; its maker
    closes it.
    """

    def __init__(
        self,
        decoder: Decoder,
        store: Store,
        cache: Cache,
        metrics: Metrics,
        event_bus: EventBus,
        *,
        model_pool: ModelPool | None = None,
        owner: str = "cloud",
        lease_seconds: float = 60.0,
        max_attempts: int = 3,
        max_queue: int = 256,
        max_pixels: int = 8192 * 8192,
        aging_seconds: float = 2.0,
    ) -> None:
        self.device, self.cache, self.metrics = decoder.device, cache, metrics
        self.model_pool = model_pool or ModelPool.of(decoder)
        self.model_pool.on_load = metrics.model_load_seconds.observe
        self.max_pixels = max_pixels
        self.scheduler = Scheduler(
            metrics,
            max_demanded=max_queue,
            max_batch=decoder.max_batch,
            max_batch_pixels=decoder.max_batch_pixels,
            aging_seconds=aging_seconds,
            loaded=self.model_pool.loaded,
        )
        ready_limit = 8 * decoder.max_batch  # latents held decoded; enough that mixed shapes still fill batches
        self._store_threads = ThreadPoolExecutor(2, "store")
        self._image_threads = ThreadPoolExecutor(formats.THREADS, "image")
        self.completion = Completion(store, cache, metrics, event_bus, self._store_threads, self._image_threads)
        self._claimer = Claimer(
            store,
            self.scheduler,
            self._store_threads,
            model_pool=self.model_pool,
            owner=owner,
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            lookahead=max(32, 2 * ready_limit),
        )
        self._stages = Pipeline(
            decoder,
            self.model_pool,
            self.scheduler,
            self.completion,
            metrics,
            ready_limit=ready_limit,
            max_deaths=max_attempts,
            claimer=self._claimer,
        )
        self.wake = self._claimer.wake
        """New frames are in the store."""
        self._pumps: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Free what an earlier run held, warm up, and begin."""
        await self._claimer.recover()
        await self._stages.warm_up()
        self._pumps = [asyncio.ensure_future(pump()) for pump in (*self._stages.pumps(), self._claimer.run)]
        for pump in self._pumps:
            pump.add_done_callback(self._report)
        self._renewing = asyncio.create_task(self._claimer.renew(lambda: [*self.scheduler, *self.completion.held]))

    async def stop(self) -> None:
        """Finish what is on the device, give the rest back, answer everybody. Once; a second call does nothing."""
        if self.scheduler.draining:
            return
        self.scheduler.draining = True
        self.scheduler.touch()
        self.wake()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self.completion.drain()
        if self._renewing:
            self._renewing.cancel()
        while left := list(self.scheduler):  # whoever asked while leases were given back is answered too
            await self._claimer.release(left)
            for job in left:
                self.scheduler.end(job, Draining())
        self._stages.close()
        for threads in (self._store_threads, self._image_threads):
            threads.shutdown(wait=True)

    @property
    def alive(self) -> bool:
        """False once one of its tasks has died, which is a bug or a broken device; readiness says so."""
        return bool(self._pumps) and not any(task.done() for task in self._pumps)

    # -- what callers ask -------------------------------------------------------------------------------------------

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """Decode bytes that are not stored. Raises what is wrong with them, or ``Overloaded``, ``Expired``,
        ``Draining``.

        A caller that is cancelled takes its work out of the queue.
        """
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
        """The frame if this worker can decode it, else the reason as an exception."""
        frame = Frame.parse(data)
        bundle = self.model_pool.bundle(frame.fingerprint)
        if frame.rate >= len(bundle.rates):
            raise Damaged(f"the frame names rate point {frame.rate}, which its bundle has not: fetch it again")
        if frame.width * frame.height > self.max_pixels:
            raise TooLarge(
                f"{frame.width}x{frame.height} is over this cloud's {self.max_pixels} pixels: send it smaller"
            )
        return frame

    async def demand(self, row: StoredFrame) -> Job | None:
        """The job that makes the picture of a stored frame; None where another worker has it, or it is just ending."""
        self.model_pool.bundle(row.fingerprint)
        if job := self.scheduler.jobs.get(row.digest):
            job.keep = True
            self.scheduler.join(job, DEMAND_PRIORITY, job.deadline)
            return job
        self.scheduler.admit()
        return await self._claimer.demand(row)

    async def wait(self, job: Job, timeout: float, *, pin: bool = False) -> Decoded:
        """Wait for a job. Whoever goes away takes back his interest; a job that nobody wants is dropped.

        With ``pin`` running out of time is no loss of interest: the caller will come again.
        """
        job.waiters += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(job.done)
        except TimeoutError:
            job.pinned |= pin
            raise Expired(f"not decoded within {timeout:g} s: ask again, or allow more time", retry_after=1.0) from None
        finally:
            job.waiters -= 1
            if not job.wanted and self.scheduler.has(job):
                self._drop(job)

    async def encode(self, picture: Picture, format: str, width: int | None = None) -> bytes:
        """:func:`cloud_decoder.images.formats.encode` on a thread, counted."""
        loop, started = asyncio.get_running_loop(), time.monotonic()
        data = await loop.run_in_executor(self._image_threads, formats.encode, picture, format, width)
        self.metrics.image_seconds.observe(time.monotonic() - started)
        return data

    def _drop(self, job: Job) -> None:
        """Nobody wants it: it never reaches the device, and frames that were only asked for go back."""
        self.metrics.decodes.labels("cancelled").inc()
        self.scheduler.end(job, None)
        self._claimer.release_soon(job)

    def _report(self, pump: asyncio.Future[None]) -> None:
        if pump.cancelled() or (error := pump.exception()) is None:
            return
        log.critical("a part of the worker has died; readiness says so", exc_info=error)
        self.scheduler.broken = True
        said = DeviceUnavailable("the decoder has stopped working; its log says why", retry_after=10.0)
        for job in self.scheduler:
            self.scheduler.end(job, said)
            self._claimer.release_soon(job)  # for another worker, or for this one's next life
