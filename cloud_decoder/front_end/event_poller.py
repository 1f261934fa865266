"""Wakes the subscribers of this process at events that other processes have caused.

The processes of a fleet share only the database, so each polls its log of events: once a second, for the tenants that
have subscribers.
"""

from __future__ import annotations

import asyncio
import contextlib

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.store.event_log import Position
from cloud_decoder.store.store import Store

POLL_SECONDS = 1.0
NEWEST = 200
"""Events read for each tenant at once. What comes after them is read at the next poll."""


class EventPoller:
    """Publishes the events of the log to ``event_bus`` while :meth:`run` runs."""

    def __init__(self, store: Store, event_bus: EventBus) -> None:
        self._store, self._event_bus = store, event_bus
        self._read: dict[str, Position] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            with contextlib.suppress(StoreUnavailable):
                await self.poll()

    async def poll(self) -> None:
        """Publish what is new since the last poll. A tenant that was not polled before begins now."""
        tenants = self._event_bus.tenants
        self._read = {tenant: position for tenant, position in self._read.items() if tenant in tenants}
        for tenant in tenants:
            if tenant not in self._read:
                self._read[tenant] = await asyncio.to_thread(self._store.events.newest)
                self._event_bus.publish(tenant, {"event": "changed"})  # what it has missed until now
                continue
            found = await asyncio.to_thread(self._store.events.after, tenant, self._read[tenant], NEWEST)
            for event in found.events:
                name = "request_id" if event.kind == "request" else "id"
                self._event_bus.publish(tenant, {"event": event.kind, name: str(event.id)})
            if found.lost:
                del self._read[tenant]  # it begins again
            elif found.events:
                self._read[tenant] = found.events[-1].position
