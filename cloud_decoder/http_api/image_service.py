"""Pictures of stored frames: from the cache, or decoded on demand, in the requested format and width."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from aeic_service.errors import Draining, Overloaded, UnknownFrame
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.errors import Expired, Gone, Undecodable
from cloud_decoder.events import EventBus, Subscription
from cloud_decoder.images import formats
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import FrameState, Store, StoredFrame
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Picture

POLL_SECONDS = 0.5
"""How often the store is read while a caller waits: another process may decode the frame and publish no event here."""


class ImageService:
    """``max_waiters`` requests may wait at once."""

    def __init__(
        self,
        store: Store,
        cache: PictureCache,
        backend: DecodeBackend,
        event_bus: EventBus,
        metrics: Metrics,
        max_waiters: int,
    ) -> None:
        self._store, self._cache, self._backend = store, cache, backend
        self._event_bus, self._metrics, self._max_waiters = event_bus, metrics, max_waiters
        self._waiting = 0
        self._threads = ThreadPoolExecutor(4, "image-service")

    def close(self) -> None:
        """Stop its threads."""
        self._threads.shutdown(wait=True)

    @contextlib.contextmanager
    def waiter(self) -> Iterator[None]:
        """Count one waiting request for as long as the block runs. ``Overloaded`` above ``max_waiters``."""
        if self._waiting >= self._max_waiters:
            self._metrics.sheds.labels("too_many_waiters").inc()
            raise Overloaded(f"{self._max_waiters} requests wait already: ask again later", retry_after=2.0)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def row(self, tenant: str, id: UUID, wait: float = 0.0) -> StoredFrame:
        """The frame's row. Waits up to ``wait`` seconds for a frame that has not arrived, then ``UnknownFrame``."""
        end = time.monotonic() + wait
        with self._event_bus.subscribe(tenant) as events:
            while True:
                row = await run_on(self._threads, self._store.frames.get, tenant, id)
                left = end - time.monotonic()
                if row is not None:
                    return row
                if left <= 0 or self._backend.draining:
                    raise UnknownFrame(
                        f"there is no frame {id} here: it has not arrived, or it belongs to another tenant"
                    )
                await _until_event(events, id, min(left, 5.0))

    async def image(
        self, tenant: str, id: UUID, format: str, width: int | None, wait: float
    ) -> tuple[StoredFrame, bytes | None]:
        """The frame's picture as a file, or None where it is not ready within ``wait`` seconds; decoding goes on.

        ``UnknownFrame``; ``Undecodable`` with the reason for a frame in quarantine; ``Gone`` after retention.
        """
        formats.media_type(format)
        end = time.monotonic() + wait
        row = await self.row(tenant, id, wait)
        with self._event_bus.subscribe(tenant) as events:
            while True:
                if row.state is FrameState.FAILED:
                    raise Undecodable(f"frame {id} is in quarantine: {row.reason}")
                found = await run_on(self._threads, self._cached, row, format, width)
                if found is not None:
                    return row, found
                if row.state is FrameState.PRUNED:
                    raise Gone(f"frame {id} was pruned by retention and its picture is not kept any more")
                left = end - time.monotonic()
                try:
                    decoded = await self._backend.decode_stored(row, timeout=left)
                except Expired:
                    return row, None
                if decoded is not None:
                    # Not read back from the cache, which may be too small to keep it.
                    return row, await run_on(self._threads, self._derive, row, decoded.picture, format, width)
                if left <= 0:
                    return row, None
                await _until_event(events, id, min(left, POLL_SECONDS))
                if self._backend.draining:
                    raise Draining()
                row = await self.row(tenant, id)

    async def sizes(self, tenant: str, id: UUID) -> dict[str, int] | None:
        """Bytes of the frame and of its reconstruction as ``png`` and ``jpeg``; None where it is not decoded yet."""
        row, master = await self.image(tenant, id, formats.MASTER, None, 0.0)
        return None if master is None else await run_on(self._threads, self._sizes, row, master)

    def _sizes(self, row: StoredFrame, master: bytes) -> dict[str, int]:
        kept = self._cache.get(row.digest, "sizes")
        if kept is not None:
            return dict(json.loads(kept))
        found = {"frame": row.bytes, **formats.sizes(formats.decode_master(master))}
        with contextlib.suppress(OSError):
            self._cache.put(row.digest, "sizes", json.dumps(found).encode())
        return found

    def _cached(self, row: StoredFrame, format: str, width: int | None) -> bytes | None:
        name = formats.variant(format, width)
        found = self._cache.get(row.digest, name)
        if found is None and name != formats.MASTER:
            master = self._cache.get(row.digest, formats.MASTER)
            found = None if master is None else self._derive(row, formats.decode_master(master), format, width)
        self._metrics.cache.labels("miss" if found is None else "hit").inc()
        return found

    def _derive(self, row: StoredFrame, picture: Picture, format: str, width: int | None) -> bytes:
        started = time.monotonic()
        data = formats.encode(picture, format, width)
        self._metrics.image_seconds.observe(time.monotonic() - started)
        try:
            self._cache.put(row.digest, formats.variant(format, width), data)
        except OSError:
            self._metrics.cache_errors.inc()
        return data


async def _until_event(events: Subscription, id: UUID, timeout: float) -> None:
    """Return at an event of that frame, when the bus wakes every subscriber, or after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        event = await events.next(left)
        if event is None or event.get("id") in (None, str(id)):
            return
