"""Between the store and the pool: frames are claimed under a lease, kept while they are worked on, or given back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from aeic.bitstream import Frame
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.store.store import LeasedFrame, State, Store, StoredFrame
from cloud_decoder.worker.completion import seqs
from cloud_decoder.worker.job import DEMAND_PRIORITY, Job
from cloud_decoder.worker.scheduler import POLL_SECONDS, Scheduler

log = logging.getLogger(__name__)
T = TypeVar("T")


class Claimer:
    """Claims for ``owner``, up to ``lookahead`` frames of each bundle on ``model_pool``."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        threads: Executor,
        *,
        model_pool: ModelPool,
        owner: str,
        lease_seconds: float,
        max_attempts: int,
        lookahead: int,
    ) -> None:
        self._store, self._scheduler, self._threads, self._model_pool = store, scheduler, threads, model_pool
        self._owner, self._lease_seconds, self._max_attempts = owner, lease_seconds, max_attempts
        self._lookahead = lookahead
        self._new = asyncio.Event()

    def wake(self) -> None:
        """There are new frames in the store, or there is room for more."""
        self._new.set()

    async def recover(self) -> None:
        """Free what an earlier run of this owner held."""
        freed = await self._on(self._store.recover, self._owner)
        if freed:
            log.info("freed %d frames that an earlier run held", freed)

    async def run(self) -> None:
        """Keep enough claimed frames at hand, until the pool drains or breaks."""
        while not self._stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._new.wait(), POLL_SECONDS)
            self._new.clear()
            try:
                for fingerprint in filter(self._model_pool.usable, self._model_pool.bundles):
                    await self._claim(fingerprint)
            except StoreUnavailable as error:
                log.warning("%s", error)

    async def renew(self, held: Callable[[], Iterable[Job]]) -> None:
        """Renew the leases of what is in hand, for ever."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            until = time.time() + self._lease_seconds
            with contextlib.suppress(StoreUnavailable):
                await self._on(self._store.renew, seqs(held()), self._owner, until)

    async def demand(self, row: StoredFrame) -> Job | None:
        """The job for a frame that somebody waits for; None where another worker has it, or it is just ending."""
        claimed: LeasedFrame | None = None
        if row.state is State.DONE:
            data = await self._on(self._store.bitstream, row.tenant, row.id)
        else:
            lease = (self._owner, time.time(), self._lease_seconds, self._max_attempts)
            claimed = await self._on(self._store.claim_one, row.tenant, row.id, *lease)
            data = claimed.bitstream if claimed else None
        if data is None:
            return None
        job = self._scheduler.jobs.get(row.digest) or self._scheduler.add(
            row.digest, data, Frame.parse(data), DEMAND_PRIORITY
        )
        self._keep(job, claimed)
        return job

    async def release(self, jobs: Iterable[Job]) -> None:
        """Give frames back untried."""
        if rows := seqs(jobs):
            with contextlib.suppress(StoreUnavailable):  # the leases run out by themselves
                await self._on(self._store.release, rows, self._owner)

    def release_soon(self, job: Job) -> None:
        """:meth:`release` without waiting for it."""
        if rows := seqs([job]):
            self._threads.submit(self._store.release, rows, self._owner)

    @property
    def _stopped(self) -> bool:
        return self._scheduler.draining or self._scheduler.broken

    async def _claim(self, fingerprint: str) -> None:
        while not self._stopped:
            room = self._lookahead - self._scheduler.stored(fingerprint)
            if room < self._lookahead // 2:
                return  # in large steps: each claim is a commit
            lease = (time.time(), self._lease_seconds, self._max_attempts)
            claimed = await self._on(self._store.claim, self._owner, fingerprint, room, *lease)
            if self._scheduler.broken:
                await self._on(self._store.release, [one.row.seq for one in claimed], self._owner)
                return
            for one in claimed:
                job = self._scheduler.jobs.get(one.row.digest)
                if job is None:
                    priority = min(one.row.priority, DEMAND_PRIORITY - 1)
                    job = self._scheduler.add(one.row.digest, one.bitstream, Frame.parse(one.bitstream), priority)
                self._keep(job, one)
            if len(claimed) < room:
                return

    def _keep(self, job: Job, claimed: LeasedFrame | None) -> None:
        """Its picture goes to the cache, and ``claimed`` waits for it too."""
        job.keep = True
        if claimed:
            job.rows.append(claimed.row)
            self._scheduler.requeue(job)  # it has no deadline any more

    async def _on(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
