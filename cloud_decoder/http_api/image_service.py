"""Pictures of stored frames: from the cache, or decoded on demand, in the requested format and width.

    cached in this format -> cached as master, converted -> a place in Admission -> DecodeBackend.decode_stored

routers/frames.py calls it, and nothing else makes a picture for a client. The cache evicts by itself
(images/disk_cache.py; images/object_cache.py in a fleet). A frame stays decodable as long as its bitstream is in the
store.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from aeic_service.budgets import Budget, Place
from aeic_service.errors import Draining, Overloaded, UnknownFrame
from cloud_decoder.admission import Admission
from cloud_decoder.decode_backend import DecodeBackend, Decoded
from cloud_decoder.errors import Expired, Gone, OtherForm, Undecodable, UnknownRequest
from cloud_decoder.events import EventBus
from cloud_decoder.images import formats
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.images.composition import MOST_PIXELS_OF_REGION, composed_size, enlarged, paste
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import FrameState, Store, StoredFrame
from cloud_decoder.threads import run_on
from cloud_decoder.tiling import Picture

T = TypeVar("T")

POLL_SECONDS = 0.5
"""How often the store is read while a caller waits: another process may decode the frame and publish no event here."""
MOST_PARTS = 16
"""Answers that are painted into one picture: the newest."""
COMPOSING_SECONDS = 10.0
"""How long a composed picture may wait for its turn after its parts are ready."""
HOLD_SECONDS = 300.0
"""The longest that a frame keeps its place after its caller has left."""


@dataclass(frozen=True)
class Capacity:
    """How much may go on at once."""

    admission: Admission
    """Decodes, by their pixels and in the turns of their tenants."""
    waiters: Budget
    """Requests that wait."""


class ImageService:
    """Pictures of stored frames, within the limits of ``capacity``."""

    def __init__(
        self,
        store: Store,
        cache: PictureCache,
        backend: DecodeBackend,
        capacity: Capacity,
        event_bus: EventBus,
        metrics: Metrics,
    ) -> None:
        self._store, self._cache, self._backend = store, cache, backend
        self._admission, self._waiters = capacity.admission, capacity.waiters
        self._event_bus, self._metrics = event_bus, metrics
        self._placed: set[str] = set()  # digests of the frames that have a place among those being decoded
        self._holding: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(4, "image-service")
        self._composers = ThreadPoolExecutor(1, "composing")  # it takes seconds, and rows are read on the others

    def close(self) -> None:
        """Stop its threads."""
        for task in self._holding:
            task.cancel()
        self._composers.shutdown(wait=True, cancel_futures=True)
        self._threads.shutdown(wait=True)

    @property
    def draining(self) -> bool:
        """Whether the service is stopping: waiting callers are answered now."""
        return self._backend.draining

    def waiter(self, tenant: str) -> AbstractContextManager[None]:
        """Count one waiting request for as long as the block runs. ``Overloaded`` if there is no room for it."""
        return self._waiters.part(1, tenant, refusal=self._too_many)

    def _too_many(self) -> Exception:
        self._metrics.sheds.labels("too_many_waiters").inc()
        return Overloaded(f"{self._waiters.held} requests are waiting already: try again later", retry_after=2.0)

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
                await events.about(id, min(left, 5.0))

    async def image(
        self, tenant: str, id: UUID, format: str, width: int | None, wait: float
    ) -> tuple[StoredFrame, bytes | None]:
        """The frame's picture as a file, or None if it is not ready within ``wait`` seconds; decoding goes on.

        ``UnknownFrame``; ``Undecodable`` with the reason for a frame in quarantine; ``Gone`` once it is deleted;
        ``OtherForm`` for a picture file, which is never decoded.
        """
        formats.media_type(format)
        end = time.monotonic() + wait
        row = await self.row(tenant, id, wait)
        if row.media_type is not None:
            raise OtherForm(f"{id} is a picture file: get it from /v1/frames/{id}/file")
        with self._event_bus.subscribe(tenant) as events:
            while True:
                if row.state is FrameState.FAILED:
                    raise Undecodable(f"frame {id} is in quarantine: {row.reason}")
                if row.erased:  # the cache may still have its picture, or get it from a decoder that had begun
                    raise Gone(f"frame {id} is gone: {row.reason}")
                # The picture of the same bytes may be there because another tenant has them; its presence tells so.
                if not self._waiters.shared or row.state in (FrameState.DONE, FrameState.PRUNED):
                    found = await run_on(self._threads, self._cached, row, format, width)
                    if found is not None:
                        return row, found
                if row.state is FrameState.PRUNED:
                    raise Gone(f"frame {id} is gone: {row.reason}, and its picture is no longer kept")
                left = end - time.monotonic()
                try:
                    found = await self._decode(row, format, width, left)
                except Expired:
                    return row, None
                if found is not None:
                    return row, found
                if left <= 0:
                    return row, None
                await events.about(id, min(left, POLL_SECONDS))
                if self._backend.draining:
                    raise Draining()
                row = await self.row(tenant, id)

    async def composed(
        self, tenant: str, id: UUID, format: str, width: int | None, wait: float
    ) -> tuple[StoredFrame, list[UUID], bytes | None]:
        """The frame's picture with the answers to requests for regions of it painted in, and the ids of these answers.

        None where not all are ready within ``wait`` seconds. ``UnknownRequest`` where no region was answered, else as
        :meth:`image`.
        """
        formats.media_type(format)
        end = time.monotonic() + wait
        row = await self.row(tenant, id, wait)
        found = await run_on(self._threads, self._store.frames.regions, tenant, row.id, MOST_PARTS)
        answers = [one for one in reversed(found) if _is_in_proportion(one)]  # the newest covers the others
        if answers and row.state is FrameState.DONE:
            variant = _composed_variant(row, answers, format, width)
            kept = await run_on(self._threads, self._cache.get, row.digest, variant)
            self._metrics.cache.labels("miss" if kept is None else "hit").inc()
            if kept is not None:
                return row, [answer.id for answer in answers], kept
        ready = (await self.image(tenant, id, formats.MASTER, None, max(0.0, end - time.monotonic())))[1] is not None
        if not answers:
            raise UnknownRequest(f"no request for a region of frame {id} has been answered")
        for answer in answers:  # their files are read again one by one: together they could take too much memory
            left = max(0.0, end - time.monotonic())
            ready = (await self.image(tenant, answer.id, formats.MASTER, None, left))[1] is not None and ready
        ids = [answer.id for answer in answers]
        return row, ids, await self._compose(row, answers, format, width, end) if ready else None

    async def _compose(
        self, row: StoredFrame, answers: list[StoredFrame], format: str, width: int | None, end: float
    ) -> bytes | None:
        """Paint one answer after the other. None where a picture is gone from the cache and is not there again in time.

        One place counts the composed picture and the largest of the others: one of these is in memory at a time. The
        work stops before the next answer when the caller is cancelled.
        """
        original = row.original_width or row.width, row.original_height or row.height
        wide, tall = composed_size(*original)
        pixels = wide * tall + max(one.width * one.height for one in (row, *answers))
        timeout = max(0.0, end - time.monotonic()) + COMPOSING_SECONDS
        place = await self._admission.of_pixels(row.tenant, pixels, timeout)
        loop, step = asyncio.get_running_loop(), Future[Any]()
        step.set_result(None)

        async def run(function: Callable[[], T]) -> T:
            nonlocal step
            step = work = self._composers.submit(function)
            return await asyncio.wrap_future(work)

        async def picture(one: StoredFrame) -> Picture | None:
            file = await run_on(self._threads, self._cache.get, one.digest, formats.MASTER)
            if file is not None:
                return await run(partial(formats.decode_master, file))
            with contextlib.suppress(Expired):
                decoded = await self._backend.decode_stored(one, timeout=place.seconds_left)
                return None if decoded is None else decoded.picture
            return None

        try:
            if (master := await picture(row)) is None:
                return None
            out = await run(partial(enlarged, master, original))
            del master
            for answer in answers:
                if (part := await picture(answer)) is None:
                    return None
                assert answer.region is not None
                x, y, wide, tall = answer.region
                await run(partial(paste, out, original, part, (x, y, wide, tall)))
                del part
            described = f"AEIC: regions painted in from frames {', '.join(str(one.id) for one in answers)}"
            data = await run(partial(formats.encode, out, format, width, described))
            variant = _composed_variant(row, answers, format, width)
            await run(partial(self._keep, row.digest, variant, data))
            return data
        finally:  # a step that runs on after its caller has left keeps the place
            step.add_done_callback(lambda _: loop.call_soon_threadsafe(place.leave))

    async def _decode(self, row: StoredFrame, format: str, width: int | None, timeout: float) -> bytes | None:
        """Decode a frame in its tenant's turn. None where another process decodes it.

        All callers of a frame share one place. It is held until the picture is there, even if no caller waits so long.
        """
        if row.digest in self._placed:
            return await self._file(row, await self._backend.decode_stored(row, timeout=timeout), format, width)
        place = await self._admission.of_pixels(row.tenant, row.width * row.height, max(timeout, 0.0))
        self._placed.add(row.digest)
        held = False
        try:
            decoded = await self._backend.decode_stored(row, timeout=place.seconds_left)
            return await self._file(row, decoded, format, width)
        except Expired:
            held = True
            task = asyncio.create_task(self._hold(row, place))
            self._holding.add(task)
            task.add_done_callback(self._holding.discard)
            raise
        finally:
            if not held:
                self._leave(row, place)

    async def _file(self, row: StoredFrame, decoded: Decoded | None, format: str, width: int | None) -> bytes | None:
        if decoded is None:
            return None
        # Not read back from the cache, which may be too small to keep it.
        return await run_on(self._threads, self._derive, row, decoded.picture, format, width)

    async def _hold(self, row: StoredFrame, place: Place) -> None:
        try:
            with contextlib.suppress(Exception):  # its callers get the error when they ask again
                await self._backend.decode_stored(row, timeout=HOLD_SECONDS)
        finally:
            self._leave(row, place)

    def _leave(self, row: StoredFrame, place: Place) -> None:
        self._placed.discard(row.digest)
        place.leave()

    async def sizes(self, tenant: str, id: UUID) -> dict[str, int] | None:
        """Bytes of the frame and of its reconstruction as ``png`` and ``jpeg``; None if it is not decoded yet."""
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
        self._keep(row.digest, formats.variant(format, width), data)
        return data

    def _keep(self, digest: str, variant: str, data: bytes) -> None:
        try:
            self._cache.put(digest, variant, data)
        except OSError:
            self._metrics.cache_errors.inc()


def _composed_variant(row: StoredFrame, answers: list[StoredFrame], format: str, width: int | None) -> str:
    """The cache's name for a composed picture, under the digest of the frame: another one for other answers.

    The name has 64 bits of a digest, which only has to tell the pictures of one frame apart.
    """
    parts = [[str(one.id), one.digest, one.region] for one in answers]
    made_of = [row.tenant, str(row.id), row.original_width, row.original_height, parts]
    digest = hashlib.sha256(json.dumps(made_of).encode()).digest()[:8]
    return f"c{base64.b32encode(digest).decode().rstrip('=').lower()}{formats.variant(format, width)}"


def _is_in_proportion(answer: StoredFrame) -> bool:
    """Whether an answer has no more pixels than its region can need."""
    region = answer.region
    return region is not None and answer.width * answer.height <= MOST_PIXELS_OF_REGION * region[2] * region[3]
