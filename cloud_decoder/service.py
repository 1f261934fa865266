"""The running cloud: one process, one event loop, gRPC and HTTP side by side; decoding on threads.

At start: store, bundle, warm-up, then ready. At SIGTERM: not ready; streams end after their last acknowledgement; the
batch on the device is finished and the rest returned to the queue; every caller is answered; exit status 0.
``Cloud.start`` and ``Cloud.stop`` have these orders; grpc_api/ingest.py ends the streams, worker/worker.py the
decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter

import aeic
from aeic.bundle import Bundle
from aeic.errors import AeicError
from aeic_service import host_limits, logs, malloc, tracing
from aeic_service.budgets import Budget, Used
from aeic_service.certificates import Certificates
from aeic_service.host_limits import HostLimits
from aeic_service.http.request_body import BodyLimits
from aeic_service.http.server import HttpServer, ServerSettings
from aeic_service.supervisor import Supervisor
from cloud_decoder.admission import BYTES_A_PIXEL, Admission
from cloud_decoder.auth import Tokens
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.events import EventBus
from cloud_decoder.front_end.event_poller import EventPoller
from cloud_decoder.front_end.queue_backend import QueueBackend
from cloud_decoder.grpc_api.calls import Calls
from cloud_decoder.grpc_api.decode import Gate
from cloud_decoder.grpc_api.group_commit import GroupCommit
from cloud_decoder.grpc_api.ingest import Destinations, Ingest, IngestSettings
from cloud_decoder.grpc_api.originals import OriginalAssembler
from cloud_decoder.grpc_api.server import GrpcServer
from cloud_decoder.http_api.app import build_app
from cloud_decoder.http_api.deletion import Deletion
from cloud_decoder.http_api.edge_proxy import EdgeProxy
from cloud_decoder.http_api.image_service import Capacity, ImageService
from cloud_decoder.http_api.routers import decode, deletion, edge, events, frames, page, requests, status
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.devices import choose_devices
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.lifecycle import bootstrap
from cloud_decoder.lifecycle.maintenance import Maintenance, MaintenanceSettings
from cloud_decoder.lifecycle.readiness import Readiness
from cloud_decoder.metrics import Metrics
from cloud_decoder.presence import Presence
from cloud_decoder.request_dispatch import RequestDispatch
from cloud_decoder.settings import Settings
from cloud_decoder.store.clock import DAY
from cloud_decoder.store.health import StoreHealth
from cloud_decoder.store.store import Store
from cloud_decoder.worker.worker import Worker, WorkerSettings

log = logging.getLogger(__name__)

BODIES_SHARE = 8
"""Bodies that arrive take at most this part of the memory."""


class Cloud:
    """``await start()``, then ``http`` and ``grpc`` hold the addresses; ``await stop()``."""

    def __init__(self, settings: Settings, decoder: Decoder | None = None) -> None:
        """``decoder`` replaces the one that the settings describe."""
        if settings.tracing:
            tracing.set_up("aeic-cloud")
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.host = HostLimits.read()
        self.model_pool = ModelPool.of(decoder) if decoder else _model_pool(settings)
        self.metrics, self.event_bus, self.presence = Metrics(), EventBus(), Presence()
        self.supervisor = Supervisor(lambda name: self.metrics.task_restarts.labels(name).inc())
        self.tokens = Tokens(settings.tokens.get_secret_value())
        self._folder = bootstrap.own_folder(settings)
        self.store = Store(bootstrap.database_url(settings), settings.aging_seconds, settings.max_clock_jump_days * DAY)
        self.http = ""
        self.grpc = ""
        self._serving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc_server: GrpcServer | None = None

    async def start(self) -> None:
        """Start everything and become ready, or raise an error that names what is missing."""
        settings = self.settings
        self._cache = bootstrap.cache_of(settings)
        self.metrics.cache_limit_bytes.set(settings.cache_bytes)
        self.backend = self._backend()
        shared = self.tokens.tenants > 1
        self.admission = Admission(self._pixels_at_once(), settings.max_queue, self.metrics, shared=shared)
        self.calls = Calls(settings.max_streams, self.metrics, shared=shared)
        most = self.host.memory_bytes // BODIES_SHARE
        self.bodies = Budget(min(settings.uploads_max_bytes, most), shared=shared)
        self.waiters = Budget(settings.max_waiters, shared=shared)
        capacity = Capacity(self.admission, self.waiters)
        self.image_service = ImageService(self.store, self._cache, self.backend, capacity, self.event_bus, self.metrics)
        self.dispatch = RequestDispatch(self.store, self.event_bus, self.metrics)
        self.commits = GroupCommit(
            self.store,
            self.event_bus,
            self.metrics,
            max_frames=settings.commit_frames,
            wake=self.backend.wake,
            answer=self.dispatch.answered,
        )
        originals = OriginalAssembler(
            self.store,
            self.commits,
            self.dispatch,
            max_bytes=settings.request_original_bytes,
            max_pixels=settings.max_pixels,
            shared=shared,
        )
        self.ingest = Ingest(
            Destinations(self.commits, originals, self.dispatch),
            self.presence,
            self.tokens,
            self.calls,
            self.metrics,
            self._ingest_settings(),
        )
        self._edge_proxy = EdgeProxy(settings.edge_url, settings.edge_tenant)
        self.maintenance = Maintenance(self.store, self._cache, self.metrics, self._maintenance_settings())
        health = StoreHealth(self.store.database)
        self.readiness = Readiness(lambda: self._serving, self.backend, health, self.maintenance, self.supervisor)
        await asyncio.to_thread(self.store.trusted_clock.look)  # before the first frame is stored
        await self.backend.start()
        self.metrics.info.labels(
            aeic.__version__, self.model_pool.default.fingerprint, self.backend.device, self.backend.runtime
        ).set(1)
        if settings.role != "worker":
            gate = Gate(self.tokens, self.calls, self.admission)
            self._grpc_server = GrpcServer(settings, self.ingest, self.backend, gate)
            self.grpc = await self._grpc_server.start()
        self._http_server = HttpServer(
            build_app(settings, self.tokens, self.metrics, self._routers()), _server_settings(settings)
        )
        try:
            self.http = await self._http_server.start()
        except OSError:
            if self._grpc_server is not None:  # it must not outlive the event loop
                await self._grpc_server.stop()
            raise
        self._serving = True
        start = self.supervisor.start
        self._tasks = [start("maintenance", self.maintenance.run), start("requests", self.dispatch.run)]
        if settings.role == "ingest" or self._shares_queue:
            self._tasks.append(start("events", EventPoller(self.store, self.event_bus).run))
        if settings.role != "ingest" and self._shares_queue:
            self._tasks.append(start("queue", self._poll_queue))

    async def stop(self) -> None:
        """Drain: no accepted frame is lost, and every caller is answered."""
        self._serving = False
        if self._grpc_server is not None:
            await self._grpc_server.report_stopping()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                self.admission.close()
                await self.ingest.drain()
                await self.backend.stop()
        self.event_bus.wake_all()
        self.supervisor.stop()
        servers = (self._http_server, self._grpc_server)
        await asyncio.gather(*(server.stop() for server in servers if server is not None))
        for task in self._tasks:
            task.cancel()
        self.maintenance.close()
        self._edge_proxy.close()
        self.image_service.close()
        self.model_pool.close()
        self.store.close()
        self._folder.close()

    @property
    def _shares_queue(self) -> bool:
        """Whether other workers may claim from the same queue."""
        return self.settings.role == "worker" or not self.store.database.sqlite

    def _backend(self) -> DecodeBackend:
        settings = self.settings
        if settings.role == "ingest":
            limits = {"max_queue": settings.max_queue, "max_pixels": settings.max_pixels}
            return QueueBackend(self.model_pool, self.store, self._cache, self.metrics, **limits)
        max_leased = None
        if self._shares_queue:
            max_leased = settings.claim_frames or max(8, 4 * self.model_pool.first().max_batch)
        worker_settings = WorkerSettings(
            owner=bootstrap.owner_of(settings),
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_leased=max_leased,
            max_queue=settings.max_queue,
            max_pixels=settings.max_pixels,
            max_pixels_at_once=self._pixels_at_once(),
            aging_seconds=settings.aging_seconds,
        )
        return Worker(self.model_pool, self.store, self._cache, self.metrics, self.event_bus, worker_settings)

    def _pixels_at_once(self) -> int:
        """The limit of the settings, or what fits into half of the memory."""
        return self.settings.max_pixels_at_once or self.host.memory_bytes // 2 // BYTES_A_PIXEL

    def _sources_in_metrics(self) -> int:
        """Anyone may read the metrics: with tokens, they name tenants and sources only if the settings say so."""
        asked = "metrics_sources" in self.settings.model_fields_set
        return self.settings.metrics_sources if asked or not self.tokens.required else 0

    def _ingest_settings(self) -> IngestSettings:
        settings, bundles = self.settings, self.model_pool.bundles.values()
        return IngestSettings(
            window=settings.ingest_window,
            max_bitstream_bytes=settings.max_bitstream_bytes,
            bundle_name=" or ".join(f"{one.name} ({one.digest[:6].hex()})" for one in bundles),
            knows_bundle=self.model_pool.knows_bundle,
            check=self.backend.check,
            decode_on_arrival=_eager(settings.eager),
        )

    def _routers(self) -> list[APIRouter]:
        settings, store, images, backend = self.settings, self.store, self.image_service, self.backend
        bundles, max_wait = self.model_pool.bundles, settings.max_wait_seconds
        seconds = settings.body_timeout_seconds
        frame_limits = BodyLimits(settings.max_bitstream_bytes, seconds, "AEIC_CLOUD_MAX_BITSTREAM_BYTES")
        upload_limits = BodyLimits(settings.max_upload_bytes, seconds, "AEIC_CLOUD_MAX_UPLOAD_BYTES")
        return [
            frames.router(store, images, bundles, max_wait=max_wait, public=not self.tokens.required),
            deletion.router(self._deletion()),
            decode.router(backend, self.admission, self.bodies, frame_limits, max_wait=max_wait),
            events.router(self.event_bus, images, backend, bundles, store),
            requests.router(
                store,
                images,
                self.dispatch,
                self.event_bus,
                self.bodies,
                requests.Limits(
                    hour_bytes=settings.request_bytes_per_hour,
                    original_bytes=settings.request_original_bytes,
                    body_seconds=seconds,
                    max_wait=max_wait,
                ),
            ),
            status.router(
                store,
                self.presence,
                self.model_pool,
                backend,
                self.readiness,
                grafana_url=self.settings.grafana_url,
            ),
            status.metrics_router(self.metrics, self._measured()),
            page.router(),
            edge.router(self._edge_proxy, self.bodies, upload_limits),
        ]

    def _measured(self) -> status.Measured:
        settings = self.settings
        return status.Measured(
            store=self.store,
            presence=self.presence,
            cache=self._cache,
            model_pool=self.model_pool,
            readiness=self.readiness,
            budgets=lambda: self.budgets,
            sources=self._sources_in_metrics(),
            folders=bootstrap.folders_of(settings),
            certificates=Certificates(
                chains={"grpc_tls_cert": settings.grpc_tls_cert},
                authorities={"grpc_tls_client_ca": settings.grpc_tls_client_ca},
            ),
        )

    def _deletion(self) -> Deletion:
        """With the choice ``auto``, clients that need no token may delete nothing."""
        choice = self.settings.allow_delete
        allowed = choice == "always" or (choice == "auto" and self.tokens.required)
        return Deletion(self.store, self._cache, self.event_bus, self.dispatch, self.metrics, allowed=allowed)

    @property
    def budgets(self) -> dict[str, Used]:
        """What requests may hold, for the metrics."""
        return {
            "connections": self._http_server.connections,
            "calls": self.calls.budget,
            "waiters": self.waiters,
            "body_bytes": self.bodies,
            "pixels": self.admission.pixels,
            "pictures": self.admission.callers,
        }

    def _maintenance_settings(self) -> MaintenanceSettings:
        settings = self.settings
        return MaintenanceSettings(
            retention_seconds=settings.retention_days * DAY,
            retention_bytes=settings.retention_bytes,
            policies=settings.retention_policies,
            events_kept=settings.events_kept,
            grace_seconds=settings.retention_grace_hours * 3600,
            trims_cache=settings.role != "worker",
        )

    async def _poll_queue(self) -> None:
        """Wake the worker now and then: other processes take the frames in, and send it no signal."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            self.backend.wake()


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Print one line of JSON with the addresses once everything is ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cloud = Cloud(settings)
    await cloud.start()
    print(json.dumps({"service": "cloud", "http": cloud.http, "grpc": cloud.grpc}), flush=True)
    await stop.wait()
    log.info("draining")
    await cloud.stop()


