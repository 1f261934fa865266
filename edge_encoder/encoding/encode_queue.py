"""A bounded queue in front of the encoder, which refuses at once when it is full and says when to retry."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aeic_service.budgets import Budget, FairQueue
from aeic_service.errors import Overloaded

T = TypeVar("T")
SMALL_PIXELS = 4 << 20
_POLL_SECONDS = 0.02


class EncodeQueue:
    """`workers` jobs at a time, each in a thread of its pool, and at most `waiting` more in the queue.

    Pictures over SMALL_PIXELS have at most `max_pixels` together while they are encoded; a larger one is the only one
    of them. They leave one worker, if there are several, and half of the queue to small pictures, which therefore do
    not wait for all of them.

    A job is `apart` when its picture is read in a separate process. That takes up to its deadline for a hostile file,
    so one more job runs beside `workers` of those, and they leave a quarter of the queue to the others. Large ones
    leave half of the places of large pictures, and take turns with the others where the pixels do not suffice."""

    def __init__(self, workers: int, waiting: int, max_pixels: int) -> None:
        self.pixels = Budget(max_pixels)
        self._turns = FairQueue(self.pixels, Budget(sys.maxsize))
        self._large = 0
        self._apart = 0
        self._large_apart = 0
        self._large_workers = {apart: asyncio.Semaphore(max(1, workers - 1)) for apart in (False, True)}
        self._workers = {apart: asyncio.Semaphore(workers) for apart in (False, True)}
        self.pending = 0
        self.workers = workers
        self._limit = workers + waiting
        self._unbounded = 0  # how many of the pending jobs do not count against the limit
        self._seconds = 0.2  # smoothed time of one job
        self._begun: dict[object, float] = {}  # when each job now running began, monotonic
        self._pool = ThreadPoolExecutor(workers + 1, "encode")

    def check(self) -> None:
        """Raises Overloaded if run() would for a small picture."""
        self._check(self.pending - self._unbounded, self._limit)

    def _check(self, pending: int, limit: int) -> None:
        if pending >= limit:
            seconds = self.seconds(self.pending)
            raise Overloaded(
                f"{self.pending} pictures are being encoded or wait; try again in {seconds} s,"
                " or raise AEIC_EDGE_ENCODE_QUEUE_FRAMES",
                retry_after=seconds,
            )

    def seconds(self, jobs: int) -> int:
        """The estimated time of that many jobs, at least 1 s."""
        return max(1, math.ceil(jobs * self._seconds / self.workers))

    async def run(self, job: Callable[[], T], *, pixels: int, apart: bool = False, unbounded: bool = False) -> T:
        """Runs the job, whose picture has so many pixels, in a worker thread and returns its result. Raises Overloaded
        at once when the queue is full, unless the job is `unbounded`: the caller limits the number of those."""
        large = pixels > SMALL_PIXELS
        if not unbounded:
            self.check()
            if large:
                self._check(self._large, max(1, self._limit // 2))
            if apart:
                self._check(self._apart, max(1, self._limit - max(1, self._limit // 4)))
            if large and apart:
                self._check(self._large_apart, max(1, self._limit // 4))
        counted = 0 if unbounded else 1
        self.pending += 1
        self._unbounded += unbounded
        self._large += counted * large
        self._apart += counted * apart
        self._large_apart += counted * (large and apart)
        task = asyncio.ensure_future(self._in_turn(job, pixels, apart))
        # Counted until the job has ended, even when its client has hung up.
        task.add_done_callback(functools.partial(self._done, unbounded, counted * large, counted * apart))
        return await asyncio.shield(task)

    async def _in_turn(self, job: Callable[[], T], pixels: int, apart: bool) -> T:
        if pixels <= SMALL_PIXELS:
            return await self._work(job, apart)
        async with self._large_workers[apart]:
            with await self._turns.enter("apart" if apart else "", pixels, math.inf):
                return await self._work(job, apart)

    async def _work(self, job: Callable[[], T], apart: bool) -> T:
        async with self._workers[apart]:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, job)

    def _timed(self, job: Callable[[], T]) -> T:
        begin = time.monotonic()
        mark = object()
        self._begun[mark] = begin
        try:
            return job()
        finally:
            del self._begun[mark]
            self._seconds += 0.1 * (time.monotonic() - begin - self._seconds)

    def _done(self, unbounded: bool, large: int, apart: int, future: asyncio.Future[T]) -> None:
        self.pending -= 1
        self._unbounded -= unbounded
        self._large -= large
        self._apart -= apart
        self._large_apart -= large and apart
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not log it as never retrieved

    def longest_seconds(self) -> float:
        """How long the longest-running job has taken so far."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    async def close(self) -> None:
        """Waits for the pending jobs. When it is cancelled, they go on in their threads."""
        try:
            while self.pending:
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._pool.shutdown(wait=False)
