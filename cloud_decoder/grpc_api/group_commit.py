"""Group commit: frames of all streams that arrive while one commit runs share the next one.

ingest.py adds the frames that it has accepted, and originals.py whole files. The future that ``add`` returns resolves
after the commit of ``Frames.add`` (store/frames.py) is synced to the disk; only then is a frame acknowledged. After
the commit, waiting clients get the event ``received`` and the worker is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.frames import is_request_id
from cloud_decoder.store.store import Added, NewFrame, Store
from cloud_decoder.threads import run_on

log = logging.getLogger(__name__)


class GroupCommit:
    """Stores frames in commits of at most ``max_frames``, publishes ``received`` for new ones, then calls ``wake``.

    ``answer(tenant, id)`` is called for each new frame that may answer a request.
    """

    def __init__(
        self,
        store: Store,
        event_bus: EventBus,
        metrics: Metrics,
        *,
        max_frames: int,
        wake: Callable[[], None],
        answer: Callable[[str, UUID], None] = lambda tenant, id: None,
    ) -> None:
        self._answer = answer
        self._store, self._event_bus, self._metrics = store, event_bus, metrics
        self._max_frames, self._wake = max_frames, wake
        self._waiting: list[tuple[NewFrame, asyncio.Future[Added]]] = []
        self._thread = ThreadPoolExecutor(1, "group-commit")
        self._running: asyncio.Task[None] | None = None

    def add(self, frame: NewFrame) -> asyncio.Future[Added]:
        """Put ``frame`` into the next commit. The future resolves once the frame is durable, or fails with the
        error of the commit, ``StoreUnavailable`` if the store cannot write.

        Durable: ``Frames.add`` has committed the frame and, if it is to be decoded on arrival, its job. The database
        has synced the commit to its disk (``Database.write``): SQLite with ``synchronous=FULL``, PostgreSQL by default.
        """
        done: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._waiting.append((frame, done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return done

    async def saw(self, tenant: str, source: str) -> None:
        """Record that a source has connected. A store that cannot write is ignored: nothing depends on this record."""
        with contextlib.suppress(StoreUnavailable):
            await run_on(self._thread, self._saw, tenant, source)

    async def close(self) -> None:
        """Commit the frames that wait, then stop."""
        if self._running is not None:
            await self._running
        self._thread.shutdown(wait=True)

    def announce(self, stored: list[NewFrame]) -> None:
        """Publish frames that are now in the store."""
        for frame in stored:
            self._metrics.frame_bytes.observe(len(frame.bitstream))
            self._event_bus.publish(frame.tenant, {"event": "received", "id": str(frame.id)})
            if is_request_id(frame.id):
                self._answer(frame.tenant, frame.id)
        self._wake()

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_frames], self._waiting[self._max_frames :]
            new = [frame for frame, _ in batch]
            started = time.monotonic()
            try:
                added = await run_on(self._thread, self._add, new)
            except Exception as error:
                log.error("%s", error)
                self._metrics.sheds.labels("store").inc(len(batch))
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            self._metrics.commit_seconds.observe(time.monotonic() - started)
            self._metrics.commit_frames.observe(len(batch))
            for (_, done), result in zip(batch, added, strict=True):
                if not done.done():
                    done.set_result(result)
            if stored := [frame for frame, result in zip(new, added, strict=True) if result is Added.STORED]:
                self.announce(stored)

    def _add(self, new: list[NewFrame]) -> list[Added]:
        return self._store.frames.add(new, self._store.clock(), received=self._store.trusted_clock.now())

    def _saw(self, tenant: str, source: str) -> None:
        self._store.frames.saw(tenant, source, self._store.trusted_clock.now())
