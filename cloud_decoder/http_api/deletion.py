"""Deletion by clients: the store's mark, the pictures in the cache, the events, and a line in the audit log.

``DELETE /v1/frames/{id}`` and ``DELETE /v1/frames?source=`` call it (routers/deletion.py). When a call returns, the
frames are marked and are gone for every reader, and their pictures have left the cache. If the cache cannot be written,
the pictures leave it with the bitstreams. lifecycle/maintenance.py removes the bitstreams after
AEIC_CLOUD_RETENTION_GRACE_HOURS. It removes those of tenants over their share earlier if AEIC_CLOUD_RETENTION_BYTES is
set and the marked frames have more. While the clock is refused it removes nothing. Until then ``aeic store undelete``
brings the frames back. A removed bitstream is not overwritten: the database uses its pages again.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from aeic_service.errors import UnknownFrame
from cloud_decoder.errors import DeletionForbidden
from cloud_decoder.events import EventBus
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.metrics import Metrics
from cloud_decoder.request_dispatch import RequestDispatch
from cloud_decoder.store.store import Deleted, Store

log = logging.getLogger(__name__)
audit = logging.getLogger("aeic.cloud.audit")

CALLS = 20
"""Transactions of one request; each looks at up to 1,000 frames."""


class Deletion:
    """Deletes frames for clients. ``allowed`` False: every call is refused with ``DeletionForbidden``."""

    def __init__(
        self,
        store: Store,
        cache: PictureCache,
        event_bus: EventBus,
        dispatch: RequestDispatch,
        metrics: Metrics,
        *,
        allowed: bool,
    ) -> None:
        self._store, self._cache, self._event_bus = store, cache, event_bus
        self._dispatch, self._metrics, self._allowed = dispatch, metrics, allowed

    async def frame(self, tenant: str, id: UUID) -> None:
        """Delete one frame and the answers to requests about it. ``UnknownFrame`` if it is not this tenant's."""
        self._check()
        deleted = await asyncio.to_thread(self._store.retention.delete, tenant, id, self._now_ms())
        if deleted is None:
            raise UnknownFrame(f"there is no frame {id} here: it has not arrived, or it belongs to another tenant")
        await self._finish(tenant, deleted, f"frame {id}")

    async def source(
        self, tenant: str, source: str, since_ms: int | None, until_ms: int | None, after: int
    ) -> tuple[int, int | None]:
        """Delete frames of a source that arrived in that time, from the ``seq`` after ``after`` on.

        Returns how many, and the ``seq`` after which the next request goes on; None at the end.
        """
        self._check()
        count, following = 0, after
        for _ in range(CALLS):
            deleted = await asyncio.to_thread(
                self._store.retention.delete_source,
                tenant,
                source,
                self._now_ms(),
                since_ms=since_ms,
                until_ms=until_ms,
                after=following,
            )
            await self._finish(tenant, deleted, f"source {source!r}")
            count += len(deleted.frames)
            if deleted.after is None:
                return count, None
            following = deleted.after
        return count, following

    def _check(self) -> None:
        if not self._allowed:
            raise DeletionForbidden(
                "this cloud does not let clients delete frames: set AEIC_CLOUD_TOKENS, or"
                " AEIC_CLOUD_ALLOW_DELETE=always"
            )

    def _now_ms(self) -> int:
        return int(self._store.trusted_clock.now() * 1000)

    async def _finish(self, tenant: str, deleted: Deleted, what: str) -> None:
        if not deleted.frames:
            return
        audit.info("tenant %r deleted %s: %d frames", tenant, what, len(deleted.frames))
        self._metrics.retention_frames.labels("deleted").inc(len(deleted.frames))
        for request in deleted.requests:
            self._dispatch.ended(request)
        for id, _ in deleted.frames:
            self._event_bus.publish(tenant, {"event": "pruned", "id": str(id)})
        try:
            digests = {digest for _, digest in deleted.frames} | set(deleted.parents)
            await asyncio.to_thread(self._cache.remove, digests)
        except OSError as error:  # they are not served any more, and are removed with the bitstreams
            self._metrics.cache_errors.inc()
            log.warning("pictures of deleted frames stay in the cache for now: %s", error)
