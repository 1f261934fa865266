"""What stands in a front end where one machine has its worker: it checks, asks the queue, and waits for the workers.

Front ends have no device. A picture that somebody waits for is a job that goes before all others
(:meth:`Store.demand`), its picture comes out of the shared cache. POST /v1/decode stores its frame under a tenant that
no token can name, for as long as the caller waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from aeic.bitstream import Frame
from aeic_service.errors import Draining, Overloaded
from cloud_decoder.errors import Expired, StoreUnavailable, Undecodable
from cloud_decoder.images import formats
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.records import NewFrame, State, StoredFrame
from cloud_decoder.store.store import Store
from cloud_decoder.tiling import Picture
from cloud_decoder.worker.job import DEMAND_PRIORITY, Decoded, Job
from cloud_decoder.worker.worker import Worker

T = TypeVar("T")
TRANSIENT_TENANT = ":decode"
"""The tenant of frames that are only passing; tokens cannot have a colon in their tenant."""
LOOK_SECONDS = 0.05
AGAIN_SECONDS = 5.0
"""A demand is repeated after this long: its picture may have gone again."""


@dataclass
class Pool:
    """Nothing waits in a front end."""

    draining: bool = False
    entropy: tuple[()] = ()
    device: tuple[()] = ()


class QueueBackend:
    """In a worker's place. ``max_queue`` callers may wait for POST /v1/decode at once."""

    def __init__(
        self,
        model_pool: ModelPool,
        store: Store,
        cache: Any,
        metrics: Metrics,
        *,
        max_queue: int,
        max_pixels: int,
        demand_seconds: float = 60.0,
    ) -> None:
        self.model_pool, self.store, self.cache, self.metrics = model_pool, store, cache, metrics
        self.max_queue, self.max_pixels, self.demand_seconds = max_queue, max_pixels, demand_seconds
        self.scheduler = Pool()
        self.device = "none"
        self.alive = True
        self._waiting = 0
        self._asked: dict[int, float] = {}
        self._threads = ThreadPoolExecutor(4, "front")

    async def start(self) -> None:
        """Nothing to warm up."""

    async def stop(self) -> None:
        """Whoever waits is told so at his next look."""
        self.scheduler.draining = True
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
        self._threads.shutdown(wait=True)

    def wake(self) -> None:
        """The workers look by themselves."""

    def check(self, data: bytes) -> Frame:
        """As :meth:`Worker.check`."""
        return Worker.check(self, data)  # type: ignore[arg-type]

    async def demand(self, row: StoredFrame) -> Job | None:
        """Move the frame's job to the front, or make one. There is never a job here to wait for: look again."""
        self.model_pool.bundle(row.fingerprint)  # or why not
        if self.scheduler.draining:
            raise Draining()
        moment = time.monotonic()
        if moment - self._asked.get(row.seq, -math.inf) > AGAIN_SECONDS:  # waiting callers come by twice a second
            self._asked = {seq: at for seq, at in self._asked.items() if moment - at <= AGAIN_SECONDS}
            self._asked[row.seq] = moment
            now = await self._on(self.store.clock)
            await self._on(self.store.demand, row.tenant, row.id, now, now + self.demand_seconds)
        return None

    async def wait(self, job: Job, timeout: float, *, pin: bool = False) -> Decoded:
        """Never called: :meth:`demand` hands out no job."""
        raise NotImplementedError

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """Through the queue and back. Raises what :meth:`Worker.decode` raises."""
        frame = self.check(data)
        if self.scheduler.draining:
            raise Draining()
        if self._waiting >= self.max_queue:
            self.metrics.sheds.labels("queue_full").inc()
            raise Overloaded(f"{self.max_queue} pictures wait already: ask again later", retry_after=2.0)
        new = NewFrame(
            tenant=TRANSIENT_TENANT,
            id=uuid4(),
            source="decode",
            captured_ms=0,
            priority=priority,
            width=frame.width,
            height=frame.height,
            rate=frame.rate,
            fingerprint=frame.fingerprint,
            digest=hashlib.sha256(data).hexdigest(),
            bitstream=data,
        )
        self._waiting += 1
        try:
            now = await self._on(self.store.clock)
            await self._on(self.store.add, [new], now, now + timeout)
            return await self._decoded(new, time.monotonic() + timeout)
        finally:
            self._waiting -= 1
            with contextlib.suppress(StoreUnavailable, RuntimeError):  # retention takes it, some day
                self._threads.submit(self.store.forget, new.tenant, new.id)

    async def encode(self, picture: Picture, format: str, width: int | None = None) -> bytes:
        """As :meth:`Worker.encode`."""
        started = time.monotonic()
        data = await self._on(formats.encode, picture, format, width)
        self.metrics.image_seconds.observe(time.monotonic() - started)
        return data

    async def _decoded(self, new: NewFrame, end: float) -> Decoded:
        while time.monotonic() < end:
            if self.scheduler.draining:
                raise Draining()
            row = await self._on(self.store.get, new.tenant, new.id)
            if row is None or row.state is State.FAILED:
                raise Undecodable(str(row.reason) if row else "the frame is gone")
            if row.state is State.DONE:
                master = await self._on(self.cache.get, new.digest, formats.MASTER)
                if master is None:
                    raise Undecodable("its picture did not reach the shared cache: ask again")
                picture = await self._on(formats.decode_master, master)
                return Decoded(picture, row.latents_digest or "", row.timings or {})
            await asyncio.sleep(LOOK_SECONDS)
        self.metrics.decodes.labels("expired").inc()
        raise Expired("not decoded in time: ask again, or allow more time", retry_after=1.0)

    async def _on(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
