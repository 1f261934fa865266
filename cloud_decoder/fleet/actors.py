"""A member of the fleet as a Ray actor: a :class:`~cloud_decoder.service.Cloud` in a process that Ray restarts.

Ray restarts an actor that dies and calls :meth:`Member.serve` again; the store has its leases. Frames do not pass
through Ray: the actor claims them from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import ray

from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings

START_SECONDS = 0.5
LOOK_SECONDS = 1.0
"""How often a member looks whether only another process helps."""


class Member:
    """One front end or worker. ``serve`` ends when ``stop`` was called."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._cloud: Cloud | None = None

    async def serve(self) -> None:
        """Run until :meth:`stop`. At the start, wait for a database that is out of reach."""
        while not self._stop.is_set():
            try:
                cloud = Cloud(self._settings)
                await cloud.start()
                break
            except OSError:
                raise
            except Exception as error:
                print(f"{self._settings.role}: {error}; trying again", flush=True)
                await asyncio.sleep(START_SECONDS)
        else:
            return
        self._cloud = cloud
        while not self._stop.is_set():
            if failure := cloud.readiness.failure:
                print(f"{self._settings.role}: {failure}; this process ends, and Ray starts another", flush=True)
                os._exit(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), LOOK_SECONDS)
        await cloud.stop()
        self._cloud = None

    async def stop(self) -> None:
        """Drain: finish the work in progress and return the rest to the queue."""
        self._stop.set()

    async def status(self) -> dict[str, Any]:
        """Its process id, role and addresses; ``ready`` while it takes requests, else ``problem`` says why not."""
        cloud = self._cloud
        addresses = {"http": cloud.http, "grpc": cloud.grpc} if cloud else {}
        problem = await cloud.readiness.problem() if cloud else "starting, or stopped"
        state = {"ready": not problem, "problem": problem, "serving": cloud is not None}
        return {"pid": os.getpid(), "role": self._settings.role, **state, **addresses}


def start(settings: Settings, *, cpus: float, gpus: float) -> Any:
    """Start a member in the cluster, which Ray restarts whenever it dies."""
    actor: Any = ray.remote(Member)
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 16}
    member = actor.options(**options, max_restarts=-1, max_task_retries=-1).remote(settings)
    member.serve.remote()
    return member
