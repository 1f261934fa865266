"""What has just happened to frames and requests, for those who wait in this process: long polls and event streams.

In memory, in one event loop. Nothing depends on it for more than speed: what clients read is the log of events in the
store (:mod:`cloud_decoder.store.event_log`) and the state of frames.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

QUEUE_EVENTS = 256


class Subscription:
    """The queue of one subscriber. One that does not keep up loses events and gets one ``lost`` event."""

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

    async def about(self, id: UUID, timeout: float) -> None:
        """Return at an event of the frame or request ``id``, at one that names neither, when the bus wakes every
        subscriber, or after ``timeout`` seconds. Events of others are passed over."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            event = await self.next(left)
            if event is None or (event.get("id") or event.get("request_id")) in (None, str(id)):
                return

    def forget(self) -> bool:
        """Drop the events that wait. Whether there were any."""
        had = self._lost or not self._queue.empty()
        self._lost = False
        while not self._queue.empty():
            self._queue.get_nowait()
        return had


class EventBus:
    """Delivers each event to the subscribers of its tenant. Call from the event loop only."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscribers)

    @property
    def tenants(self) -> set[str]:
        """The tenants that have subscribers."""
        return {subscriber.tenant for subscriber in self._subscribers}

    @contextmanager
    def subscribe(self, tenant: str) -> Iterator[Subscription]:
        """A subscription for as long as the block runs."""
        subscription = Subscription(tenant)
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)

    def publish(self, tenant: str, event: dict[str, Any]) -> None:
        """Deliver an event to all subscribers of a tenant."""
        for subscriber in self._subscribers:
            if subscriber.tenant == tenant:
                subscriber.offer(event)

    def wake_all(self) -> None:
        """Wake every subscriber without an event, as when the service stops."""
        for subscriber in self._subscribers:
            subscriber.offer(None)
