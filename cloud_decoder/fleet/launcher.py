"""``aeic cloud --ray``: front ends behind one address, workers as many as the queue asks for, until SIGTERM.

Started without a cluster it makes one of this machine. The controller holds no state worth keeping: killed and started
again, it finds everything in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray

from cloud_decoder.bootstrap import database_url
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.fleet.actors import start
from cloud_decoder.fleet.autoscale import Autoscaler
from cloud_decoder.fleet.settings import FleetSettings
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import Store

log = logging.getLogger(__name__)


class FleetUp:
    """The members, and the loop that keeps their number right."""

    def __init__(self, settings: Settings, fleet: FleetSettings) -> None:
        if settings.database_url is None or not settings.cache_url:
            raise ValueError("a fleet needs AEIC_CLOUD_DATABASE_URL (PostgreSQL) and AEIC_CLOUD_CACHE_URL")
        self.settings, self.fleet = settings, fleet
        self.store = Store(database_url(settings), settings.aging_seconds)
        self.scaler = Autoscaler(
            fleet.min_workers,
            fleet.max_workers,
            fleet.drain_target_seconds,
            fleet.max_age_seconds,
            fleet.idle_seconds,
        )
        self.fronts: list[Any] = []
        self.workers: list[Any] = []
        self._leaving: list[Any] = []

    async def start(self, http: int, grpc: int) -> None:
        """All front ends on these ports, and the least number of workers."""
        shared = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc}
        self._front = self.settings.model_copy(update=shared)
        self._worker = self.settings.model_copy(update={"role": "worker", "port": 0})
        self.fronts = [self._new_front() for _ in range(self.fleet.fronts)]
        self.workers = [self._new_worker() for _ in range(self.fleet.min_workers)]
        for actor in self.fronts:
            await _until(actor, ready=True)

    async def replace(self, group: list[Any], number: int) -> None:
        """A rolling restart's step: a new member is up before the old one is drained."""
        old = group[number]
        group[number] = self._new_front() if group is self.fronts else self._new_worker()
        await _until(group[number], ready=True)
        old.stop.remote()
        await _until(old, ready=False)
        ray.kill(old)

    async def members(self) -> list[dict[str, Any]]:
        """What each member tells of itself; one that is just being restarted is left out."""
        told = []
        for actor in (*self.fronts, *self.workers):
            with contextlib.suppress(Exception):
                told.append(await asyncio.wait_for(actor.told.remote(), 2.0))
        return told

    async def look(self) -> None:
        """Once: the right number of workers."""
        try:
            backlog = await asyncio.to_thread(lambda: self.store.waiting(self.store.clock()))
            arrived = await asyncio.to_thread(self.store.arrived)
        except StoreUnavailable as error:
            log.warning("%s", error)
            return
        done = arrived - backlog.ready - backlog.leased  # but for those in quarantine: only its growth is looked at
        wanted = self.scaler.want(backlog, len(self.workers), done, time.monotonic())
        if wanted != len(self.workers):
            log.info("%d waiting, oldest %.1f s: %d workers", backlog.ready, backlog.oldest_seconds, wanted)
        while len(self.workers) < wanted:
            self.workers.append(self._new_worker())
        while len(self.workers) > wanted:
            actor = self.workers.pop()
            actor.stop.remote()
            self._leaving.append(actor)
        for actor in list(self._leaving):  # drained ones give their place in the cluster back
            if not await _ready(actor):
                ray.kill(actor)
                self._leaving.remove(actor)

    async def stop(self) -> None:
        """Front ends first, then the workers; each drains."""
        for group in (self.fronts, self.workers):
            for actor in group:
                actor.stop.remote()
            for actor in group:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(_until(actor, ready=False), self.settings.drain_seconds + 5)
        self.store.close()

    def _new_front(self) -> Any:
        return start(self._front, cpus=0.1, gpus=0)

    def _new_worker(self) -> Any:
        return start(self._worker, cpus=self.fleet.worker_cpus, gpus=self.fleet.worker_gpus)


async def _ready(actor: Any) -> bool:
    try:
        return bool((await asyncio.wait_for(actor.told.remote(), 2.0))["ready"])
    except Exception:
        return False


async def _until(actor: Any, *, ready: bool) -> None:
    while (await actor.told.remote())["ready"] is not ready:
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def shared_port(host: str, port: int) -> Iterator[int]:
    """The number that all front ends of this machine bind; 0 takes a free one and keeps it from others."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))  # bound, but not listening: no connection ever comes here
        yield int(holder.getsockname()[1])


async def run(settings: Settings, fleet: FleetSettings) -> None:
    """Until SIGTERM or SIGINT. One line of JSON once everything is ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with shared_port(settings.host, settings.port) as http, shared_port(settings.host, settings.grpc_port) as grpc:
        up = FleetUp(settings, fleet)
        await up.start(http, grpc)
        addresses = {"http": f"http://{settings.host}:{http}", "grpc": f"{settings.host}:{grpc}"}
        print(json.dumps({"service": "fleet", **addresses}), flush=True)
        while not stop.is_set():
            await up.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), fleet.look_seconds)
        log.info("draining")
        await up.stop()


def main(settings: Settings) -> int:
    """:func:`run` in the cluster that AEIC_FLEET_ADDRESS names, or in one of this machine."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    fleet = FleetSettings()  # type: ignore[call-arg]  # from the environment
    try:
        connect(fleet)
        asyncio.run(run(settings, fleet))
    except (OSError, ValueError, StoreUnavailable) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    return 0


def connect(fleet: FleetSettings, **options: Any) -> None:
    """Ray, without its dashboard; its own cluster on loopback where none is named."""
    quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
    if fleet.address:
        ray.init(fleet.address, namespace="aeic", configure_logging=False)
    else:
        store_bytes = {"object_store_memory": 80 * 2**20}  # frames do not travel through it
        ray.init(namespace="aeic", **quiet | store_bytes | options)
