"""The end of a job: its picture to the cache, its frames to done, its callers answered; or all of them told why not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from aeic.errors import BitstreamError
from aeic_service.errors import ServiceError
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.images import formats
from cloud_decoder.images.disk_cache import Cache
from cloud_decoder.inference.subprocess_backend import RemoteFailure
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import DecodeResult, Store
from cloud_decoder.worker import tracing
from cloud_decoder.worker.job import Decoded, Job

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCHES = 2
"""Finished batches that may be on their way; then the device waits for the writing of files."""


class Completion:
    """Works beside the device. ``held``: the jobs it has not finished with, whose leases must go on."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        metrics: Metrics,
        event_bus: EventBus,
        store_threads: Executor,
        image_threads: Executor,
    ) -> None:
        self._store, self._cache, self._metrics, self._event_bus = store, cache, metrics, event_bus
        self._store_threads, self._image_threads = store_threads, image_threads
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(BATCHES)
        self.held: list[Job] = []

    async def start(self, finished: list[Job]) -> None:
        """Hand these jobs on; returns at once, unless files come out slower than pictures."""
        self.held += finished
        await self._room.acquire()
        task = asyncio.create_task(self._write(finished))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until everything is handed on; then no more may come."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def fail(self, job: Job, reason: str) -> None:
        """Quarantine: its frames say why. Whoever waits for it was answered before."""
        self._metrics.decodes.labels("failed").inc()
        if not job.rows:
            return
        with contextlib.suppress(StoreUnavailable):  # then the lease runs out and it is tried again
            await self._on(self._store_threads, self._store.fail, seqs([job]), reason)
        for row in job.rows:
            self._event_bus.publish(row.tenant, {"event": "failed", "id": str(row.id)})

    async def _write(self, finished: list[Job]) -> None:
        try:
            await asyncio.gather(*(self._on(self._image_threads, self._to_cache, job) for job in finished if job.keep))
            now = time.time()
            done = [DecodeResult(row.seq, job.latents_digest, job.timings) for job in finished for row in job.rows]
            try:
                await self._on(self._store_threads, self._store.finish, done, now)
            except StoreUnavailable as error:
                log.warning("%s; the frames will be decoded again when their lease has run out", error)
            for job in finished:
                self._answer(job, now)
        except Exception as error:
            log.exception("finished pictures could not be handed on")
            for job in finished:
                if not job.done.done():
                    job.done.set_exception(error)
        finally:
            self.held = [job for job in self.held if job not in finished]
            self._room.release()

    def _answer(self, job: Job, now: float) -> None:
        self._metrics.decodes.labels("done").inc()
        self._metrics.pixels.inc(job.frame.width * job.frame.height)
        tracing.decoded(job)
        for row in job.rows:
            if row.available_ms is None:
                begun = row.captured_ms or row.received_ms
                self._metrics.end_to_end_seconds.observe(max(0.0, now - begun / 1000))
            self._event_bus.publish(row.tenant, {"event": "done", "id": str(row.id)})
        if not job.done.done():
            assert job.assembler is not None, "a finished job has its picture"
            job.done.set_result(Decoded(job.assembler.picture, job.latents_digest, job.timings))

    def _to_cache(self, job: Job) -> None:
        assert job.assembler is not None, "a finished job has its picture"
        started = time.monotonic()
        data = formats.encode(job.assembler.picture, formats.MASTER)
        job.timings["image"] = time.monotonic() - started
        self._metrics.image_seconds.observe(job.timings["image"])
        try:
            self._cache.put(job.digest, formats.MASTER, data)
        except OSError as error:  # a full disk: the picture still goes to whoever waits, and can be made again
            self._metrics.cache_errors.inc()
            log.warning("a picture could not be cached (%s): free the disk", error)

    async def _on(self, threads: Executor, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)


def reason_of(error: Exception) -> str:
    """What is stored and told of a failure: our own words as they are, a stranger's only by its name, and logged."""
    if isinstance(error, BitstreamError | ServiceError):
        return f"{type(error).__name__}: {error}"
    log.error("the decoder failed on a frame", exc_info=error)
    kind = error.kind if isinstance(error, RemoteFailure) else type(error).__name__
    return f"the decoder failed on it ({kind})"


def seqs(jobs: Iterable[Job]) -> list[int]:
    """The store's numbers of all frames of these jobs."""
    return [row.seq for job in jobs for row in job.rows]
