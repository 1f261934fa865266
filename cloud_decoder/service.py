"""The running cloud: one process, one event loop, gRPC and HTTP side by side; decoding on threads.

Starting: store, bundle, warm-up, then ready. Stopping (SIGTERM): not ready; streams end after their last
acknowledgement; the batch in hand is finished, the rest given back; everybody who waits is answered; exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import aeic
from aeic.bundle import Bundle
from aeic.errors import AeicError
from aeic_service import tracing
from aeic_service.http_server import HttpServer, ServerSettings
from cloud_decoder import bootstrap
from cloud_decoder.auth import Tokens
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.front_end.event_poller import EventPoller
from cloud_decoder.front_end.queue_backend import QueueBackend
from cloud_decoder.grpc_api.group_commit import GroupCommit
from cloud_decoder.grpc_api.ingest import Ingest, IngestSettings
from cloud_decoder.grpc_api.server import GrpcServer
from cloud_decoder.http_api.edge_proxy import EdgeProxy
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.routes import Parts, build_app
from cloud_decoder.inference.backend import choose_device
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.presence import Presence
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import Store
from cloud_decoder.worker.share import Share
from cloud_decoder.worker.worker import Worker

log = logging.getLogger(__name__)

PRUNE_SECONDS = 60.0


class Cloud:
    """``await start()``, then ``http`` and ``grpc`` hold the addresses; ``await stop()``."""

    def __init__(self, settings: Settings, decoder: Decoder | None = None) -> None:
        """``decoder`` stands in for the one that the settings describe."""
        if settings.tracing:
            tracing.set_up("aeic-cloud")
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.model_pool = ModelPool.of(decoder) if decoder else _model_pool(settings)
        self.metrics = Metrics()
        self.tokens = Tokens(settings.tokens.get_secret_value())
        self._folder = bootstrap.own_folder(settings)
        self.store = Store(bootstrap.database_url(settings), settings.aging_seconds)
        self.http = ""
        self.grpc = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc_server: GrpcServer | None = None

    async def start(self) -> None:
        """Everything up and ready, or an error that says what is missing."""
        settings, bundle, event_bus = self.settings, self.model_pool.default, EventBus()
        self.event_bus = event_bus
        cache = bootstrap.cache_of(settings)
        self.metrics.cache_limit_bytes.set(settings.cache_bytes)
        decoder = None if settings.role == "ingest" else self.model_pool.first()
        device = decoder.device if decoder else "none"
        self.metrics.info.labels(aeic.__version__, bundle.fingerprint, device).set(1)
        self.worker = cast(Any, self._worker(decoder, cache, event_bus) if decoder else self._front(cache))
        self.image_service = ImageService(self.store, cache, self.worker, event_bus, self.metrics, settings.max_waiters)
        self.presence = Presence()
        self.commits = GroupCommit(
            self.store, event_bus, self.metrics, max_frames=settings.commit_frames, wake=self.worker.wake
        )
        self.ingest = Ingest(self.commits, self.presence, self.tokens, self.metrics, self._ingest_settings())
        edge_proxy = EdgeProxy(settings.edge_url, settings.edge_tenant)
        self.parts = Parts(
            settings,
            self.store,
            self.worker,
            self.image_service,
            event_bus,
            self.presence,
            self.tokens,
            self.metrics,
            edge_proxy,
        )
        await self.worker.start()
        if settings.role != "worker":
            self._grpc_server = GrpcServer(settings, self.ingest, self.worker, self.tokens)
            self.grpc = await self._grpc_server.start()
        self._http_server = HttpServer(build_app(self.parts), _server_settings(settings))
        try:
            self.http = await self._http_server.start()
        except OSError:
            if self._grpc_server is not None:  # it may not outlive the loop
                await self._grpc_server.stop()
            raise
        self.parts.ready = True
        self._tasks.append(asyncio.create_task(self._prune()))
        if settings.role == "ingest":
            self._tasks.append(asyncio.create_task(EventPoller(self.store, event_bus).run()))
        elif self._shares:
            self._tasks.append(asyncio.create_task(self._look()))

    async def stop(self) -> None:
        """Drain: nothing accepted is lost, everybody is answered."""
        self.parts.ready = False
        if self._grpc_server is not None:
            await self._grpc_server.refuse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                await self.ingest.drain()
                await self.worker.stop()
        self.event_bus.wake_all()
        servers = (self._http_server, self._grpc_server)
        await asyncio.gather(*(server.stop() for server in servers if server is not None))
        for task in self._tasks:
            task.cancel()
        self.parts.edge_proxy.close()
        self.image_service.close()
        self.model_pool.close()
        self.store.close()
        self._folder.close()

    @property
    def _shares(self) -> bool:
        """Whether other workers may pull from the same queue."""
        return self.settings.role == "worker" or not self.store.database.sqlite

    def _worker(self, decoder: Decoder, cache: Any, event_bus: EventBus) -> Worker:
        settings = self.settings
        store: Any = self.store
        if self._shares:
            loop = asyncio.get_running_loop()
            frames = settings.claim_frames or max(8, 4 * decoder.max_batch)
            store = Share(self.store, frames, lambda: bootstrap.soon(loop, self.worker.wake))
        return Worker(
            decoder,
            store,
            cache,
            self.metrics,
            event_bus,
            model_pool=self.model_pool,
            owner=bootstrap.owner_of(settings),
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            max_queue=settings.max_queue,
            max_pixels=settings.max_pixels,
            aging_seconds=settings.aging_seconds,
        )

    def _front(self, cache: Any) -> QueueBackend:
        settings = self.settings
        limits = {"max_queue": settings.max_queue, "max_pixels": settings.max_pixels}
        return QueueBackend(self.model_pool, self.store, cache, self.metrics, **limits)

    def _ingest_settings(self) -> IngestSettings:
        settings, bundles = self.settings, self.model_pool.bundles.values()
        return IngestSettings(
            window=settings.ingest_window,
            max_bitstream_bytes=settings.max_bitstream_bytes,
            bundle_name=" or ".join(f"{one.name} ({one.digest[:6].hex()})" for one in bundles),
            knows_bundle=self.model_pool.knows_bundle,
            check=self.worker.check,
            decode_on_arrival=_eager(settings.eager),
        )

    async def _look(self) -> None:
        """Other processes take the frames in: nobody tells this worker of them."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            self.worker.wake()

    async def _prune(self) -> None:
        """Retention: now and then, the oldest decoded bitstreams go, and the oldest pictures of a shared cache."""
        settings = self.settings
        trim = getattr(self.worker.cache, "trim", None) if settings.role != "worker" else None
        while settings.retention_days or settings.retention_bytes or trim:
            if trim:
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(trim)
            older = int((time.time() - 86400 * settings.retention_days) * 1000) if settings.retention_days else None
            keep = settings.retention_bytes or None
            if older or keep:
                with contextlib.suppress(StoreUnavailable):
                    await asyncio.to_thread(self.store.prune, older_than_ms=older, keep_bytes=keep)
            await asyncio.sleep(PRUNE_SECONDS)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Prints one line of JSON with the addresses once everything is ready."""
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
    """:func:`run`, with errors as one line on stderr and an exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(run(settings))
    except AeicError as error:
        print(f"cloud: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError) as error:
        print(f"cloud: {error}", file=sys.stderr)
        return 1
    return 0


def _model_pool(settings: Settings) -> ModelPool:
    """The bundles of the settings; the default one is loaded when the service starts."""
    others = [part.strip() for part in settings.other_bundles.split(",") if part.strip()]

    def load(path: Path) -> Decoder:
        return Decoder.from_bundle(
            path,
            settings.device,
            settings.threads,
            entropy_workers=settings.entropy_workers,
            max_batch=settings.max_batch,
            max_batch_pixels=settings.max_batch_pixels,
            isolate=settings.isolate,
            batch_seconds=settings.batch_seconds,
        )

    if settings.role == "ingest":  # it knows the bundles by name and limits, and never loads one
        if not settings.cache_url:
            raise ValueError("AEIC_CLOUD_ROLE=ingest needs AEIC_CLOUD_CACHE_URL: its pictures are made elsewhere")
    else:
        choose_device(settings.device)
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
        reuse_port=settings.reuse_port,
    )


def _eager(policy: str) -> Callable[[str], bool]:
    """Which sources' frames are decoded unasked."""
    if policy in {"all", "none"}:
        return lambda _: policy == "all"
    chosen = {name.strip() for name in policy.split(",")}
    return lambda source: source in chosen
