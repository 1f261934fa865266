"""Whether the service takes requests, and whether it must be restarted. The probes and the metric ``ready`` read it.

Not ready: before the end of ``Cloud.start``, from the beginning of ``Cloud.stop``, while the backend reports a problem
(Worker.problem, QueueBackend.problem), and while a test write to the store fails (store/health.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aeic_service.supervisor import Supervisor
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.lifecycle.maintenance import Maintenance
from cloud_decoder.store.health import StoreHealth


class Readiness:
    """``serving`` is false before the service has started and once it stops."""

    def __init__(
        self,
        serving: Callable[[], bool],
        backend: DecodeBackend,
        health: StoreHealth,
        maintenance: Maintenance,
        supervisor: Supervisor,
    ) -> None:
        self._serving, self._backend, self._health = serving, backend, health
        self._maintenance, self._supervisor = maintenance, supervisor

    async def problem(self) -> str:
        """Why no requests are taken; empty while they are. Includes a real write to the store."""
        if not self._serving():
            return "starting, or stopping"
        return self._backend.problem or await asyncio.to_thread(self._health.problem)

    @property
    def failure(self) -> str:
        """Why only a restart of the process helps; empty while it does not need one."""
        return self._backend.failure if self._serving() else ""

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although requests are taken."""
        found = [*self._backend.warnings, *self._maintenance.warnings, self._supervisor.problem]
        return [one for one in found if one]
