"""Who wants to know what has just happened to frames: event streams and long polls. In memory, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

QUEUE_EVENTS = 256


class Subscription:
    """A listener's queue. One that does not keep up loses events and is told so once (``lost``)."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(QUEUE_EVENTS)
        self._lost = False

    def offer(self, event: dict[str, Any] | None) -> None:
        """Add an event, or remember that there was no room."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._lost = True

    async def next(self, timeout: float) -> dict[str, Any] | None:
        """The next event, ``{"event": "lost"}`` after an overflow, or None when ``timeout`` seconds brought none."""
        if self._lost and self._queue.empty():
            self._lost = False
            return {"event": "lost"}
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            return None


class EventBus:
    """Hands each event to the listeners of its tenant. Call from the event loop only."""

    def __init__(self) -> None:
        self._listeners: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def tenants(self) -> set[str]:
        """Those that anybody listens for."""
        return {listener.tenant for listener in self._listeners}

    @contextmanager
    def subscribe(self, tenant: str) -> Iterator[Subscription]:
        """A subscription for as long as the block runs."""
        subscription = Subscription(tenant)
        self._listeners.add(subscription)
        try:
            yield subscription
        finally:
            self._listeners.discard(subscription)

    def publish(self, tenant: str, event: dict[str, Any]) -> None:
        """Tell everybody of that tenant."""
        for listener in self._listeners:
            if listener.tenant == tenant:
                listener.offer(event)

    def wake_all(self) -> None:
        """Let every listener look round now, as when the service stops."""
        for listener in self._listeners:
            listener.offer(None)
