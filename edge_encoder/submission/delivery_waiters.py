"""Clients that wait for the delivery of a frame (`?wait=delivered`).

The uplink asks the cloud for a prompt acknowledgement of these frames. http_api/routes.py waits in `settled`, and
EdgeService calls `notify` after the spool has committed the final state (service.py, `_changed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from edge_encoder.spool.record import FINAL, Entry


class DeliveryWaiters:
    """Waiters by frame id; used in one asyncio loop. `lookup(id)` returns a frame's present state; all waits end once
    `stopping` is set."""

    def __init__(self, lookup: Callable[[uuid.UUID], Awaitable[Entry | None]], stopping: asyncio.Event) -> None:
        self._lookup = lookup
        self._stopping = stopping
        self._expected: dict[uuid.UUID, int] = {}
        self._waiters: dict[uuid.UUID, list[asyncio.Future[None]]] = {}

    def __contains__(self, ident: object) -> bool:
        return ident in self._expected or ident in self._waiters

    @contextlib.contextmanager
    def expecting(self, ident: uuid.UUID, expected: bool = True) -> Iterator[None]:
        """Within the context the frame counts as waited for, even before it is spooled."""
        if not expected:
            yield
            return
        self._expected[ident] = self._expected.get(ident, 0) + 1
        try:
            yield
        finally:
            self._expected[ident] -= 1
            if not self._expected[ident]:
                del self._expected[ident]

    async def settled(self, ident: uuid.UUID, seconds: float) -> None:
        """Waits until the frame has a final state, `seconds` have passed, or the service stops."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(ident, [])
        waiters.append(future)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            entry = await self._lookup(ident)  # after the waiter is registered, so that no change is missed
            if entry is not None and entry.state not in FINAL:
                either: list[asyncio.Future[Any]] = [future, stopping]
                await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            waiters.remove(future)
            if not waiters:
                self._waiters.pop(ident, None)

    def notify(self, ident: uuid.UUID) -> None:
        """The frame has reached a final state: ends its waits."""
        for future in self._waiters.get(ident, ()):
            if not future.done():
                future.set_result(None)
