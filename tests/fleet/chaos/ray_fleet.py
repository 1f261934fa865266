"""The same fleet with Ray in the supervisor's place: what is killed here, Ray starts again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray

from cloud_decoder.fleet.launcher import FleetController, connect
from cloud_decoder.fleet.settings import FleetSettings
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import Store
from tests.fleet.chaos.fleet import Fleet
from tests.support.roots import ROOT


class RayFleet(Fleet):
    """Members are actors; the controller looks after their number meanwhile."""

    def __init__(self, folder: Path, workers: int, fronts: int, http: int, grpc: int) -> None:
        super().__init__(folder, 0, 0, http, grpc)
        self._ports = (http, grpc)
        self._wanted = FleetSettings(
            fronts=fronts, min_workers=workers, max_workers=workers, worker_cpus=0.5, look_seconds=1.0
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Everything up."""
        await asyncio.to_thread(self.postgres.start)
        Store(self.postgres.url).close()
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
        connect(self._wanted, num_cpus=4, runtime_env=environment, _temp_dir=str(self.folder / "ray"))
        own: dict[str, Any] = {"threads": 1, "entropy_workers": 1, "poll_seconds": 0.1, "data_dir": self.folder}
        self.up = FleetController(Settings(**self.settings | own), self._wanted)
        await self.up.start(*self._ports)
        while sum(one["ready"] for one in await self.up.members()) < self._count:
            await asyncio.sleep(0.2)
        self._tasks.append(asyncio.create_task(self._control()))

    @property
    def _count(self) -> int:
        return len(self.up.fronts) + len(self.up.workers)

    async def stop(self) -> list[int]:
        """Everything down gently."""
        for task in self._tasks:
            task.cancel()
        await self.up.stop()
        ray.shutdown()
        await asyncio.to_thread(self.postgres.stop)
        return []

    def abandon(self) -> None:
        """Ray's processes too."""
        ray.shutdown()
        super().abandon()

    async def trouble(self, rng: random.Random, events: Counter[str], over: asyncio.Event) -> None:
        """Kills only: starting again is Ray's part."""
        while not over.is_set():
            await asyncio.sleep(rng.uniform(1.0, 4.0))
            kind = rng.choice(["worker", "worker", "front", "postgres"])
            if kind == "postgres":
                events[kind] += 1
                await asyncio.to_thread(self.postgres.kill)
                await asyncio.sleep(rng.uniform(0, 1))
                await asyncio.to_thread(self.postgres.start)
                continue
            role = "ingest" if kind == "front" else kind
            alive = [one for one in await self.up.members() if one["role"] == role and one["ready"]]
            if alive:
                events[kind] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(alive)["pid"], signal.SIGKILL)

    async def roll(self, events: Counter[str]) -> list[int]:
        """Each actor drained and followed by a new one; the database restarted."""
        for group in (self.up.workers, self.up.fronts):
            for number in range(len(group)):
                events["worker" if group is self.up.workers else "front"] += 1
                await self.up.replace(group, number)
        events["postgres"] += 1
        await asyncio.to_thread(self.postgres.restart)
        await asyncio.sleep(1.0)
        return []

    async def _control(self) -> None:
        while True:
            await asyncio.sleep(self._wanted.look_seconds)
            started = time.monotonic()
            await self.up.look()
            assert time.monotonic() - started < 120
