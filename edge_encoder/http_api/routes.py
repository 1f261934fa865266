"""The routes of the edge. Rules that hold for every route are in aeic_service, and the work is in service.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.types import Scope

from aeic.identifiers import is_name
from aeic_service import tracing
from aeic_service.errors import Draining, InvalidParameter, ServiceError, UnknownFrame
from aeic_service.http import problems, static_page
from aeic_service.http.app import new_app, prometheus_text
from aeic_service.http.disconnects import while_connected
from aeic_service.http.parameters import JSON_NUMBER, FrameId, Seconds, frame_id
from aeic_service.http.request_body import BodyLimits, discard, read_body, stated_size
from aeic_service.http.request_timing import Observe, RequestTiming
from aeic_service.http.serializers import bits_per_pixel, rfc3339
from edge_encoder.encoding import Preset
from edge_encoder.http_api import schemas, status
from edge_encoder.metrics import Metrics
from edge_encoder.service import EdgeService
from edge_encoder.settings import Wait
from edge_encoder.spool.record import Entry, State
from edge_encoder.submission.capture_time import parse_time
from edge_encoder.submission.request import Accepted, EncodeRequest, SizeLimits

STATIC = Path(__file__).parent / "static"
_PROBLEM_EXAMPLES = {
    400: "no rate point 'r9' in aeic-se-nano: choose one of 0 (r1, 0.0265 bpp), 1 (r2, 0.03 bpp)",
    404: "there is no frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e here: finished frames are forgotten after some time",
    408: "the body did not arrive within 20 s; send it faster or smaller",
    409: "id 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e belongs to another picture; use a fresh id for each picture",
    413: "the picture is 9000x20: at most 67108864 pixels and 8192 per side are accepted, scale it down",
    415: "this is GIF: send JPEG, PNG, WebP or AVIF",
    422: "the picture is cut short or damaged: send it again in full",
    429: "9 pictures are being encoded or wait; try again in 1 s, or raise AEIC_EDGE_ENCODE_QUEUE_FRAMES",
    503: "the service is stopping: try again in a moment",
    507: "the spool holds 268435456 of 268435456 bytes; wait for the uplink or raise AEIC_EDGE_SPOOL_MAX_BYTES",
}
_WAIT = "Answer when the picture is on disk (received), when its frame is (spooled), when the cloud has it (delivered)."
_MOST = "Largest frame, in bytes; the picture is scaled down to fit."
_TARGET = "Target size of the frame, in bytes; if no frame fits, the smallest one is sent."
_SIDE = "Longest side, in pixels."
_PRIORITY = "Frames with a higher priority are sent first."
_WAITED = "aeic.wait"  # in a request's scope, for _observer; not there when the request was malformed
_PICTURES = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic", "application/octet-stream")
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "description": "One JPEG, PNG, WebP, AVIF or HEIF file; the format is detected from its content.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _PICTURES},
    }
}
_FRAME_EXAMPLE = {
    "id": "019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e",
    "state": "spooled",
    "width": 768,
    "height": 512,
    "original_width": 768,
    "original_height": 512,
    "bytes": 1432,
    "bpp": 0.0291,
    "rate": 1,
    "priority": 0,
}
_POST_EXAMPLES = {
    "spooled": {"summary": "Encoded, the frame is on disk.", "value": _FRAME_EXAMPLE},
    "received": {
        "summary": "wait=received: the picture is on disk and will be encoded.",
        "value": {**_FRAME_EXAMPLE, "state": "received", "bytes": None, "bpp": None, "rate": None},
    },
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return problems.responses(_PROBLEM_EXAMPLES, *statuses)


def _answers(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "description": model.__doc__}, **_problems(*statuses)}


def create_app(service: EdgeService) -> FastAPI:
    """The ASGI app of a service; start and stop the service around it."""
    about = "Takes photographs and sends each as a frame of one or two kilobytes."
    settings = service.settings
    app = new_app("AEIC edge", about, settings, [Middleware(RequestTiming, _observer(service.metrics))])
    app.include_router(static_page.router(STATIC))
    body = BodyLimits(settings.max_body_bytes, settings.read_timeout_seconds, "AEIC_EDGE_MAX_BODY_BYTES")

    @app.post(
        "/v1/frames",
        status_code=202,
        openapi_extra=_REQUEST_BODY,
        responses={
            202: {
                "model": schemas.PostedBody,
                "description": "Safely on disk.",
                "content": {"application/json": {"examples": _POST_EXAMPLES}},
            },
            **_problems(400, 408, 409, 413, 415, 422, 429, 503, 507),
        },
    )
    async def post_frame(
        request: Request,
        rate: Annotated[str | None, Query(max_length=32, description="Rate point, by number or name.")] = None,
        max_bytes: Annotated[int | None, Query(ge=1, le=1 << 30, description=_MOST), JSON_NUMBER] = None,
        target_bytes: Annotated[int | None, Query(ge=1, le=1 << 30, description=_TARGET), JSON_NUMBER] = None,
        max_side: Annotated[int | None, Query(ge=16, le=8192, description=_SIDE), JSON_NUMBER] = None,
        preset: Annotated[Preset | None, Query(description="Approximate frame size, for any picture size.")] = None,
        priority: Annotated[int, Query(ge=0, le=255, description=_PRIORITY), JSON_NUMBER] = 0,
        wait: Annotated[Wait, Query(description=_WAIT)] = service.settings.default_wait,
        timeout: Seconds = 30.0,
        x_source_id: Annotated[str | None, Header(max_length=512)] = None,
        x_captured_at: Annotated[
            str | None, Header(max_length=64, description="RFC 3339, or s or ms since 1970.")
        ] = None,
        idempotency_key: Annotated[str | None, Header(max_length=64, description="A UUID: the frame's id.")] = None,
    ) -> JSONResponse:
        """Encode a picture, and keep its frame on disk until the cloud has answered for it.

        202 says that the spool's commit, synced to the disk, has the frame or, with ``wait=received``, the picture
        file: it survives a power cut. It does not say that the cloud has it. A picture whose id is known gets 202 with
        the state of the earlier one and writes nothing, unless that one was dropped; ``wait=delivered`` gets 202 with
        the state at the end of its wait. A frame leaves the disk without delivery only if the cloud rejects it, if it
        is damaged, or where the settings allow it: by age (``AEIC_EDGE_SPOOL_MAX_AGE_SECONDS``, off by default), or for
        newer frames when the spool is full (``AEIC_EDGE_SPOOL_FULL_POLICY``, ``refuse`` by default). A received picture
        leaves it also if it cannot be encoded.
        """
        request.scope[_WAITED] = wait
        if service.stopping.is_set():
            raise Draining()
        try:
            encode_request = EncodeRequest(
                rate=rate,
                limits=SizeLimits.of(preset, max_bytes, target_bytes, max_side),
                priority=priority,
                source_id=_source_id(x_source_id),
                captured_ms=_captured_ms(x_captured_at),
                prompt=wait == "delivered",
                id=None if idempotency_key is None else frame_id(idempotency_key, "Idempotency-Key"),
            )
            with tracing.request("edge.post", request.headers.get("traceparent")):
                size = stated_size(request, body)
                if wait == "received":
                    service.deferred_encoder.check(size)
                else:
                    service.queue.check()
                picture = await read_body(request, body, service.uploads)
                if wait == "received":
                    with service.deferred_encoder.place(len(picture)):
                        taken = await service.submitter.receive(picture, encode_request)
                else:
                    taken = await service.submitter.take(picture, encode_request)
        except ServiceError:
            await discard(request)
            raise
        entry = taken.entry
        if wait == "delivered":
            seconds = min(timeout, service.settings.wait_max_seconds)
            await while_connected(request, service.waiting.settled(entry.id, seconds))
            entry = await service.entry(entry.id) or entry
        return JSONResponse(_posted(entry, taken), 202, {"Location": f"/v1/frames/{entry.id}"})

    @app.get(
        "/v1/frames/{id}",
        response_model=None,
        responses={
            200: {
                "model": schemas.FrameBody,
                "description": "What is known of the frame.",
                "content": {"application/json": {"example": {**_FRAME_EXAMPLE, "state": "delivered"}}},
            },
            **_problems(400, 404, 503),
        },
    )
    async def get_frame(id: FrameId) -> dict[str, Any]:
        """The state of a frame."""
        entry = await service.entry(id)
        if entry is None:
            raise UnknownFrame(f"there is no frame {id} here: finished frames are forgotten after some time")
        return _shown(entry)

    @app.get("/v1/status", response_model=None, responses=_answers(schemas.StatusBody, 503))
    async def get_status() -> dict[str, Any]:
        """The bundle, the queue, the spool, the uplink and the tasks of the service."""
        return await asyncio.to_thread(status.status, service)

    @app.get("/healthz", responses=_answers(schemas.LiveBody, 503))
    async def healthz() -> Response:
        """Liveness: 503 when only a restart helps."""
        if not service.spool.alive:
            return problems.problem(503, "the spool's writer has ended; restart the service")
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses=_answers(schemas.ReadyBody, 503))
    async def readyz() -> Response:
        """Readiness: 200 while pictures are accepted, else 503 with the reason."""
        problem = await service.problem()
        if problem:
            return problems.problem(503, f"not ready: {problem}", headers={"Retry-After": "1"})
        down = {source.name: source.detail for source in service.sources if source.state == "down"}
        body = {"status": "ready", "provider": service.encoder.analysis.provider, "sources_down": down}
        warnings = status.warnings(service)
        return JSONResponse(body | ({"warnings": warnings} if warnings else {}))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        await asyncio.to_thread(status.refresh_gauges, service)
        return prometheus_text(service.metrics.registry)

    return app


def _source_id(text: str | None) -> str:
    """The name in a header, whose bytes are read as UTF-8; what every cloud would reject is refused here."""
    try:
        name = (text or "").encode("latin-1").decode()
    except UnicodeDecodeError:
        name = "\0"
    if name and not is_name(name):
        raise InvalidParameter("X-Source-Id is not a valid name; send 1 to 128 printable characters in UTF-8")
    return name


def _captured_ms(text: str | None) -> int:
    """Milliseconds since 1970 of the time in a header; 0 for none."""
    try:
        return parse_time(text) if text else 0
    except ValueError:
        raise InvalidParameter(
            "X-Captured-At is not a valid time; send RFC 3339 (2026-11-23T14:00:00Z), or s or ms since 1970"
        ) from None


def _shown(entry: Entry) -> dict[str, Any]:
    encoded = entry.size > 0
    shown = {
        "id": str(entry.id),
        "state": State(entry.state).name.lower(),
        "width": entry.width,
        "height": entry.height,
        "original_width": entry.original_width or None,
        "original_height": entry.original_height or None,
        "bytes": entry.size if encoded else None,
        "bpp": bits_per_pixel(entry.size, entry.width, entry.height) if encoded else None,
        "rate": entry.rate if encoded else None,
        "priority": entry.priority,
        "created_at": rfc3339(entry.created_ms),
        "finished_at": rfc3339(entry.finished_ms),
        "created_unix_ms": entry.created_ms,  # this and the next are for clients of 0.1
        "finished_unix_ms": entry.finished_ms,
    }
    return {**shown, "reason": entry.reason} if entry.reason else shown


def _posted(entry: Entry, taken: Accepted) -> dict[str, Any]:
    if taken.known:
        return {**_shown(entry), "encode_ms": 0.0, "duplicate": True}
    if taken.encoded is None:
        return _shown(entry)
    timings = {stage: round(seconds * 1000, 3) for stage, seconds in taken.encoded.timings.items()}
    return {**_shown(entry), "encode_ms": round(sum(timings.values()), 3), "timings_ms": timings}


def _observer(metrics: Metrics) -> Observe:
    """Times every POST of a picture, by its status and what it waited for."""

    def observe(scope: Scope, status: int, seconds: float) -> None:
        if scope["method"] == "POST" and scope["path"] == "/v1/frames":
            metrics.request_seconds.labels(str(status), scope.get(_WAITED, "")).observe(seconds)

    return observe
