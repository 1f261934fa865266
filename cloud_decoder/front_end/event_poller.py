"""Events for the subscribers of a front end, about frames that workers finish in other processes.

Workers and front ends share only the database, so the front end polls it: once a second, for the newest frames of the
tenants that have subscribers. A frame that was waiting at one poll and is finished at the next is an event.
"""

from __future__ import annotations

import asyncio
import contextlib

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.store.records import FrameState, StoredFrame
from cloud_decoder.store.store import Store

POLL_SECONDS = 1.0
NEWEST = 200
"""Frames read for each tenant. Older ones cause no event; requests for them still see their state."""
EVENTS = {FrameState.DONE: "done", FrameState.FAILED: "failed"}


class EventPoller:
    """Publishes ``done`` and ``failed`` to ``event_bus`` while :meth:`run` runs."""

    def __init__(self, store: Store, event_bus: EventBus) -> None:
        self._store, self._event_bus = store, event_bus
        self._waiting: dict[str, set[int]] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            tenants = self._event_bus.tenants
            self._waiting = {tenant: seqs for tenant, seqs in self._waiting.items() if tenant in tenants}
            for tenant in tenants:
                with contextlib.suppress(StoreUnavailable):
                    page = await asyncio.to_thread(self._store.frames.page, tenant, NEWEST)
                    self.publish_changes(tenant, page.rows)

    def publish_changes(self, tenant: str, rows: list[StoredFrame]) -> None:
        """Publish the differences between ``rows`` and those of the last poll."""
        before = self._waiting.get(tenant, set())
        for row in rows:
            if row.seq in before and (event := EVENTS.get(row.state)):
                self._event_bus.publish(tenant, {"event": event, "id": str(row.id)})
        self._waiting[tenant] = {row.seq for row in rows if row.state in (FrameState.RECEIVED, FrameState.DECODING)}
