"""A short, bounded line in front of the encoder: a place in it, or an answer at once when to come again."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aeic.errors import AeicError

T = TypeVar("T")


class Busy(AeicError):
    """No place is free; `retry_after_seconds` is when one should be."""

    http_status = 429

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EncodeQueue:
    """At most `workers` jobs at a time in threads of their own, at most `waiting` more in line."""

    def __init__(self, workers: int, waiting: int) -> None:
        self.pending = 0
        self.workers = workers
        self._limit = workers + waiting
        self._placeless = 0  # of those pending, the jobs that took no place
        self._seconds = 0.2  # smoothed time of one job
        self._begun: dict[object, float] = {}  # when each job now running began, monotonic
        self._pool = ThreadPoolExecutor(workers, "encode")

    def check(self) -> None:
        """Raises Busy if run() would."""
        if self.pending - self._placeless >= self._limit:
            seconds = self.seconds(self.pending)
            raise Busy(
                f"{self.pending} pictures are being encoded or wait; come again in {seconds} s,"
                " or raise AEIC_EDGE_ENCODE_QUEUE_FRAMES",
                seconds,
            )

    def seconds(self, jobs: int) -> int:
        """How long so many jobs should take, at least 1."""
        return max(1, math.ceil(jobs * self._seconds / self.workers))

    async def run(self, job: Callable[[], T], *, unbounded: bool = False) -> T:
        """The job's result, from a worker's thread. Raises Busy without waiting when the line is full, unless the job
        takes no place in it; whoever runs those bounds them himself."""
        if not unbounded:
            self.check()
        self.pending += 1
        self._placeless += unbounded
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, job)
        # Counted until it is really done: a client that hung up does not make its picture cheaper.
        future.add_done_callback(functools.partial(self._done, unbounded))
        return await asyncio.shield(future)

    def _timed(self, job: Callable[[], T]) -> T:
        begin = time.monotonic()
        mark = object()
        self._begun[mark] = begin
        try:
            return job()
        finally:
            del self._begun[mark]
            self._seconds += 0.1 * (time.monotonic() - begin - self._seconds)

    def _done(self, unbounded: bool, future: asyncio.Future[T]) -> None:
        self.pending -= 1
        self._placeless -= unbounded
        if not future.cancelled():
            future.exception()  # fetched, so that an abandoned failure is not reported as forgotten

    def longest_seconds(self) -> float:
        """How long the oldest job now running has taken so far."""
        begun = list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    async def close(self) -> None:
        """Waits for the jobs in line."""
        await asyncio.to_thread(self._pool.shutdown)
