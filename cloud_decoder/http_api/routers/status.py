"""Routes for operators: sources, status, probes and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import aeic
from aeic_service.budgets import Used
from aeic_service.certificates import Certificates
from aeic_service.http import problems
from aeic_service.http.app import prometheus_text
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.serializers import bundles_json, frame_json, source_json
from cloud_decoder.images.cache import PictureCache
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.lifecycle.readiness import Readiness
from cloud_decoder.metrics import Metrics
from cloud_decoder.presence import Box, Presence
from cloud_decoder.store.store import Store

_SEEN_SECONDS = 7 * 86_400.0
"""A source that was last seen before is taken for gone."""
_SOFTWARE = re.compile(r"[\w.+/() -]{1,64}", re.ASCII)
"""Programs with version that become labels of metrics."""


def router(
    store: Store,
    presence: Presence,
    model_pool: ModelPool,
    backend: DecodeBackend,
    readiness: Readiness,
    *,
    grafana_url: str = "",
) -> APIRouter:
    """The routes of operators, except for the metrics."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/v1/sources", response_model=None, responses=schemas.json_of(schemas.SourceListBody, 401, 503))
    async def list_sources(tenant: Tenant, newest: bool = False) -> Response:
        """The sources, the latest first: how many of their frames wait to be decoded, and which are connected now.

        ``newest`` adds the last frame that arrived from each source.
        """
        backlog = await asyncio.to_thread(store.frames.backlog, tenant)
        sources = await asyncio.to_thread(store.frames.sources, tenant)
        rows = await asyncio.to_thread(store.frames.newest, tenant) if newest else {}
        last = {source: frame_json(row, model_pool.bundles) for source, row in rows.items()}
        # A response, since FastAPI would otherwise visit every value of every frame.
        return JSONResponse(
            {
                "sources": [
                    source_json(
                        one,
                        backlog.get(one["source"], 0),
                        presence.is_connected(tenant, one["source"]),
                        last.get(one["source"]),
                        presence.box(tenant, one["source"]),
                    )
                    for one in sources
                ]
            }
        )

    @routes.get("/v1/status", response_model=None, responses=schemas.json_of(schemas.StatusBody, 401, 503))
    async def status(tenant: Tenant) -> dict[str, Any]:
        """The models, the device and how full everything is. Frames are counted by state, this tenant's only.

        ``problem`` says why the service is not ready, ``warnings`` what an operator should look at.
        """
        problem = await readiness.problem()
        return {
            "version": aeic.__version__,
            **bundles_json(model_pool),
            "device": backend.device,
            "runtime": backend.runtime,
            "frames": await asyncio.to_thread(store.frames.counts, tenant),
            "waiting": backend.waiting,
            "ready": not problem,
            "problem": problem or None,
            "warnings": readiness.warnings,
            "grafana": grafana_url or None,
        }

    @routes.get("/healthz", response_model=None, responses=schemas.json_of(schemas.HealthBody, 503))
    async def healthz() -> Response:
        """Liveness: 200 while the process works or repairs itself, 503 if only a restart helps."""
        if failure := readiness.failure:
            return problems.problem(503, f"{failure}: restart this process")
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz", response_model=None, responses=schemas.json_of(schemas.HealthBody, 503))
    async def readyz() -> Response:
        """Readiness: 200 while requests are accepted, else 503 with the reason."""
        if problem := await readiness.problem():
            return problems.problem(503, problem, headers={"Retry-After": "1"})
        warnings = readiness.warnings
        return JSONResponse({"status": "ready"} | ({"warnings": warnings} if warnings else {}))

    return routes


@dataclass(frozen=True)
class Measured:
    """What is read at each scrape."""

    store: Store
    presence: Presence
    cache: PictureCache
    model_pool: ModelPool
    readiness: Readiness
    budgets: Callable[[], Mapping[str, Used]]
    sources: int
    """How many sources, the latest, have gauges of their own."""
    folders: Mapping[str, Path]
    """Those whose disks are measured, by name."""
    certificates: Certificates


def metrics_router(metrics: Metrics, measured: Measured) -> APIRouter:
    """The metrics, with the gauges that are read at each scrape."""
    store, sources = measured.store, measured.sources
    routes = APIRouter(tags=["operations"])

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def exposition() -> Response:
        """Metrics in Prometheus' text format."""
        metrics.cache_bytes.set(measured.cache.total_bytes)
        metrics.models_bytes.set(measured.model_pool.loaded_bytes)
        metrics.ready.set(not await measured.readiness.problem())
        for name, budget in measured.budgets().items():
            metrics.budget.labels(name).set(budget.held)
            metrics.budget_limit.labels(name).set(budget.limit)
        await asyncio.to_thread(_measure_host, metrics, measured.folders, measured.certificates)
        with contextlib.suppress(StoreUnavailable):  # the other metrics say what is wrong
            for state, count in (await asyncio.to_thread(store.frames.counts)).items():
                metrics.stored.labels(state).set(count)
            now = time.time()
            arrivals = await asyncio.to_thread(store.frames.last_arrivals, now - _SEEN_SECONDS, sources)
            backlogs = await asyncio.to_thread(store.frames.backlogs) if sources else {}
            metrics.source_silent.clear()  # those that are not among them any more
            metrics.source_backlog.clear()
            for tenant, source, arrived_ms in arrivals:
                metrics.source_silent.labels(tenant, source).set(max(0.0, now - arrived_ms / 1000))
                metrics.source_backlog.labels(tenant, source, "cloud").set(backlogs.get((tenant, source), 0))
        _set_box_metrics(metrics, itertools.islice(measured.presence.boxes(), sources))
        return prometheus_text(metrics.registry)

    return routes


def _set_box_metrics(metrics: Metrics, boxes: Iterable[tuple[str, str, Box]]) -> None:
    """What connected boxes say of themselves. Those that are gone have no values."""
    metrics.source_healthy.clear()
    metrics.source_info.clear()
    for tenant, source, box in boxes:
        software = box.software if _SOFTWARE.fullmatch(box.software) else "other"
        metrics.source_info.labels(tenant, source, software).set(1)
        if box.report is not None:
            metrics.source_healthy.labels(tenant, source).set(not box.report.problem)
            metrics.source_backlog.labels(tenant, source, "edge").set(box.report.waiting_frames)


def _measure_host(metrics: Metrics, folders: Mapping[str, Path], certificates: Certificates) -> None:
    """Free disk space and the expiry of the certificates. A folder that is gone keeps its last values."""
    for name, folder in folders.items():
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(folder)
            metrics.disk_free.labels(name).set(disk.free)
            metrics.disk_size.labels(name).set(disk.total)
    metrics.certificate_expiry.clear()
    for name, expiry in certificates.expiry_seconds().items():
        metrics.certificate_expiry.labels(name).set(expiry)
