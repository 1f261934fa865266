"""The front end's :class:`~cloud_decoder.decode_backend.DecodeBackend`: it queues work and waits for the workers.

Front ends have no device. A picture that a caller waits for is a job ahead of all others (:meth:`JobQueue.demand`), and
the picture comes out of the shared cache. POST /v1/decode stores its frame for as long as the caller waits, under a
tenant that no token can name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from aeic.bitstream import Frame
from aeic_service.errors import Draining, Overloaded
from cloud_decoder.decode_backend import Decoded, check_frame
from cloud_decoder.errors import Expired, StoreUnavailable, Undecodable
from cloud_decoder.images import formats
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.records import DEMAND_PRIORITY, FrameState, NewFrame, StoredFrame
from cloud_decoder.store.store import Store
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Picture

TRANSIENT_TENANT = ":decode"
"""The tenant of frames that are stored only while a caller waits; the tenant of a token cannot contain a colon."""
POLL_SECONDS = 0.05
DEMAND_AGAIN_SECONDS = 5.0
"""A demand is repeated after this long: the cache may have dropped its picture again."""
DEMAND_SECONDS = 60.0
"""The deadline of a demand, which orders it among the others."""


class QueueBackend:
    """At most ``max_queue`` callers of :meth:`decode` may wait at once."""

    def __init__(
        self,
        model_pool: ModelPool,
        store: Store,
        cache: PictureCache,
        metrics: Metrics,
        *,
        max_queue: int,
        max_pixels: int,
    ) -> None:
        self._model_pool, self._store, self._cache, self._metrics = model_pool, store, cache, metrics
        self._max_queue, self._max_pixels = max_queue, max_pixels
        self.device = self.runtime = "none"
        self.problem = self.failure = ""  # the workers decode, and report their own readiness
        self.draining = False
        self._callers = 0
        self._demanded: dict[int, float] = {}
        self._threads = ThreadPoolExecutor(4, "queue-backend")

    @property
    def warnings(self) -> list[str]:
        """Nothing is decoded in a front end."""
        return []

    @property
    def waiting(self) -> dict[str, int]:
        """Nothing waits in a front end."""
        return {"entropy": 0, "device": 0}

    async def start(self) -> None:
        """Nothing to prepare."""

    async def stop(self) -> None:
        """Wait until every caller of :meth:`decode` has got ``Draining``."""
        self.draining = True
        while self._callers:
            await asyncio.sleep(POLL_SECONDS)
        self._threads.shutdown(wait=True)

    def wake(self) -> None:
        """Nothing to do: the workers poll the queue."""

    def check(self, data: bytes) -> Frame:
        """See :func:`cloud_decoder.decode_backend.check_frame`."""
        return check_frame(data, self._model_pool, self._max_pixels)

    async def decode_stored(self, row: StoredFrame, *, timeout: float) -> Decoded | None:
        """Move the frame's job to the front of the queue, or create it. Always None: a worker decodes it."""
        self._model_pool.bundle(row.fingerprint)  # WrongModel where no worker of this fleet can decode it
        if self.draining:
            raise Draining()
        moment = time.monotonic()
        if moment - self._demanded.get(row.seq, -math.inf) > DEMAND_AGAIN_SECONDS:  # callers ask twice a second
            self._demanded = {seq: at for seq, at in self._demanded.items() if moment - at <= DEMAND_AGAIN_SECONDS}
            self._demanded[row.seq] = moment
            now = await run_on(self._threads, self._store.clock)
            await run_on(self._threads, self._store.queue.demand, row.tenant, row.id, now, now + DEMAND_SECONDS)
        return None

    async def decode(self, data: bytes, *, timeout: float, priority: int = DEMAND_PRIORITY) -> Decoded:
        """See :meth:`DecodeBackend.decode <cloud_decoder.decode_backend.DecodeBackend.decode>`."""
        frame = self.check(data)
        if self.draining:
            raise Draining()
        if self._callers >= self._max_queue:
            self._metrics.sheds.labels("queue_full").inc()
            raise Overloaded(f"{self._max_queue} pictures are waiting already: try again later", retry_after=2.0)
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
        self._callers += 1
        try:
            now = await run_on(self._threads, self._store.clock)
            await run_on(self._threads, self._store.frames.add, [new], now, now + timeout)
            return await self._picture(new, time.monotonic() + timeout)
        finally:
            self._callers -= 1
            with contextlib.suppress(StoreUnavailable, RuntimeError):  # retention removes what is left here
                self._threads.submit(self._store.frames.forget, new.tenant, new.id)

    async def encode(self, picture: Picture, format: str, width: int | None = None) -> bytes:
        """See :meth:`DecodeBackend.encode <cloud_decoder.decode_backend.DecodeBackend.encode>`."""
        started = time.monotonic()
        data = await run_on(self._threads, formats.encode, picture, format, width)
        self._metrics.image_seconds.observe(time.monotonic() - started)
        return data

    async def _picture(self, new: NewFrame, end: float) -> Decoded:
        while time.monotonic() < end:
            if self.draining:
                raise Draining()
            row = await run_on(self._threads, self._store.frames.get, new.tenant, new.id)
            if row is None or row.state is FrameState.FAILED:
                raise Undecodable(str(row.reason) if row else "the frame is gone")
            if row.state is FrameState.DONE:
                master = await run_on(self._threads, self._cache.get, new.digest, formats.MASTER)
                if master is None:
                    raise Undecodable("its picture did not reach the shared cache: ask again")
                picture = await run_on(self._threads, formats.decode_master, master)
                return Decoded(picture, row.latents_digest or "", row.timings or {})
            await asyncio.sleep(POLL_SECONDS)
        self._metrics.decodes.labels("expired").inc()
        raise Expired("not decoded in time: ask again, or allow more time", retry_after=1.0)
