"""Runs the tasks of a service that must not end: one that fails is logged, counted and started again after a pause."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable

from aeic_service.backoff import Backoff

log = logging.getLogger("aeic.supervisor")

_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.5, 30.0
_STABLE_SECONDS = 60.0  # a task that ran for this long is restarted after the shortest pause again


@dataclasses.dataclass(slots=True)
class TaskStatus:
    """``state``: running, restarting or ended; ``restarts`` since the start; ``error`` is why the task failed last."""

    name: str
    state: str = "running"
    restarts: int = 0
    error: str = ""


class Supervisor:
    """Used in one asyncio loop. ``on_restart(name)`` is called for each failure."""

    def __init__(self, on_restart: Callable[[str], None]) -> None:
        self.tasks: list[TaskStatus] = []
        self._on_restart = on_restart
        self._stopping = asyncio.Event()

    def start(self, name: str, run: Callable[[], Awaitable[None]], *, may_end: bool = False) -> asyncio.Task[None]:
        """Runs ``run()`` until it is cancelled. Returning counts as a failure, unless it ``may_end``."""
        status = TaskStatus(name)
        self.tasks.append(status)
        return asyncio.create_task(self._run(status, run, may_end), name=name)

    @property
    def problem(self) -> str:
        """The tasks that do not run now and why; empty when all do."""
        dead = [f"{task.name} ({task.error})" for task in self.tasks if task.state == "restarting"]
        return f"restarting after an error: {', '.join(dead)}" if dead else ""

    def stop(self) -> None:
        """From now on nothing is restarted."""
        self._stopping.set()

    async def _run(self, status: TaskStatus, run: Callable[[], Awaitable[None]], may_end: bool) -> None:
        pauses = Backoff(_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS)
        while not self._stopping.is_set():
            status.state, begin = "running", time.monotonic()
            try:
                await run()
                if may_end or self._stopping.is_set():
                    break
                raise RuntimeError("it ended")
            except Exception as error:
                log.exception("%s failed; it is started again", status.name)
                status.state, status.error = "restarting", str(error) or type(error).__name__
                status.restarts += 1
                self._on_restart(status.name)
            if time.monotonic() - begin > _STABLE_SECONDS:
                pauses.reset()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pauses.pause())
        status.state = "ended"
