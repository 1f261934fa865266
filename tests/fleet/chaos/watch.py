"""What the database shows during a run: how long expired leases stayed, and what became of every frame."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.schema import frames, jobs
from cloud_decoder.store.store import Store


class Watch:
    """Polls the store. ``worst_overdue`` is the longest time in seconds for which the lease of a job had expired and no
    worker had claimed the job, while the database was up. A dead worker delays its job by the lease and this time."""

    def __init__(self, store: Store, lease: float) -> None:
        self._store, self._lease = store, lease
        self._overdue: dict[tuple[int, float], float] = {}
        self.worst_overdue = 0.0
        self.samples = 0
        self.jobs = 0

    async def run(self) -> None:
        """Until cancelled."""
        last: float | None = None
        while True:
            await asyncio.sleep(0.1)
            try:
                found, ready, now = await asyncio.to_thread(self._look)
            except StoreUnavailable:
                last = None
                continue
            moment = time.monotonic()
            for key in found:
                if key[1] < now and last is not None:
                    self._overdue[key] = self._overdue.get(key, 0.0) + moment - last
                    self.worst_overdue = max(self.worst_overdue, self._overdue[key])
            last = moment
            self.samples += 1
            self.jobs = ready

    @property
    def longest_stuck(self) -> float:
        """In leases, from the last heartbeat."""
        return 1.0 + self.worst_overdue / self._lease if self.worst_overdue else 0.0

    def _look(self) -> tuple[list[tuple[int, float]], int, float]:
        with self._store.database.read() as connection:
            held = sa.select(jobs.c.seq, jobs.c.lease_until).where(jobs.c.lease_until.is_not(None))
            found = [(row.seq, row.lease_until) for row in connection.execute(held)]
            ready = connection.scalar(sa.select(sa.func.count()).select_from(jobs)) or 0
        return found, ready, self._store.clock()

    async def until_done(self, count: int, seconds: float) -> bool:
        """Whether ``count`` frames are decoded within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(StoreUnavailable):
                counts = await asyncio.to_thread(self._store.frames.counts)
                if counts["done"] + counts["failed"] >= count:
                    return True
            await asyncio.sleep(0.2)
        return False

    def verdict(self, sent: dict[UUID, bytes]) -> dict[str, int]:
        """Lost, wrong, duplicated and undecoded frames, of those sent."""
        with self._store.database.read() as connection:
            ours = sa.select(frames.c.id, frames.c.bitstream, frames.c.state).where(frames.c.tenant == "")
            found = connection.execute(ours).all()
            left = connection.scalar(sa.select(sa.func.count()).select_from(jobs)) or 0
            claimed = connection.scalar(sa.text("SELECT sum(frames) FROM sources WHERE tenant = ''"))
        times = Counter(row.id for row in found)
        return {
            "lost": sum(id not in times for id in sent),
            "wrong": sum(bytes(row.bitstream) != sent[row.id] for row in found if row.id in sent),
            "duplicated": sum(times.values()) - len(times) + int(claimed or 0) - len(found),
            "not_sent_by_us": sum(id not in sent for id in times),
            "undecoded": sum(row.state != "done" for row in found),
            "jobs_left": int(left),
        }
