"""What other processes did: a front end tells its listeners what the workers finished.

Workers and front ends share nothing but the database, so somebody has to look: once a second, at the newest frames of
the tenants that anybody listens for, and not at all while nobody does. A frame that was seen waiting and is not any
more is news.
"""

from __future__ import annotations

import asyncio
import contextlib

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.store.records import State, StoredFrame
from cloud_decoder.store.store import Store

LOOK_SECONDS = 1.0
NEWEST = 200
"""Frames looked at for each tenant; older ones are told by their state, to whoever asks."""
ENDS = {State.DONE: "done", State.FAILED: "failed"}


class EventPoller:
    """Publishes ``done`` and ``failed`` to ``event_bus``. ``await run()`` for as long as the front end lives."""

    def __init__(self, store: Store, event_bus: EventBus) -> None:
        self._store, self._event_bus = store, event_bus
        self._waiting: dict[str, set[int]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            tenants = self._event_bus.tenants
            self._waiting = {tenant: seqs for tenant, seqs in self._waiting.items() if tenant in tenants}
            for tenant in tenants:
                with contextlib.suppress(StoreUnavailable):
                    self.tell(tenant, await asyncio.to_thread(self._store.page, tenant, NEWEST))

    def tell(self, tenant: str, rows: list[StoredFrame]) -> None:
        """Compare with the last look."""
        before = self._waiting.get(tenant, set())
        for row in rows:
            if row.seq in before and (event := ENDS.get(row.state)):
                self._event_bus.publish(tenant, {"event": event, "id": str(row.id)})
        self._waiting[tenant] = {row.seq for row in rows if row.state in (State.RECEIVED, State.DECODING)}
