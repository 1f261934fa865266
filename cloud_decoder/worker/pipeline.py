"""Entropy decoding on threads or on a GPU, then synthesis in batches on the device or on several.

If synthesis runs on the CPU, the two stages take turns, and entropy decoding runs ahead until a batch is full. Large
frames are entropy-decoded beside that, one at a time, so that small ones do not wait for them. On a GPU the stages
overlap, and each GPU has its own loop; all loops take from one queue. A batch that fails is halved until the failing
frame is alone. Out of memory leads to smaller batches, a lost process to another process, and a GPU that does not come
back to the remaining ones. What a failure of a lone frame means for it, quarantine or another try, is in the table of
faults.py.

Both stages can end this process: the entropy decoder runs in it, and the machine may kill it for its memory. An attempt
is therefore counted before a frame's entropy decoding begins. A frame that has an attempt from an earlier run of a
service is a suspect: it is decoded alone, in both stages.

worker.py runs the loops of :meth:`Pipeline.loops`; scheduler.py holds the jobs, and completion.py ends them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from cloud_decoder.errors import (
    DecoderDied,
    DeviceOutOfMemory,
    DeviceUnavailable,
    Expired,
    ModelUnavailable,
    StoreUnavailable,
)
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.records import FrameState
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Tile, TileAssembler
from cloud_decoder.worker import tracing
from cloud_decoder.worker.batcher import Batcher, WorkItem
from cloud_decoder.worker.claimer import Claimer
from cloud_decoder.worker.completion import Completion, reason_of
from cloud_decoder.worker.faults import HOST_SECONDS, OUT_OF_MEMORY_SECONDS, Fault, outcome_of
from cloud_decoder.worker.job import DecodeJob
from cloud_decoder.worker.scheduler import Scheduler

log = logging.getLogger(__name__)

_RETRY_AFTER = {Fault.HOST: 5.0}
Work = tuple[DecodeJob, Tile]
LANE_SECONDS = 30.0
"""A device whose process does not start is tried again after this long, while others work."""
ENTROPY_CALLS = 2
"""Batches that wait for entropy decoding on each GPU: one is decoded while the next is collected."""
Batch = list[tuple[DecodeJob, WorkItem[tuple[str, Tile]]]]

AHEAD = 4
"""Frames that each thread entropy-decodes before synthesis has its turn on shared cores: each change of turns costs
cold caches and a pause."""
TURN_PIXELS = 1 << 24
"""That are entropy-decoded before synthesis has its turn on shared cores. A larger frame takes no turn: it is decoded
beside them, on a thread of its own."""
READY_BATCHES = 8
"""Decoded latents held, in batches. Enough that frames of mixed shapes still fill batches."""


class SharedLock:
    """For any number of steps side by side, or for one alone. A step that waits to be alone goes before later ones."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = self._want_alone = 0
        self._alone = False

    @asynccontextmanager
    async def enter(self, alone: bool = False) -> AsyncIterator[None]:
        """Wait for the turn of a step."""
        async with self._changed:
            if alone:
                self._want_alone += 1
                try:
                    await self._changed.wait_for(lambda: not self._alone and not self._inside)
                finally:
                    self._want_alone -= 1
                self._alone = True
            else:
                await self._changed.wait_for(lambda: not self._alone and not self._want_alone)
                self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                if alone:
                    self._alone = False
                else:
                    self._inside -= 1
                self._changed.notify_all()


@dataclass(frozen=True)
class PipelineLimits:
    """Limits of the pipeline besides those of its decoder."""

    max_pixels: int
    """While so many are between entropy decoding and the end of their synthesis, no further frame is begun."""
    max_deaths: int
    """A frame that was alone in so many decoder processes when they died goes to quarantine."""


