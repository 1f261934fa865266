"""What the service does for its store once a minute: the clock, retention, the log of events, the cache, a daily check.

A step that fails is counted, logged and shown in ``/v1/status`` and ``/readyz``, and tried again at the next round. No
step keeps the others from running.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from cloud_decoder.images.cache import PictureCache
from cloud_decoder.metrics import Metrics
from cloud_decoder.settings import RetentionPolicy
from cloud_decoder.store.backup import PageCheck
from cloud_decoder.store.clock import DAY
from cloud_decoder.store.store import DeletedBy, Store

log = logging.getLogger(__name__)

ROUND_SECONDS = 60.0
REQUESTS_KEPT_SECONDS = 30 * DAY
"""How long requests stay that have ended. Until then a late answer is linked to its frame."""
CHECK_SECONDS = DAY
"""How often all pages of an SQLite store are read and checked; also at each start."""


@dataclass(frozen=True)
class MaintenanceSettings:
    """0 switches a limit off. Of ``policies``, the first that matches a source counts; its age replaces
    ``retention_seconds``."""

    retention_seconds: float = 0.0
    retention_bytes: int = 0
    policies: tuple[RetentionPolicy, ...] = ()
    grace_seconds: float = DAY
    events_kept: int = 1_000_000
    trims_cache: bool = True


class Maintenance:
    """``run`` until cancelled; ``close`` ends a check that is in progress."""

    def __init__(self, store: Store, cache: PictureCache, metrics: Metrics, settings: MaintenanceSettings) -> None:
        self._store, self._cache, self._metrics, self._settings = store, cache, metrics, settings
        self._failures: dict[str, str] = {}
        self._page_check = PageCheck(store.database.path) if store.database.path else None
        self._checked: float | None = None

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although the service works."""
        found = (self._store.log_problem, self._store.trusted_clock.problem)
        return [*filter(None, found), *self._failures.values()]

    async def run(self) -> None:
        """One round every :data:`ROUND_SECONDS`."""
        while True:
            await self.round()
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """All steps once."""
        if self._settings.trims_cache:
            await self._step("cache", lambda: asyncio.to_thread(self._cache.trim))
        await self._step("clock", self._look_at_clock)
        await self._step("retention", self._retain)
        await self._step("events", self._trim_events)
        if self._page_check and (self._checked is None or time.monotonic() - self._checked >= CHECK_SECONDS):
            await self._step("check", self._check)

    def close(self) -> None:
        """Interrupt the check of the pages."""
        if self._page_check:
            self._page_check.interrupt()

    async def _step(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
            self._failures.pop(name, None)
        except Exception as error:
            self._metrics.maintenance_errors.labels(name).inc()
            if name not in self._failures:
                log.error("maintenance step %s failed", name, exc_info=error)
            self._failures[name] = f"maintenance step {name} failed ({type(error).__name__}: {error})"[:300]

    async def _look_at_clock(self) -> None:
        try:
            await asyncio.to_thread(self._store.trusted_clock.look)
        finally:
            self._metrics.clock_refused.set(bool(self._store.trusted_clock.problem))

    async def _retain(self) -> None:
        """Mark what is over the limits, and remove what was marked before the grace period, until nothing is left.

        A frame that a client has deleted is marked already, by ``Retention.delete``; the others are marked here. Marked
        frames may take as many bytes again as ``retention_bytes``. Beyond that, the oldest of the tenants with more
        than their share are removed at once. Without any limit, only the frames that clients have deleted are removed,
        and requests that ended long ago. Does nothing while the clock is refused (store/clock.py).
        """
        settings, retention = self._settings, self._store.retention
        if self._store.trusted_clock.problem:
            return
        now_ms = int(self._store.trusted_clock.now() * 1000)
        while await asyncio.to_thread(self._store.requests.remove, now_ms - int(REQUESTS_KEPT_SECONDS * 1000)):
            pass
        older = None if settings.policies else self._older_than(settings.retention_seconds, now_ms)
        keep = settings.retention_bytes or None
        if settings.policies:
            await self._retain_by_policy(now_ms)
        if older is not None or keep is not None:
            await self._mark(retention.mark, now_ms, older_than_ms=older, keep_bytes=keep)
        limited = older is not None or keep is not None or settings.policies
        before = now_ms - int(settings.grace_seconds * 1000) + 1
        _, marked = await asyncio.to_thread(retention.marked)
        excess = max(0, marked - keep) if keep else 0
        while True:
            only = None if limited else DeletedBy.CLIENT
            removed = await asyncio.to_thread(retention.remove, before_ms=before, excess_bytes=excess, only=only)
            if not removed.frames:
                break
            if removed.erased:  # a decoder may have written them after the deletion
                await asyncio.to_thread(self._cache.remove, removed.erased)
            self._metrics.retention_frames.labels("removed").inc(removed.frames)
            excess, marked = max(0, excess - removed.bytes), marked - removed.bytes
        self._metrics.deleted_bytes.set(max(0, marked))

    async def _retain_by_policy(self, now_ms: int) -> None:
        """Mark the frames of each source that are over the limits of its policy, or over the general age."""
        settings, retention = self._settings, self._store.retention
        for tenant, source in await asyncio.to_thread(retention.sources):
            found = next((one for one in settings.policies if one.matches(tenant, source)), None)
            days = None if found is None else found.days
            seconds = settings.retention_seconds if days is None else days * DAY
            older, keep = self._older_than(seconds, now_ms), (found.bytes if found else None) or None
            if older is not None or keep is not None:
                mark = partial(retention.mark_source, tenant, source)
                await self._mark(mark, now_ms, older_than_ms=older, keep_bytes=keep)

    async def _mark(self, mark: Callable[..., int], now_ms: int, **limits: int | None) -> None:
        while count := await asyncio.to_thread(mark, now_ms, **limits):
            self._metrics.retention_frames.labels("marked").inc(count)

    def _older_than(self, seconds: float, now_ms: int) -> int | None:
        return now_ms - int(seconds * 1000) if seconds else None

    async def _trim_events(self) -> None:
        while await asyncio.to_thread(self._store.events.trim, self._settings.events_kept):
            pass

    async def _check(self) -> None:
        assert self._page_check is not None, "only SQLite has pages that can be checked"
        found = await asyncio.to_thread(self._page_check.run)
        self._checked = time.monotonic()
        if found:
            log.critical("the store is damaged: %s", "; ".join(found))
            self._metrics.maintenance_errors.labels("check").inc()
        self._store.database.damage = "; ".join(found)[:300]
