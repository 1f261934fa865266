"""Budgets: how much of a resource all requests may hold together, and how much of it one tenant.

A service has one budget for each of its resources: connections (files), bodies that arrive (memory), and pixels that
are decoded or encoded (memory and time).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from aeic_service.errors import Overloaded

MOST_OF_THE_REST = 4
"""One tenant may hold this many times what is free: at most four fifths of a budget while it is alone, and less for
each further tenant. So there is always a part left for those who come later. This is the dynamic threshold of
A. Choudhury and E. Hahne (Dynamic queue length thresholds for shared-memory packet switches, 1998)."""


class Used(Protocol):
    """A budget as metrics show it."""

    @property
    def limit(self) -> int:
        """The total number of units."""
        ...

    @property
    def held(self) -> int:
        """Units that are in use."""
        ...


class Budget:
    """``limit`` units of a resource. Use it from one event loop.

    ``shared``: there are several tenants, and none may hold more than its part.
    """

    def __init__(self, limit: int, *, shared: bool = False) -> None:
        self.limit = limit
        self.held = 0
        self.shared = shared
        self._of: Counter[str] = Counter()

    def fits(self, amount: int, tenant: str = "") -> bool:
        """Whether ``tenant`` may take ``amount`` units now."""
        if self.held + amount > self.limit:
            return False
        if not self.shared or not self._of[tenant]:
            return True
        return self._of[tenant] + amount <= MOST_OF_THE_REST * (self.limit - self.held - amount)

    def take(self, amount: int, tenant: str = "") -> None:
        """Count ``amount`` more units of a tenant, whether they fit or not."""
        self.held += amount
        self._of[tenant] += amount

    def give_back(self, amount: int, tenant: str = "") -> None:
        """Count ``amount`` fewer units."""
        self.held -= amount
        self._of[tenant] -= amount
        if not self._of[tenant]:
            del self._of[tenant]

    @contextlib.contextmanager
    def part(self, amount: int, tenant: str = "", *, refusal: Callable[[], Exception]) -> Iterator[None]:
        """Hold ``amount`` units for as long as the block runs. Raises ``refusal()`` where they do not fit."""
        if not self.fits(amount, tenant):
            raise refusal()
        self.take(amount, tenant)
        try:
            yield
        finally:
            self.give_back(amount, tenant)


@dataclass(eq=False)
class Place:
    """What one caller of a :class:`FairQueue` holds until :meth:`leave`."""

    tenant: str
    amount: int
    seconds_left: float
    """Of the caller's time, after the wait."""
    _queue: FairQueue
    _held: bool = True

    def leave(self) -> None:
        """Return the units. A second call does nothing."""
        if self._held:
            self._held = False
            self._queue.leave(self.tenant, self.amount)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


@dataclass(eq=False)
class _Waiting:
    tenant: str
    amount: int
    start: float
    turn: asyncio.Future[None]


class FairQueue:
    """Callers wait here until ``budget`` has room for their work; tenants take turns by the amount of their work.

    This is start-time fair queueing (P. Goyal, H. Vin and H. Cheng, 1997): each caller gets the virtual time at which
    the earlier work of its tenant would begin, and the least goes first. A tenant with much work waits behind one with
    little, and callers of one tenant go in their order. Work that exceeds the whole budget goes alone. ``callers``
    bounds those who wait or hold a place.
    """

    def __init__(self, budget: Budget, callers: Budget) -> None:
        self.budget, self.callers = budget, callers
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._closed: Exception | None = None

    async def enter(self, tenant: str, amount: int, timeout: float) -> Place:
        """A place for ``amount`` units of work. With a ``timeout`` of 0 it must be free at once;
        ``math.inf`` waits without limit.

        ``Overloaded`` where too many callers wait already, ``TimeoutError`` after ``timeout`` seconds, and what
        :meth:`close` was given.
        """
        if self._closed is not None:
            raise self._closed
        if not self.callers.fits(1, tenant):
            raise Overloaded(f"{self.callers.held} pictures are waiting already: try again later", retry_after=2.0)
        began = time.monotonic()
        self.callers.take(1, tenant)
        waiting = self._append(tenant, amount)
        self._admit()
        try:
            if timeout > 0:
                async with asyncio.timeout(None if timeout == math.inf else timeout):
                    await waiting.turn
            elif not waiting.turn.done():
                raise TimeoutError
        except BaseException:
            if waiting in self._waiting.get(tenant, ()):
                self._give_up(waiting)
            else:
                self.leave(tenant, amount)
            raise
        return Place(tenant, amount, max(0.0, timeout - (time.monotonic() - began)), self)

    def close(self, error: Exception) -> None:
        """Answer all who wait, and all who come later, with ``error``. Those who hold a place keep it."""
        self._closed = error
        for queue in self._waiting.values():
            for waiting in queue:
                if not waiting.turn.done():
                    waiting.turn.set_exception(error)

    def leave(self, tenant: str, amount: int) -> None:
        """Return a place; :meth:`Place.leave` calls it."""
        self.callers.give_back(1, tenant)
        self.budget.give_back(amount, tenant)
        if not self.budget.held and not self._waiting:  # idle: earlier work does not count any more
            self._ends.clear()
            self._now = 0.0
        self._admit()

    def _append(self, tenant: str, amount: int) -> _Waiting:
        start = max(self._now, self._ends.get(tenant, 0.0))
        self._ends[tenant] = start + amount
        waiting = _Waiting(tenant, amount, start, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant, deque()).append(waiting)
        return waiting

    def _give_up(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        self._ends[waiting.tenant] -= waiting.amount
        self.callers.give_back(1, waiting.tenant)
        self._admit()

    def _remove(self, waiting: _Waiting) -> None:
        queue = self._waiting[waiting.tenant]
        queue.remove(waiting)
        if not queue:
            del self._waiting[waiting.tenant]

    def _admit(self) -> None:
        """Give their turn to those whose work fits, in the order of their virtual time."""
        while (head := self._next()) is not None:
            self._remove(head)
            self._now = max(self._now, head.start)
            self.budget.take(head.amount, head.tenant)
            head.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        if self._closed is not None:
            return None
        heads = (queue[0] for queue in self._waiting.values())
        for head in sorted(heads, key=lambda one: one.start):
            if head.turn.done():  # it has given up and is about to leave
                continue
            if not self.budget.held or self.budget.fits(head.amount, head.tenant):
                return head
            if self.budget.held + head.amount > self.budget.limit:
                return None  # nothing overtakes it, or small work would keep large work waiting without end
        return None