class Pipeline:
    """Runs the jobs of ``scheduler`` and passes them to ``completion``.

    The default bundle's decoder sets the limits for all bundles.
    """

    def __init__(
        self,
        model_pool: ModelPool,
        scheduler: Scheduler,
        completion: Completion,
        claimer: Claimer,
        metrics: Metrics,
        limits: PipelineLimits,
    ) -> None:
        decoder = model_pool.first()
        self._model_pool, self._scheduler, self._completion, self._metrics = model_pool, scheduler, completion, metrics
        self._claimer, self._limits = claimer, limits
        self._open: set[DecodeJob] = set()  # those that entropy decoding has taken, and that hold their latents
        self._ready_limit = READY_BATCHES * decoder.max_batch
        self._entropy_workers, self._shares_cpu = decoder.entropy_workers, decoder.shares_cpu
        self._max_batch_pixels = decoder.max_batch_pixels
        large = 1 if self._shares_cpu else 0
        self._entropy_threads = ThreadPoolExecutor(decoder.entropy_workers + large, "entropy")
        self._device_threads = [ThreadPoolExecutor(1, f"device-{lane}") for lane in range(decoder.lanes)]
        self._lock = SharedLock()
        self._entropy_calls = 0
        self._resting: dict[int, str] = {}  # lanes whose device does not start, and why

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although frames are decoded; empty where all is well."""
        resting = [f"device {lane} does not work: {reason}" for lane, reason in self._resting.items()]
        return [*resting, *self._model_pool.warnings]

    async def warm_up(self) -> None:
        """Run the default bundle once on every device, so that the first frames are not slower than the others."""
        limits = await asyncio.gather(
            *(run_on(one, self._warm_up, lane) for lane, one in enumerate(self._device_threads))
        )
        device = self._scheduler.device
        device.max_cost = min(device.max_cost, *limits)  # a GPU with less memory than planned has smaller batches

    async def revive(self) -> None:
        """Start the devices again after a failure. Raises what keeps the last of them from working."""
        self._lock, self._entropy_calls = SharedLock(), 0  # the loops that used the other one have ended
        calls = [run_on(threads, self._revive, lane) for lane, threads in enumerate(self._device_threads)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) == len(results):
            raise failures[-1]

    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """Coroutines to run, each of which ends when the scheduler drains."""
        if self._shares_cpu:
            return [self._take_turns, self._run_large]
        devices = [partial(self._run_device, lane) for lane in range(len(self._device_threads))]
        return [*[self._run_entropy] * self._entropy_workers, *devices]

    def close(self) -> None:
        """Stop the threads, after the loops have ended."""
        self._entropy_threads.shutdown(wait=True)
        for threads in self._device_threads:
            threads.shutdown(wait=True)

    async def _take_turns(self) -> None:
        scheduler = self._scheduler
        while not scheduler.draining:
            self._expire()
            if len(scheduler.entropy) and not scheduler.device.full and self._room:
                await self._entropy_step(scheduler.entropy, AHEAD * self._entropy_workers, TURN_PIXELS)
            elif len(scheduler.device):
                await self._device_step(0)
            else:
                await scheduler.change()

    async def _run_large(self) -> None:
        scheduler = self._scheduler
        while not scheduler.draining:
            self._expire()
            if len(scheduler.large) and self._room:
                await self._entropy_step(scheduler.large, 1)
            else:
                await scheduler.change()

    async def _run_entropy(self) -> None:
        while not self._scheduler.draining:
            self._expire()
            if len(self._scheduler.entropy) and self._room and self._entropy_calls < self._most_entropy_calls:
                await self._entropy_step(self._scheduler.entropy, self._model_pool.entropy_batch)
            else:
                await self._scheduler.change()

    async def _run_device(self, lane: int) -> None:
        while not self._scheduler.draining:
            self._expire()
            if not len(self._scheduler.device):
                await self._scheduler.change()
                continue
            try:
                await self._device_step(lane)
            except DeviceUnavailable as error:
                if len(self._resting) + 1 >= len(self._device_threads):
                    raise
                log.error("device %d is excluded for %g s: %s", lane, LANE_SECONDS, error)
                await self._rest(lane, str(error))

    async def _rest(self, lane: int, reason: str) -> None:
        until = time.monotonic() + LANE_SECONDS
        self._resting[lane] = reason
        try:
            while not self._scheduler.draining and time.monotonic() < until:
                await self._scheduler.change()
        finally:
            del self._resting[lane]

    @property
    def _room(self) -> bool:
        return len(self._scheduler.device) < self._ready_limit and self._pixels_left > 0

    @property
    def _pixels_left(self) -> int:
        self._open = {job for job in self._open if self._scheduler.has(job)}
        return self._limits.max_pixels - sum(job.cost for job in self._open)

    # -- entropy decoding -------------------------------------------------------------------------------------------

    async def _entropy_step(self, queue: Batcher[str], limit: int, most_pixels: int = 2**62) -> None:
        group = self._scheduler.take_entropy(queue, limit, min(most_pixels, self._pixels_left))
        if not group:
            return
        self._open.update(group)
        alone = group[0].suspect
        self._entropy_calls += 1
        try:
            async with self._lock.enter(alone):
                if alone:
                    await self._decode_suspect(group[0])
                else:
                    await self._claimer.begin(group)
                    await asyncio.gather(*map(self._decode_together, self._entropy_groups(group)))
        finally:
            self._entropy_calls -= 1

    async def _decode_suspect(self, job: DecodeJob) -> None:
        """Decode a frame that may end this process, so that no other frame counts an attempt if it does.

        Frames that were decoded before are recorded first, and this one is before another one begins.
        """
        await self._completion.drain()
        try:
            await self._claimer.settle()
            await self._claimer.begin([job], must=True)
        except StoreUnavailable as error:
            await self._fail(job, error)
            return
        await self._decode_together([job])
        while batch := self._scheduler.take_tile(job):
            await self._run_batch(batch, self._working_lane)
        await self._completion.drain()

    @property
    def _most_entropy_calls(self) -> int:
        if self._model_pool.entropy_batch == 1:
            return self._entropy_workers
        return ENTROPY_CALLS * len(self._device_threads)

    def _entropy_groups(self, jobs: Sequence[DecodeJob]) -> list[list[DecodeJob]]:
        """What is decoded in one call each: single jobs on the CPU, all of a bundle on a GPU."""
        if self._model_pool.entropy_batch == 1:
            return [[job] for job in jobs]
        by_bundle: defaultdict[str, list[DecodeJob]] = defaultdict(list)
        for job in jobs:
            by_bundle[job.frame.fingerprint].append(job)
        return list(by_bundle.values())

    async def _decode_together(self, jobs: Sequence[DecodeJob]) -> None:
        jobs = [job for job in jobs if self._scheduler.has(job)]  # one may have been dropped meanwhile
        if not jobs:
            return
        try:
            outcomes = await run_on(self._entropy_threads, self._entropy_decode, jobs)
        except DeviceUnavailable:
            raise
        except Exception as error:
            outcomes = [error] * len(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                await self._fail(job, outcome)
                continue
            self._metrics.queue_seconds.observe(job.timings["queue"])
            self._metrics.entropy_seconds.observe(job.timings["entropy"])
            if self._scheduler.has(job):
                job.latents_digest, job.assembler = outcome
                self._scheduler.add_tiles(job)
        if any(job.rows for job in jobs):  # there may be room for more stored frames
            self._claimer.wake()

    def _entropy_decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[str, TileAssembler] | Exception]:
        """The digest and the latents of each job, or its error. All are of one bundle."""
        started = time.monotonic()
        with self._model_pool.acquire(jobs[0].frame.fingerprint) as decoder:
            decoded = decoder.entropy_decode_many([job.data for job in jobs])
            self._metrics.count_events(decoder.take_counts())
        results: list[tuple[str, TileAssembler] | Exception] = []
        for job, one in zip(jobs, decoded, strict=True):
            if isinstance(one, Exception):
                results.append(one)
                continue
            assembler = TileAssembler(one.y_hat, job.frame)
            job.timings["queue"] = started - job.arrived
            job.ready_at = time.monotonic()
            job.timings["entropy"] = job.ready_at - started
            results.append((one.digest, assembler))
        return results

    # -- the device -------------------------------------------------------------------------------------------------

    @property
    def _working_lane(self) -> int:
        return next((lane for lane in range(len(self._device_threads)) if lane not in self._resting), 0)

    async def _device_step(self, lane: int) -> None:
        async with self._lock.enter():
            if batch := self._scheduler.take_batch():
                await self._run_batch(batch, lane)

    async def _run_batch(self, batch: Batch, lane: int) -> None:
        started = time.monotonic()
        work = [(job, item.key[1]) for job, item in batch]
        cost = sum(item.cost for _, item in batch)
        jobs = list(dict.fromkeys(job for job, _ in work))
        for job in jobs:
            if "device_wait" not in job.timings:
                job.timings["device_wait"] = started - job.ready_at
                self._metrics.device_wait_seconds.observe(job.timings["device_wait"])
        self._metrics.batch_items.observe(len(batch))
        self._metrics.batch_fill.observe(cost / self._max_batch_pixels)
        done: set[Work] = set()
        try:
            failed = await run_on(self._device_threads[lane], self._synthesise, work, lane, done)
        except DeviceUnavailable:
            for job, item in batch:  # another device may take what this one has not finished
                if self._scheduler.has(job) and (job, item.key[1]) not in done:
                    self._scheduler.device.add(item)
            raise
        seconds = time.monotonic() - started
        self._metrics.synthesis_seconds.observe(seconds)
        tracing.batch(jobs, len(batch), seconds)
        self._scheduler.pixels_per_second += 0.2 * (cost / max(seconds, 1e-6) - self._scheduler.pixels_per_second)
        for job, error in failed.items():
            if not job.failed:
                job.failed = True
                await self._fail(job, error)
        finished = []
        for job in jobs:
            job.outstanding -= sum(1 for other, _ in work if other is job)
            job.timings["synthesis"] = job.timings.get("synthesis", 0.0) + seconds
            if not self._scheduler.has(job):
                continue  # failed or dropped
            if _assembler(job).done:
                finished.append(job)
            elif job.outstanding == 0:
                self._scheduler.add_tiles(job)
        if finished:
            for job in finished:
                self._scheduler.remove(job)
            await self._completion.start(finished)

    def _warm_up(self, lane: int) -> int:
        """The pixels that a batch may have on this lane."""
        with self._model_pool.acquire(self._model_pool.default.fingerprint) as decoder:
            decoder.warm_up(lane)
            return decoder.max_batch_pixels

    def _revive(self, lane: int) -> None:
        with self._model_pool.acquire(self._model_pool.default.fingerprint) as decoder:
            decoder.revive(lane)

    def _synthesise(self, work: Sequence[Work], lane: int, done: set[Work]) -> dict[DecodeJob, Exception]:
        """Run one batch, on the device's thread. Returns the jobs that failed, each with its error.

        ``done`` gets what is finished, also where the device is lost on the way.
        """
        try:
            with self._model_pool.acquire(work[0][0].frame.fingerprint) as decoder:
                decoder.warm_up(lane)  # does nothing unless it was just loaded
                failed = self._run_halving(decoder, work, lane, done)
                self._metrics.count_events(decoder.take_counts())
                for part, seconds in decoder.parts(lane).items():
                    self._metrics.part_seconds.labels(part).observe(seconds)
                for kind, held in decoder.memory.items():
                    self._metrics.gpu_memory.labels(kind).set(held)
                return failed
        except ModelUnavailable as error:
            return {job: error for job, _ in work}

    def _run_halving(
        self, decoder: Decoder, work: Sequence[Work], lane: int, done: set[Work]
    ) -> dict[DecodeJob, Exception]:
        """Run a batch. One that fails is run again in halves, down to single items.

        A single item is run again after each death of the decoder process. The ``max_deaths``-th one puts its frame
        into quarantine.
        """
        try:
            whole = all(_assembler(job).whole for job, _ in work)
            images = decoder.run([_assembler(job).cut(tile) for job, tile in work], whole=whole, lane=lane)
            return self._put(work, images, done)
        except DeviceUnavailable:
            raise
        except Exception as error:
            failure = error
        failure.__traceback__ = None  # it would keep the batch in memory
        if isinstance(failure, DecoderDied):
            self._metrics.decoder_deaths.inc()
        if len(work) == 1:
            job = work[0][0]
            job.deaths += isinstance(failure, DecoderDied)
            if isinstance(failure, DecoderDied) and job.deaths < self._limits.max_deaths:
                return self._run_halving(decoder, work, lane, done)  # the process may have died for another reason
            return {job: failure}
        if isinstance(failure, DeviceOutOfMemory):
            self._metrics.splits.inc()
        half = len(work) // 2
        failed = self._run_halving(decoder, work[:half], lane, done)
        return failed | self._run_halving(decoder, work[half:], lane, done)

    def _put(self, work: Sequence[Work], images: NDArray[Any], done: set[Work]) -> dict[DecodeJob, Exception]:
        """Add each tile to its picture. One that cannot be added fails alone: the others must not be added again."""
        failed: dict[DecodeJob, Exception] = {}
        for (job, tile), image in zip(work, images, strict=True):
            try:
                _assembler(job).put(tile, image)
                done.add((job, tile))
            except Exception as error:
                failed[job] = error.with_traceback(None)
        return failed

    # -- endings ----------------------------------------------------------------------------------------------------

    async def _fail(self, job: DecodeJob, error: Exception) -> None:
        outcome, original = outcome_of(error), error
        reason = reason_of(error)
        if self._scheduler.has(job):
            if outcome.answer is not None:
                error = outcome.answer(reason, retry_after=_RETRY_AFTER.get(outcome.fault))
            self._scheduler.end(job, error)
        if outcome.state is FrameState.FAILED:
            await self._completion.fail(job, reason)
            return
        if isinstance(original, DeviceOutOfMemory):
            log.error("a frame waits for %g s: %s", OUT_OF_MEMORY_SECONDS, reason)
            await self._claimer.release([job], after=OUT_OF_MEMORY_SECONDS)
            return
        await self._claimer.release([job])
        if outcome.fault is Fault.HOST:
            log.error("a frame waits again: this machine could not decode it (%s)", reason)
            await asyncio.sleep(HOST_SECONDS)

    def _expire(self) -> None:
        for job in self._scheduler.take_expired():
            self._metrics.decodes.labels("expired").inc()
            self._scheduler.end(job, Expired("its deadline passed while it waited: ask again", retry_after=1.0))


def _assembler(job: DecodeJob) -> TileAssembler:
    assert job.assembler is not None, "only entropy-decoded jobs reach the device"
    return job.assembler
