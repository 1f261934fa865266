"""The worker's side of the job queue: claim frames under a lease, renew the leases, return or finish the frames.

A worker that has the queue to itself claims far ahead. One of many claims what it can begin soon and only frames that
can share a batch, so that a crash costs little and the other workers find something to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from aeic.bitstream import Frame
from aeic.errors import BitstreamError
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.store.store import DecodeResult, FrameState, Lease, LeasedFrame, Store, StoredFrame
from cloud_decoder.threads import run_on
from cloud_decoder.worker.job import DEMAND_PRIORITY, DecodeJob, leases_of
from cloud_decoder.worker.scheduler import POLL_SECONDS, Scheduler

log = logging.getLogger(__name__)

OWED = 10_000
"""Changes that are kept while the store cannot record them. The leases of older ones run out."""


@dataclass(frozen=True)
class ClaimSettings:
    """How a worker claims."""

    owner: str = "cloud"
    """The name on its leases. No two living workers of one store share a name."""
    lease_seconds: float = 60.0
    max_attempts: int = 3
    """A frame that was being decoded this often when a service ended goes to quarantine."""
    lookahead: int = 32
    """Frames of one bundle claimed ahead of entropy decoding."""
    max_leased: int | None = None
    """Frames leased at once from a queue that other workers share; None for a worker that has the queue to itself."""


class Claimer:
    """Claims frames of the bundles in ``model_pool`` for ``scheduler``. Blocking calls run on ``threads``."""

    def __init__(
        self, store: Store, scheduler: Scheduler, threads: Executor, model_pool: ModelPool, settings: ClaimSettings
    ) -> None:
        self._store, self._scheduler, self._threads = store, scheduler, threads
        self._model_pool, self._settings = model_pool, settings
        self._leased: set[int] = set()
        self._owed: deque[Callable[[], object]] = deque(maxlen=OWED)
        self._renewed = time.monotonic()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """There are new frames in the store, or there is room for more."""
        self._changed.set()

    async def recover(self) -> None:
        """Return the frames that an earlier run of this owner held when it died."""
        freed = await run_on(self._threads, self._store.queue.recover, self._settings.owner)
        if freed:
            log.info("returned %d frames that an earlier run held", freed)

    async def run(self) -> None:
        """Keep enough claimed frames ready until the scheduler drains or breaks."""
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)
            self._changed.clear()
            try:
                await self.settle()
                for fingerprint in filter(self._model_pool.usable, self._model_pool.bundles):
                    await self._claim(fingerprint)
            except StoreUnavailable as error:
                log.warning("%s", error)

    async def settle(self) -> None:
        """Record the changes that the store could not take before. ``StoreUnavailable`` if it still cannot."""
        while self._owed:
            change = self._owed[0]
            await run_on(self._threads, change)
            if self._owed and self._owed[0] is change:
                self._owed.popleft()

    async def renew(self, held: Callable[[], Iterable[DecodeJob]]) -> None:
        """Renew the leases of ``held()`` until cancelled."""
        self._renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            try:
                await run_on(self._threads, self._renew, leases_of(held()))
                self._renewed = time.monotonic()
            except StoreUnavailable as error:
                log.warning("leases cannot be renewed: %s", error)
            except Exception as error:  # it must not end: every frame would be decoded twice
                log.error("leases cannot be renewed", exc_info=error)

    @property
    def lapsing(self) -> bool:
        """Whether no lease could be renewed for so long that others may have claimed the frames."""
        return time.monotonic() - self._renewed > self._settings.lease_seconds

    async def demand(self, row: StoredFrame) -> DecodeJob | None:
        """The job for a frame that a caller waits for; None where another worker has it, or it is just ending.

        Not subject to the limits on claims: a caller waits.
        """
        claimed: LeasedFrame | None = None
        if row.state is FrameState.DONE:
            data = await run_on(self._threads, self._store.frames.bitstream, row.tenant, row.id)
        else:
            claimed = await run_on(self._threads, self._claim_one, row)
            data = claimed.bitstream if claimed else None
        if data is None:
            return None
        job = self._scheduler.jobs.get(row.digest) or self._scheduler.add(
            row.digest, data, Frame.parse(data), DEMAND_PRIORITY
        )
        self._attach(job, claimed)
        return job

    async def begin(self, jobs: Iterable[DecodeJob], *, must: bool = False) -> None:
        """Count an attempt of each of these jobs, which are about to be decoded, unless that has been done.

        With ``must`` it raises ``StoreUnavailable`` where the store cannot record it.
        """
        fresh = [job for job in jobs if not job.begun]
        if leases := leases_of(fresh):
            try:
                await run_on(self._threads, self._store.queue.begin, leases)
            except StoreUnavailable:
                if must:
                    raise
                return  # an attempt less is counted
        for job in fresh:
            job.begun = True

    async def release(self, jobs: Iterable[DecodeJob], *, after: float | None = None) -> None:
        """Return frames to the queue. An attempt counts only for frames that a worker did not survive.

        With ``after`` they are not claimed again before so many seconds have passed.
        """
        jobs = list(jobs)
        if leases := leases_of(jobs):
            self._forget(leases)
            await self._record(partial(self._release, jobs, after))

    def release_soon(self, job: DecodeJob) -> None:
        """:meth:`release` without waiting for it."""
        if leases := leases_of([job]):
            self._forget(leases)
            self._owed.append(partial(self._release, [job]))

    async def finish(self, results: Sequence[DecodeResult], now: float) -> set[int]:
        """Record these frames as decoded; later, where the store cannot be written now.

        Returns the ``seq`` of those that another worker has claimed since; theirs is the result that counts.
        """
        self._forget(one.lease for one in results)
        return self._lost(await self._record(partial(self._store.queue.finish, results, now)))

    async def fail(self, job: DecodeJob, reason: str) -> set[int]:
        """Put the frames of ``job`` into quarantine. Works and returns as :meth:`finish`."""
        leases = leases_of([job])
        self._forget(leases)
        return self._lost(await self._record(partial(self._store.queue.fail, leases, reason)))

    async def _record(self, change: Callable[[], set[int]]) -> set[int]:
        try:
            return await run_on(self._threads, change)
        except StoreUnavailable as error:
            log.warning("%s; the change is repeated", error)
            self._owed.append(change)
            return set()

    def _lost(self, lost: set[int]) -> set[int]:
        if lost:
            log.warning("the leases of %d frames have expired; other workers decode them", len(lost))
            self._scheduler.metrics.lost_leases.inc(len(lost))
        return lost

    @property
    def _stopped(self) -> bool:
        return self._scheduler.draining or self._scheduler.broken

    def _room(self, fingerprint: str) -> int:
        """How many frames of a bundle to claim now; 0 until half of a limit is free, since each claim is a commit."""
        limits = [(self._settings.lookahead, self._scheduler.stored(fingerprint))]
        if self._settings.max_leased is not None:
            limits.append((self._settings.max_leased, len(self._leased)))
        if any(limit - used < (limit + 1) // 2 for limit, used in limits):
            return 0
        return min(limit - used for limit, used in limits)

    async def _claim(self, fingerprint: str) -> None:
        while not self._stopped and (room := self._room(fingerprint)):
            claimed = await run_on(self._threads, self._claim_some, fingerprint, room)
            if self._scheduler.broken:
                await run_on(self._threads, self._store.queue.release, [one.lease for one in claimed])
                return
            for one in claimed:
                try:
                    self._take(one)
                except BitstreamError as error:  # a row that another release or a hand has written
                    log.error("frame %s of the store cannot be parsed and goes to quarantine", one.row.id)
                    await run_on(self._threads, self._store.queue.fail, [one.lease], f"{type(error).__name__}: {error}")
            if len(claimed) < room:
                return

    def _take(self, one: LeasedFrame) -> None:
        job = self._scheduler.jobs.get(one.row.digest)
        if job is None:
            priority = min(one.row.priority, DEMAND_PRIORITY - 1)
            job = self._scheduler.add(one.row.digest, one.bitstream, Frame.parse(one.bitstream), priority)
        self._attach(job, one)

    def _claim_some(self, fingerprint: str, limit: int) -> list[LeasedFrame]:
        settings, alike = self._settings, self._settings.max_leased is not None
        lease = (self._store.clock(), settings.lease_seconds, settings.max_attempts)
        return self._store.queue.claim(settings.owner, fingerprint, limit, *lease, alike=alike)

    def _claim_one(self, row: StoredFrame) -> LeasedFrame | None:
        settings = self._settings
        lease = (self._store.clock(), settings.lease_seconds, settings.max_attempts)
        return self._store.queue.claim_one(row.tenant, row.id, settings.owner, *lease)

    def _release(self, jobs: list[DecodeJob], after: float | None = None) -> set[int]:
        until = None if after is None else self._store.clock() + after
        self._store.queue.release(leases_of(jobs), until=until)
        return set()

    def _renew(self, leases: list[Lease]) -> None:
        self._store.queue.renew(leases, self._store.clock() + self._settings.lease_seconds)

    def _attach(self, job: DecodeJob, claimed: LeasedFrame | None) -> None:
        """Have the picture of ``job`` kept in the cache, and ``claimed`` finished with it."""
        job.keep = True
        if claimed:
            self._leased.add(claimed.row.seq)
            if claimed.row.seq not in job.leases:  # else its lease ran out, and this worker has claimed it again
                job.rows.append(claimed.row)
            job.leases[claimed.row.seq] = claimed.lease
            self._scheduler.requeue(job)  # a stored frame has no deadline

    def _forget(self, leases: Iterable[Lease]) -> None:
        self._leased.difference_update(lease.seq for lease in leases)
        self.wake()
