"""The HTTP routes. Thin: they read a request, ask store, gallery or worker, and write an answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

import aeic
from aeic_service import api_page, problems
from aeic_service.head import Head
from aeic_service.request_body import Limits, read_body
from cloud_decoder.auth import Tokens
from cloud_decoder.errors import Gone
from cloud_decoder.events import EventBus
from cloud_decoder.http_api import page
from cloud_decoder.http_api.edge_proxy import EdgeProxy
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.middleware import RequestMetrics
from cloud_decoder.http_api.requests import frame_id, while_connected
from cloud_decoder.http_api.serializers import bundles_json, frame_json, milliseconds, source_json
from cloud_decoder.images import formats
from cloud_decoder.metrics import Metrics
from cloud_decoder.presence import Presence
from cloud_decoder.settings import Settings
from cloud_decoder.store.store import State, Store
from cloud_decoder.worker.worker import Worker


@dataclass
class Parts:
    """Everything the routes stand on."""

    settings: Settings
    store: Store
    worker: Worker
    image_service: ImageService
    event_bus: EventBus
    presence: Presence
    tokens: Tokens
    metrics: Metrics
    edge_proxy: EdgeProxy
    ready: bool = False


async def _tenant(request: Request) -> str:
    tokens: Tokens = request.app.state.tokens
    return tokens.tenant_of_header(request.headers.get("authorization"))


Tenant = Annotated[str, Depends(_tenant)]
Wait = Annotated[float, Query(ge=0, le=86400, allow_inf_nan=False, description="seconds; cut at the service's limit")]
Width = Annotated[int | None, Query(ge=16, le=8192, description="pixels; only ever narrower")]


def build_app(parts: Parts) -> FastAPI:
    """The application. ``parts.ready`` is looked at by /readyz; all the rest is fixed."""
    about = "Frames in, pictures out."
    app = FastAPI(title="AEIC cloud", version=aeic.__version__, description=about, docs_url=None, redoc_url=None)
    problems.install(app)
    app.state.tokens = parts.tokens
    app.add_middleware(RequestMetrics, metrics=parts.metrics)
    app.add_middleware(Head)
    longest = parts.settings.max_wait_seconds
    settings, store, image_service, worker = parts.settings, parts.store, parts.image_service, parts.worker
    bundles = worker.model_pool.bundles
    frame_limits = Limits(settings.max_bitstream_bytes, settings.body_timeout_seconds, "AEIC_CLOUD_MAX_BITSTREAM_BYTES")

    @app.get("/v1/frames")
    async def list_frames(
        tenant: Tenant,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
        source: Annotated[str | None, Query(max_length=128)] = None,
        state: State | None = None,
        rate: Annotated[int | None, Query(ge=0, le=31)] = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> dict[str, Any]:
        """The newest arrivals first. ``next_cursor`` goes into ``cursor`` for the next page; null at the end."""
        filters = {
            "source": source,
            "state": state,
            "rate": rate,
            "since_ms": milliseconds(since),
            "until_ms": milliseconds(until),
        }
        before = None if cursor is None else int(cursor)
        rows = await image_service.on_thread(lambda: store.page(tenant, limit + 1, before, **filters))  # type: ignore[arg-type]
        shown = rows[:limit]
        more = str(shown[-1].seq) if len(rows) > limit else None
        return {"frames": [frame_json(row, bundles) for row in shown], "next_cursor": more}

    @app.get("/v1/frames/{id}")
    async def get_frame(request: Request, tenant: Tenant, id: str, wait: Wait = 0.0) -> dict[str, Any]:
        """One frame; ``wait`` for one that has not arrived yet."""
        with image_service.waiter():
            row = await while_connected(request, image_service.row(tenant, frame_id(id), min(wait, longest)))
        return frame_json(row, bundles)

    @app.get("/v1/frames/{id}/bitstream")
    async def get_bitstream(tenant: Tenant, id: str) -> Response:
        """The frame as it came: an .aeic file."""
        row = await image_service.row(tenant, frame_id(id))
        data = await image_service.on_thread(store.bitstream, tenant, row.id)
        if data is None:
            raise Gone(f"frame {row.id} was pruned by retention")
        headers = _caching(f"{row.digest}", parts.tokens) | {
            "Content-Disposition": f'attachment; filename="{row.id}.aeic"'
        }
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.get("/v1/frames/{id}/image")
    async def get_image(
        request: Request, tenant: Tenant, id: str, format: str = "png", width: Width = None, wait: Wait = 0.0
    ) -> Response:
        """The reconstruction. 202 with the frame's state where it is not ready within ``wait`` seconds."""
        wanted, format = frame_id(id), formats.known_format(format)
        if given := request.headers.get("if-none-match"):
            row = await image_service.row(tenant, wanted)
            headers = _caching(f"{row.digest}-{formats.variant(format, width)}", parts.tokens)
            there = row.state is State.DONE if given.strip() == "*" else headers["ETag"] in given
            if there and row.state is not State.FAILED:
                return Response(status_code=304, headers=headers)
        with image_service.waiter():
            work = image_service.image(tenant, wanted, format, width, min(wait, longest))
            row, image = await while_connected(request, work)
        if image is None:
            return JSONResponse(frame_json(row, bundles), 202, {"Retry-After": "1", "Cache-Control": "no-store"})
        headers = _caching(f"{row.digest}-{formats.variant(format, width)}", parts.tokens)
        return Response(image, media_type=formats.media_type(format), headers=headers)

    @app.post("/v1/decode")
    async def decode(
        request: Request, tenant: Tenant, format: str = "png", width: Width = None, timeout: Wait | None = None
    ) -> Response:
        """A bitstream in the body, its picture in the answer; nothing is stored."""
        kind = formats.media_type(format)
        data = await read_body(request, frame_limits)
        seconds = longest if timeout is None else min(timeout, longest)
        decoded = await while_connected(request, worker.decode(data, timeout=seconds))
        started = time.monotonic()
        image = await worker.encode(decoded.picture, format, width)
        stages = decoded.timings | {"image": time.monotonic() - started}
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages.items()),
            "X-Latents-Digest": decoded.latents_digest,
            "Cache-Control": "no-store",
        }
        return Response(image, media_type=kind, headers=headers)

    @app.get("/v1/events")
    async def events(tenant: Tenant) -> Response:
        """Server-sent events: ``received``, ``done`` and ``failed`` with the frame, ``lost`` after an overflow."""
        return StreamingResponse(
            _stream(parts, tenant), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    @app.get("/v1/sources")
    async def list_sources(tenant: Tenant) -> dict[str, Any]:
        """Who has sent frames, the latest first: how many wait to be decoded, and whether its stream is open now."""
        waiting = await image_service.on_thread(store.backlog, tenant)
        found = []
        for one in await image_service.on_thread(store.sources, tenant):
            name = one["source"]
            found.append(source_json(one, waiting.get(name, 0), parts.presence.is_connected(tenant, name)))
        return {"sources": found}

    @app.get("/v1/status")
    async def status(tenant: Tenant) -> dict[str, Any]:
        """The models, the device and how full everything is. Frames are counted by state, this tenant's only."""
        counts = await image_service.on_thread(store.counts, tenant)
        scheduler = worker.scheduler
        return {
            "version": aeic.__version__,
            **bundles_json(worker.model_pool),
            "device": worker.device,
            "frames": counts,
            "waiting": {"entropy": len(scheduler.entropy), "device": len(scheduler.device)},
            "ready": parts.ready,
        }

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page.render(app.openapi()), headers=api_page.HEADERS)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        if parts.ready and worker.alive:
            return JSONResponse({"status": "ready"})
        detail = "a part of the worker has died" if parts.ready else "starting, or stopping"
        return problems.problem(503, detail, headers={"Retry-After": "1"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        cache = worker.cache
        parts.metrics.cache_bytes.set(cache.total_bytes)
        parts.metrics.models_bytes.set(worker.model_pool.loaded_bytes)
        parts.metrics.ready.set(parts.ready and worker.alive)
        for state, count in (await image_service.on_thread(store.counts)).items():
            parts.metrics.stored.labels(state).set(count)
        return Response(parts.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    page.install(app, parts, _tenant)
    return app


async def _stream(parts: Parts, tenant: str) -> AsyncIterator[str]:
    with parts.image_service.waiter(), parts.event_bus.subscribe(tenant) as events:
        yield "retry: 2000\n\n"
        while not parts.worker.scheduler.draining:
            event = await events.next(15.0)
            if event is None:
                yield ": still here\n\n"
                continue
            if "id" in event:
                row = await parts.image_service.row(tenant, frame_id(event["id"]))
                event = event | {"frame": frame_json(row, parts.worker.model_pool.bundles)}
            yield f"event: {event['event']}\ndata: {json.dumps(event)}\n\n"


def _caching(name: str, tokens: Tokens) -> dict[str, str]:
    # Weak, since two devices may round a pixel differently; the bitstream itself never changes under its id.
    scope = "private" if tokens.required else "public"
    return {"ETag": f'W/"{name}"', "Cache-Control": f"{scope}, max-age=31536000, immutable"}