def main(settings: Settings) -> int:
    """Call :func:`run`; report an error as one line on stderr, and return the exit status.

    0 after a drain, 2 for invalid settings, 5 for a bundle that cannot be used, 1 for other failures; as at the edge.
    """
    os.umask(0o077)  # frames and pictures are for the owner of the service
    logs.set_up(settings.log_level, settings.log_format)
    malloc.give_large_blocks_back()
    host_limits.raise_open_files()
    try:
        asyncio.run(run(settings))
    except AeicError as error:
        print(f"cloud: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:  # settings that do not go together, or that name what is not there
        print(f"cloud: invalid settings: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cloud: {error}", file=sys.stderr)
        return 1
    return 0


def _model_pool(settings: Settings) -> ModelPool:
    """The pool of the bundles in the settings. Only the default one is loaded when the service starts."""
    others = [part.strip() for part in settings.other_bundles.split(",") if part.strip()]

    decoder_settings = DecoderSettings(
        threads=settings.threads,
        entropy_workers=settings.entropy_workers,
        max_batch=settings.max_batch,
        max_batch_pixels=settings.max_batch_pixels,
        isolate=settings.isolate,
        batch_seconds=settings.batch_seconds,
        entropy=settings.entropy,
        entropy_check_frames=settings.entropy_check_frames,
    )

    def load(path: Path) -> Decoder:
        return Decoder.from_bundle(path, settings.device, decoder_settings)

    if settings.role == "ingest":  # it reads the bundles' manifests and never loads a model
        if not settings.cache_url:
            raise ValueError("AEIC_CLOUD_ROLE=ingest needs AEIC_CLOUD_CACHE_URL: other processes make its pictures")
    else:
        choose_devices(settings.device)
    return ModelPool(
        [Bundle.load(path, verify=False) for path in (settings.bundle, *others)], load, settings.model_bytes
    )


def _server_settings(settings: Settings) -> ServerSettings:
    return ServerSettings(
        settings.host,
        settings.port,
        settings.prefix,
        header_seconds=settings.body_timeout_seconds,
        grace_seconds=5,
        max_connections=settings.max_connections,
        reuse_port=settings.reuse_port,
    )


def _eager(policy: str) -> Callable[[str], bool]:
    """Whether the frames of a source are decoded on arrival."""
    if policy in {"all", "none"}:
        return lambda _: policy == "all"
    chosen = {name.strip() for name in policy.split(",")}
    return lambda source: source in chosen
