"""Limits concurrent gRPC calls: a share for each tenant, and a few for callers that are not authenticated yet.

grpcio can only limit all calls together, so that calls without a token would take the places of edges. Here a call is
first a newcomer. It stops being one when its token has been checked (:meth:`Calls.admitted`); from then on it counts
against its tenant's share of ``limit``. There is room for some newcomers: one more ends the oldest, which had the most
time to send its token. Health checks and reflection need no token. They have a separate limit under the same rule.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc

from aeic_service.budgets import Budget
from aeic_service.errors import Overloaded
from cloud_decoder.metrics import Metrics

NEWCOMERS = 256
PROBES = 64
_PROBING = ("/grpc.health.", "/grpc.reflection.")

Task = asyncio.Task[Any]


class Calls(grpc.aio.ServerInterceptor):
    """``limit`` calls of all tenants. ``shared``: there are several, and none may hold more than its part."""

    def __init__(self, limit: int, metrics: Metrics, *, shared: bool) -> None:
        self.budget = Budget(limit, shared=shared)
        self._sheds = metrics.sheds.labels("calls")
        self._newcomers = _Latest(NEWCOMERS)
        self._probes = _Latest(PROBES)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The task that runs this also runs the call: to cancel it ends the call."""
        task = asyncio.current_task()
        assert task is not None
        group = self._probes if handler_call_details.method.startswith(_PROBING) else self._newcomers
        if group.add(task):
            self._sheds.inc()
        return await continuation(handler_call_details)

    @contextlib.contextmanager
    def admitted(self, tenant: str) -> Iterator[None]:
        """Count the call that runs here with a tenant. ``Overloaded`` if the tenant's share is used up."""
        task = asyncio.current_task()
        assert task is not None
        self._newcomers.discard(task)
        with self.budget.part(1, tenant, refusal=self._refusal):
            yield

    def _refusal(self) -> Exception:
        self._sheds.inc()
        return Overloaded(
            f"{self.budget.held} calls are open: close some, or raise AEIC_CLOUD_MAX_STREAMS", retry_after=5.0
        )


class _Latest:
    """The latest ``limit`` of the running tasks that were added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: dict[Task, None] = {}

    def add(self, task: Task) -> bool:
        """Add a task, and cancel the oldest if there are too many. Returns whether one was cancelled."""
        task.add_done_callback(self.discard)
        self._tasks[task] = None
        if len(self._tasks) <= self._limit:
            return False
        oldest = next(iter(self._tasks))
        del self._tasks[oldest]
        return oldest.cancel()

    def discard(self, task: Task) -> None:
        """Forget a task."""
        self._tasks.pop(task, None)
