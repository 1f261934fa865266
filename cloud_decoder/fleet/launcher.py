"""``aeic cloud --ray``: front ends behind one address, and as many workers as the queue needs, until SIGTERM.

Without a cluster it starts one on this machine. The controller keeps no state: after a restart it finds everything in
the database.
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

from aeic.errors import AeicError
from aeic_service import logs
from aeic_service.settings import readable
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.fleet.actors import start
from cloud_decoder.fleet.autoscale import Autoscaler
from cloud_decoder.fleet.settings import FleetSettings
from cloud_decoder.lifecycle.bootstrap import database_url
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import Store

log = logging.getLogger(__name__)


class FleetController:
    """The members of the fleet. :meth:`look` adapts the number of workers."""

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
        """Start all front ends on these ports, and the minimum of workers."""
        shared = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc}
        self._front = self.settings.model_copy(update=shared)
        self._worker = self.settings.model_copy(update={"role": "worker", "port": 0})
        self.fronts = [self._new_front() for _ in range(self.fleet.fronts)]
        self.workers = [self._new_worker() for _ in range(self.fleet.min_workers)]
        for actor in self.fronts:
            await _until(actor, ready=True)

    async def replace(self, group: list[Any], number: int) -> None:
        """Replace one member, as a step of a rolling restart: the new one is ready before the old one drains."""
        old = group[number]
        group[number] = self._new_front() if group is self.fronts else self._new_worker()
        await _until(group[number], ready=True)
        old.stop.remote()
        await _until(old, ready=False)
        ray.kill(old)

    async def members(self) -> list[dict[str, Any]]:
        """The status of each member. One that is being restarted is left out."""
        found = []
        for actor in (*self.fronts, *self.workers):
            with contextlib.suppress(Exception):
                found.append(await asyncio.wait_for(actor.status.remote(), 8.0))
        return found

    async def look(self) -> None:
        """Start or stop workers so that their number fits the queue."""
        try:
            backlog = await asyncio.to_thread(lambda: self.store.queue.waiting(self.store.clock()))
            arrived = await asyncio.to_thread(self.store.frames.arrived)
        except StoreUnavailable as error:
            log.warning("%s", error)
            return
        done = arrived - backlog.ready - backlog.leased  # counts those in quarantine too; only the growth is used
        wanted = self.scaler.want(backlog, len(self.workers), done, time.monotonic())
        if wanted != len(self.workers):
            log.info("%d waiting, oldest %.1f s: %d workers", backlog.ready, backlog.oldest_seconds, wanted)
        while len(self.workers) < wanted:
            self.workers.append(self._new_worker())
        while len(self.workers) > wanted:
            actor = self.workers.pop()
            actor.stop.remote()
            self._leaving.append(actor)
        for actor in list(self._leaving):  # drained ones release their resources in the cluster
            if not await _serves(actor):
                ray.kill(actor)
                self._leaving.remove(actor)

    async def stop(self) -> None:
        """Drain the front ends, then the workers."""
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


async def _serves(actor: Any) -> bool:
    try:
        return bool((await asyncio.wait_for(actor.status.remote(), 8.0))["serving"])
    except Exception:
        return False


async def _until(actor: Any, *, ready: bool) -> None:
    """Wait until a member takes requests, or has stopped. One that is only unwell has not stopped."""
    while (await actor.status.remote())["ready" if ready else "serving"] is not ready:
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def shared_port(host: str, port: int) -> Iterator[int]:
    """The port that all front ends of this machine listen on; 0 reserves a free one."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))  # bound but not listening, so that it gets no connections
        yield int(holder.getsockname()[1])


async def run(settings: Settings, fleet: FleetSettings) -> None:
    """Run until SIGTERM or SIGINT. Print one line of JSON once everything is ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with shared_port(settings.host, settings.port) as http, shared_port(settings.host, settings.grpc_port) as grpc:
        members = FleetController(settings, fleet)
        await members.start(http, grpc)
        addresses = {"http": f"http://{settings.host}:{http}", "grpc": f"{settings.host}:{grpc}"}
        print(json.dumps({"service": "fleet", **addresses}), flush=True)
        while not stop.is_set():
            await members.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), fleet.look_seconds)
        log.info("draining")
        await members.stop()


def main(settings: Settings) -> int:
    """Call :func:`run` in the cluster that AEIC_FLEET_ADDRESS names, or in one on this machine. The exit status is that
    of :func:`cloud_decoder.service.main`."""
    logs.set_up(settings.log_level, settings.log_format)
    try:
        fleet = FleetSettings()  # from the environment
        connect(fleet)
        asyncio.run(run(settings, fleet))
    except AeicError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"fleet: invalid settings: {readable(error, 'AEIC_FLEET_')}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    return 0


def connect(fleet: FleetSettings, **options: Any) -> None:
    """Connect to the named cluster, or start one on loopback, without the dashboard."""
    quiet = {"include_dashboard": False, "configure_logging": False, "log_to_driver": False}
    if fleet.address:
        ray.init(fleet.address, namespace="aeic", configure_logging=False)
    else:
        store_bytes = {"object_store_memory": 80 * 2**20}  # frames do not pass through it
        ray.init(namespace="aeic", **quiet | store_bytes | options)
