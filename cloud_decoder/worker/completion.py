"""The end of a job: finish its picture and write it to the cache, record its frames as done or failed, and answer its
callers.

pipeline.py calls it with a finished picture, or with an error and what faults.py says of it. A picture is written to
the cache before its frames are recorded as done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor

from aeic.errors import BitstreamError
from aeic_service.errors import ServiceError
from cloud_decoder.events import EventBus
from cloud_decoder.images import formats
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.inference.subprocess_backend import GeneratorFailure
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import DecodeResult
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Picture, TileAssembler
from cloud_decoder.worker import tracing
from cloud_decoder.worker.claimer import Claimer
from cloud_decoder.worker.faults import HOST_SECONDS
from cloud_decoder.worker.job import Decoded, DecodeJob, leases_of

log = logging.getLogger(__name__)

BATCHES = 2
"""Finished batches whose files may be in writing; the device waits when there are more."""


class Completion:
    """Completes jobs beside the device. ``held`` are the jobs in progress, whose leases have to be renewed."""

    def __init__(
        self, claimer: Claimer, cache: PictureCache, metrics: Metrics, event_bus: EventBus, image_threads: Executor
    ) -> None:
        self._claimer, self._cache, self._metrics, self._event_bus = claimer, cache, metrics, event_bus
        self._image_threads = image_threads
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(BATCHES)
        self.held: list[DecodeJob] = []

    async def start(self, finished: list[DecodeJob]) -> None:
        """Complete these jobs in the background. Waits while :data:`BATCHES` are in progress."""
        self.held += finished
        await self._room.acquire()
        task = asyncio.create_task(self._complete(finished))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until all jobs that were started are complete."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def fail(self, job: DecodeJob, reason: str) -> None:
        """Put the frames of ``job`` into quarantine with ``reason``. Its callers have been answered."""
        self._metrics.decodes.labels("failed").inc()
        if not job.rows:
            return
        lost = await self._claimer.fail(job, reason)
        for row in job.rows:
            if row.seq in lost:
                continue
            self._event_bus.publish(row.tenant, {"event": "failed", "id": str(row.id)})

    async def _complete(self, finished: list[DecodeJob]) -> None:
        try:
            pictures = await asyncio.gather(*map(self._finish_picture, finished))
            now = time.time()
            done = [
                DecodeResult(lease, job.latents_digest, job.timings) for job in finished for lease in leases_of([job])
            ]
            lost = await self._claimer.finish(done, now)
            for job, picture in zip(finished, pictures, strict=True):
                self._answer(job, picture, now, lost)
        except Exception as error:
            log.exception("finished jobs could not be completed; their frames return to the queue")
            for job in finished:
                if not job.done.done():
                    job.done.set_exception(error)
            await self._claimer.release(finished, after=HOST_SECONDS)
        finally:
            self.held = [job for job in self.held if job not in finished]
            self._room.release()

    def _answer(self, job: DecodeJob, picture: Picture, now: float, lost: set[int]) -> None:
        self._metrics.decodes.labels("done").inc()
        self._metrics.pixels.inc(job.frame.width * job.frame.height)
        tracing.decoded(job)
        for row in job.rows:
            if row.seq in lost:
                continue
            if row.available_ms is None:
                # A picture of an SD card may be years old: only a time that the sender or the edge's clock gave counts.
                # An answer has the time of capture of its parent, and is asked for at any time after that.
                live = row.captured_ms and row.captured_from in (None, "sender", "clock") and not row.repeats_parent
                begun = row.captured_ms if live else row.received_ms
                since = "capture" if live else "arrival"
                self._metrics.end_to_end_seconds.labels(since).observe(max(0.0, now - begun / 1000))
            self._event_bus.publish(row.tenant, {"event": "done", "id": str(row.id)})
        if not job.done.done():
            job.done.set_result(Decoded(picture, job.latents_digest, job.timings))

    async def _finish_picture(self, job: DecodeJob) -> Picture:
        assert job.assembler is not None, "a finished job has its picture"
        if job.frame.colour is None and not job.keep:
            return job.assembler.finish()  # which does nothing then
        return await run_on(self._image_threads, self._correct_and_write, job, job.assembler)

    def _correct_and_write(self, job: DecodeJob, assembler: TileAssembler) -> Picture:
        """Correct the colours, and write the picture to the cache if it is to be kept: beside the device's threads."""
        picture = assembler.finish()
        if job.keep:
            self._write_picture(job, picture)
        return picture

    def _write_picture(self, job: DecodeJob, picture: Picture) -> None:
        started = time.monotonic()
        data = formats.encode(picture, formats.MASTER)
        job.timings["image"] = time.monotonic() - started
        self._metrics.image_seconds.observe(job.timings["image"])
        try:
            self._cache.put(job.digest, formats.MASTER, data)
        except OSError as error:  # a full disk: the callers still get the picture, which can be decoded again
            self._metrics.cache_errors.inc()
            log.warning("a picture could not be cached (%s): free the disk", error)


def reason_of(error: Exception) -> str:
    """The reason that is stored and reported for a failure.

    Our own errors give their text. Any other error gives only its class name, since its text may hold anything; the log
    has the rest.
    """
    if isinstance(error, BitstreamError | ServiceError):
        return f"{type(error).__name__}: {error}"
    log.error("the decoder failed on a frame", exc_info=error)
    kind = error.kind if isinstance(error, GeneratorFailure) else type(error).__name__
    return f"the decoder failed on it ({kind})"
