"""From waiting frames to pictures: lease, entropy decoding, batch, device, cache, done.

::

    store --claim--> +---------+ urgency +---------+ best batch +--------+      +-------+  cache, store,
    demand --------> | entropy | ------> | entropy | ---------> | device | ---> | image | ---> callers
    POST decode ---> | queue   |         | threads |  by shape  |        |      | files |
                     +---------+         +---------+            +--------+      +-------+

All bookkeeping is in one event loop; only numbers are crunched on threads. Everybody who wants the same bytes shares
one :class:`~cloud_decoder.jobs.Job`. Where synthesis runs on the CPU, entropy decoding and synthesis take turns,
decoding ahead until a batch is full; on a GPU they overlap. A batch that fails is halved until the culprit is alone:
out of memory means smaller batches, anything else means one frame in quarantine. The service lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from aeic.bitstream import Frame
from aeic.errors import BitstreamError, Damaged, TooLarge, WrongModel
from cloud_decoder import traces
from cloud_decoder.cache import Cache
from cloud_decoder.decoder import Decoder
from cloud_decoder.delivery import Delivery, reason_of, seqs
from cloud_decoder.errors import DeviceOutOfMemory, Draining, Expired, StoreUnavailable, Undecodable
from cloud_decoder.events import Hub
from cloud_decoder.jobs import DEMAND_PRIORITY, Decoded, Job
from cloud_decoder.metrics import Metrics
from cloud_decoder.pool import POLL_SECONDS, JobPool
from cloud_decoder.store import Claimed, Row, State, Store
from cloud_decoder.tiles import Mosaic, Tile

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = tuple[Job, Tile]


class Worker:
    """Decodes for one bundle on one device. Make it, ``await start()``, and ``await stop()`` in one event loop."""

    def __init__(
        self,
        decoder: Decoder,
        store: Store,
        cache: Cache,
        metrics: Metrics,
        hub: Hub,
        *,
        owner: str = "cloud",
        lease_seconds: float = 60.0,
        max_attempts: int = 3,
        max_queue: int = 256,
        max_pixels: int = 8192 * 8192,
        aging_seconds: float = 2.0,
    ) -> None:
        self.decoder, self.store, self.cache, self.metrics = decoder, store, cache, metrics
        self.owner, self.lease_seconds, self.max_attempts = owner, lease_seconds, max_attempts
        self.max_pixels = max_pixels
        self.pool = JobPool(
            metrics,
            max_demanded=max_queue,
            max_batch=decoder.max_batch,
            max_batch_pixels=decoder.max_batch_pixels,
            aging_seconds=aging_seconds,
        )
        self._ready_limit = 8 * decoder.max_batch  # latents held decoded; enough that mixed shapes still fill batches
        self._lookahead = max(32, 2 * self._ready_limit)
        self._entropy_threads = ThreadPoolExecutor(decoder.entropy_workers, "entropy")
        self._device_thread = ThreadPoolExecutor(1, "device")
        self._store_threads = ThreadPoolExecutor(2, "store")
        self._new = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        self._renewing: asyncio.Task[None] | None = None
        self.delivery = Delivery(store, cache, metrics, hub, self._store_threads)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Free what an earlier run held, warm up, and begin."""
        freed = await self._on(self._store_threads, self.store.recover, self.owner)
        if freed:
            log.info("freed %d frames that an earlier run held", freed)
        await self._on(self._device_thread, self.decoder.warm_up)
        overlapped = [self._run_entropy] * self.decoder.entropy_workers + [self._run_device]
        stages = [self._take_turns] if self.decoder.shares_cpu else overlapped
        self._pumps = [asyncio.create_task(pump()) for pump in (*stages, self._feed)]
        for pump in self._pumps:
            pump.add_done_callback(_report)
        self._renewing = asyncio.create_task(self._renew())

    async def stop(self) -> None:
        """Finish what is on the device, give the rest back, answer everybody. Once; a second call does nothing."""
        if self.pool.draining:
            return
        self.pool.draining = True
        self.pool.touch()
        self._new.set()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self.delivery.drain()
        if self._renewing:
            self._renewing.cancel()
        left = list(self.pool)
        with contextlib.suppress(StoreUnavailable):  # the leases run out by themselves
            await self._on(self._store_threads, self.store.release, seqs(left), self.owner)
        for job in left:
            self.pool.end(job, Draining("the service is stopping: ask again in a moment", retry_after=5.0))
        for threads in (self._entropy_threads, self._device_thread, self._store_threads):
            threads.shutdown(wait=True)

    @property
    def alive(self) -> bool:
        """False once one of its tasks has died, which is a bug; readiness says so."""
        return bool(self._pumps) and not any(task.done() for task in self._pumps)

    # -- what callers ask -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """New frames are in the store."""
        self._new.set()

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """Decode bytes that are not stored. Raises what is wrong with them, or ``Overloaded``, ``Expired``,
        ``Draining``.

        A caller that is cancelled takes its work out of the queue.
        """
        frame = self.check(data)
        digest = hashlib.sha256(data).hexdigest()
        job = self.pool.jobs.get(digest)
        if job is None:
            self.pool.admit()
            job = self.pool.add(digest, data, frame, priority, time.monotonic() + timeout)
        return await self.wait(job, timeout)

    def check(self, data: bytes) -> Frame:
        """The frame if this worker can decode it, else the reason as an exception."""
        frame = Frame.parse(data)
        bundle = self.decoder.bundle
        if frame.fingerprint != bundle.fingerprint:
            raise WrongModel(
                f"the frame was made with bundle {frame.fingerprint}, this cloud decodes {bundle.fingerprint}"
                f" ({bundle.name}): encode with that one"
            )
        if frame.rate >= len(bundle.rates):
            raise Damaged(f"the frame names rate point {frame.rate}, which its bundle has not: fetch it again")
        if frame.width * frame.height > self.max_pixels:
            raise TooLarge(
                f"{frame.width}x{frame.height} is over this cloud's {self.max_pixels} pixels: send it smaller"
            )
        return frame

    async def demand(self, row: Row) -> Job | None:
        """The job that makes the picture of a stored frame; None where another worker has it, or it is just ending."""
        if row.fingerprint != self.decoder.bundle.fingerprint:
            raise WrongModel(f"the frame needs bundle {row.fingerprint}, this cloud decodes {self.decoder.bundle.name}")
        if job := self.pool.jobs.get(row.digest):
            self._hasten(job)
            return job
        self.pool.admit()
        claimed: Claimed | None = None
        if row.state is State.DONE:
            data = await self._on(self._store_threads, self.store.bitstream, row.tenant, row.id)
        else:
            lease = (self.owner, time.time(), self.lease_seconds, self.max_attempts)
            claimed = await self._on(self._store_threads, self.store.claim_one, row.tenant, row.id, *lease)
            data = claimed.bitstream if claimed else None
        if data is None:
            return None
        job = self.pool.jobs.get(row.digest) or self.pool.add(row.digest, data, Frame.parse(data), DEMAND_PRIORITY)
        self._keep(job, claimed)
        return job

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
            if not job.wanted and self.pool.has(job):
                self._drop(job)

    # -- taking work in ---------------------------------------------------------------------------------------------

    def _keep(self, job: Job, claimed: Claimed | None) -> None:
        """Its picture goes to the cache, and ``claimed`` waits for it too."""
        job.keep = True
        if claimed:
            job.rows.append(claimed.row)
            self.pool.requeue(job)  # it has no deadline any more

    def _hasten(self, job: Job) -> None:
        """Somebody waits for it now: move it forward wherever it stands."""
        job.keep = True
        job.priority = max(job.priority, DEMAND_PRIORITY)
        self.pool.requeue(job)

    async def _feed(self) -> None:
        """Keep enough claimed frames at hand."""
        while not self.pool.draining:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._new.wait(), POLL_SECONDS)
            self._new.clear()
            try:
                await self._claim()
            except StoreUnavailable as error:
                log.warning("%s", error)

    async def _claim(self) -> None:
        while not self.pool.draining:
            room = self._lookahead - self.pool.stored
            if room < self._lookahead // 2:
                return  # in large steps: each claim is a commit
            lease = (time.time(), self.lease_seconds, self.max_attempts)
            fingerprint = self.decoder.bundle.fingerprint
            claimed = await self._on(self._store_threads, self.store.claim, self.owner, fingerprint, room, *lease)
            for one in claimed:
                job = self.pool.jobs.get(one.row.digest)
                if job is None:
                    priority = min(one.row.priority, DEMAND_PRIORITY - 1)
                    job = self.pool.add(one.row.digest, one.bitstream, Frame.parse(one.bitstream), priority)
                self._keep(job, one)
            if len(claimed) < room:
                return

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.lease_seconds / 3)
            until = time.time() + self.lease_seconds
            with contextlib.suppress(StoreUnavailable):
                held = seqs([*self.pool, *self.delivery.held])
                await self._on(self._store_threads, self.store.renew, held, self.owner, until)

    # -- the two stages ---------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        while not self.pool.draining:
            self._expire()
            if len(self.pool.entropy) and not self.pool.device.full and self._room:
                await asyncio.gather(*(self._entropy_step() for _ in range(self.decoder.entropy_workers)))
            elif len(self.pool.device):
                await self._device_step()
            else:
                await self.pool.change()

    async def _run_entropy(self) -> None:
        while not self.pool.draining:
            self._expire()
            if len(self.pool.entropy) and self._room:
                await self._entropy_step()
            else:
                await self.pool.change()

    async def _run_device(self) -> None:
        while not self.pool.draining:
            self._expire()
            if len(self.pool.device):
                await self._device_step()
            else:
                await self.pool.change()

    @property
    def _room(self) -> bool:
        return len(self.pool.device) < self._ready_limit

    async def _entropy_step(self) -> None:
        job = self.pool.take_entropy()
        if job is None:
            return
        started = time.monotonic()
        job.timings["queue"] = started - job.arrived
        self.metrics.queue_seconds.observe(job.timings["queue"])
        try:
            latents = await self._on(self._entropy_threads, self.decoder.entropy_decode, job.data)
        except Exception as error:
            await self._fail(job, error)
            return
        job.ready_at = time.monotonic()
        job.timings["entropy"] = job.ready_at - started
        self.metrics.entropy_seconds.observe(job.timings["entropy"])
        if self.pool.has(job):  # nobody may want it any more
            job.latents_digest = latents.digest
            job.mosaic = Mosaic(latents.y_hat, job.frame)
            self.pool.add_tiles(job)
        self._new.set()

    async def _device_step(self) -> None:
        started = time.monotonic()
        batch = self.pool.take_batch()
        work = [(job, piece.key[1]) for job, piece in batch]
        cost = sum(piece.cost for _, piece in batch)
        jobs = list(dict.fromkeys(job for job, _ in work))
        for job in jobs:
            if "device_wait" not in job.timings:
                job.timings["device_wait"] = started - job.ready_at
                self.metrics.device_wait_seconds.observe(job.timings["device_wait"])
        self.metrics.batch_pieces.observe(len(batch))
        self.metrics.batch_fill.observe(cost / self.decoder.max_batch_pixels)
        failed = await self._on(self._device_thread, self._synthesise, work)
        seconds = time.monotonic() - started
        self.metrics.synthesis_seconds.observe(seconds)
        traces.batch(jobs, len(batch), seconds)
        self.pool.pixels_per_second += 0.2 * (cost / max(seconds, 1e-6) - self.pool.pixels_per_second)
        for job, error in failed.items():
            await self._fail(job, error)
        finished = []
        for job in jobs:
            job.outstanding -= sum(1 for other, _ in work if other is job)
            job.timings["synthesis"] = job.timings.get("synthesis", 0.0) + seconds
            if not self.pool.has(job):
                continue  # failed or dropped
            if _mosaic(job).done:
                finished.append(job)
            elif job.outstanding == 0:
                self.pool.add_tiles(job)
        if finished:
            for job in finished:
                self.pool.remove(job)
            await self.delivery.start(finished)

    def _synthesise(self, work: Sequence[Work]) -> dict[Job, Exception]:
        """One batch on the device, on its thread.

        What fails is halved until it is alone. Returns who failed, and why.
        """
        try:
            images = self.decoder.run([_mosaic(job).cut(tile) for job, tile in work])
            for (job, tile), image in zip(work, images, strict=True):
                _mosaic(job).put(tile, image)
            return {}
        except Exception as error:
            failure = error
        failure.__traceback__ = None  # it would keep the batch in memory
        if len(work) == 1:
            return {work[0][0]: failure}
        if isinstance(failure, DeviceOutOfMemory):
            self.metrics.splits.inc()
        half = len(work) // 2
        return self._synthesise(work[:half]) | self._synthesise(work[half:])

    async def _fail(self, job: Job, error: Exception) -> None:
        reason = reason_of(error)
        if self.pool.has(job):
            self.pool.end(job, error if isinstance(error, BitstreamError) else Undecodable(reason))
        await self.delivery.fail(job, reason)

    def _expire(self) -> None:
        for job in self.pool.take_expired():
            self.metrics.decodes.labels("expired").inc()
            self.pool.end(job, Expired("its deadline passed while it waited: ask again", retry_after=1.0))

    def _drop(self, job: Job) -> None:
        """Nobody wants it: it never reaches the device, and frames that were only asked for go back."""
        self.metrics.decodes.labels("cancelled").inc()
        rows = seqs([job])
        self.pool.end(job, None)
        if rows:
            self._store_threads.submit(self.store.release, rows, self.owner)

    async def _on(self, threads: Executor, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def _mosaic(job: Job) -> Mosaic:
    assert job.mosaic is not None, "it was entropy-decoded before it came here"
    return job.mosaic


def _report(pump: asyncio.Task[None]) -> None:
    if not pump.cancelled() and (error := pump.exception()):
        log.critical("a part of the worker has died; readiness says so", exc_info=error)
