"""Who waits for which frame to be delivered, so that its answer is asked for at once and its clients hear of it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from edge_encoder.spool.record import FINAL, Entry


class DeliveryWaiters:
    """Waiters by frame id; used in one asyncio loop. `lookup(id)` tells a frame's present state; once `stopping` is set
    nobody waits any more."""

    def __init__(self, lookup: Callable[[uuid.UUID], Awaitable[Entry | None]], stopping: asyncio.Event) -> None:
        self._lookup = lookup
        self._stopping = stopping
        self._expected: dict[uuid.UUID, int] = {}
        self._waiters: dict[uuid.UUID, list[asyncio.Future[None]]] = {}

    def __contains__(self, ident: object) -> bool:
        return ident in self._expected or ident in self._waiters

    @contextlib.contextmanager
    def expecting(self, ident: uuid.UUID, expected: bool = True) -> Iterator[None]:
        """Within it the frame counts as waited for, though it may not be spooled yet."""
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
        """Waits until the frame is delivered, rejected or dropped, the time is over, or the service stops."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(ident, [])
        waiters.append(future)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            entry = await self._lookup(ident)  # after the waiter stands there, so that no change is missed
            if entry is not None and entry.state not in FINAL:
                either: list[asyncio.Future[Any]] = [future, stopping]
                await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            waiters.remove(future)
            if not waiters:
                self._waiters.pop(ident, None)

    def tell(self, ident: uuid.UUID) -> None:
        """The frame is delivered, rejected or dropped."""
        for future in self._waiters.get(ident, ()):
            if not future.done():
                future.set_result(None)
