"""Requests for more of a picture: asking a box, and the state of what was asked.

The caller chooses ``max_bytes``, at most what :class:`~cloud_decoder.http_api.schemas.AskBody` allows. The store
charges it to the source's hour, ``AEIC_CLOUD_REQUEST_BYTES_PER_HOUR``, in the transaction that stores the request
(store/requests.py); without room there the answer is 429. ``request_dispatch.py`` then sends the request to the box,
which has limits of its own (edge_encoder/answers/answerer.py) and may refuse: the request then has the state
``refused`` and a reason, such as ``over-budget`` if the box's hour has no room for it. If even refusals are over
budget, it expires.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from aeic_service.budgets import Budget
from aeic_service.errors import InvalidParameter
from aeic_service.http.disconnects import while_connected
from aeic_service.http.parameters import FrameId, Seconds, frame_id
from aeic_service.http.request_body import BodyLimits, read_body
from cloud_decoder.errors import BudgetSpent, Gone, RequestsForbidden, UnknownRequest
from cloud_decoder.events import EventBus
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.serializers import request_json
from cloud_decoder.request_dispatch import RequestDispatch
from cloud_decoder.store.requests import LEAST_CHARGE_BYTES, MOST_OPEN, new_request_id
from cloud_decoder.store.store import (
    FrameState,
    NewRequest,
    RequestKind,
    RequestState,
    Store,
    StoredFrame,
    StoredRequest,
)

audit = logging.getLogger("aeic.cloud.audit")

BODY_BYTES = 4096
POLL_SECONDS = 0.5
"""How often the store is read while a caller waits: another process may take the answer."""
RETRY_SECONDS = 60.0


async def _request_id(request: str) -> UUID:
    return frame_id(request, "request")


RequestId = Annotated[UUID, Depends(_request_id)]


@dataclass(frozen=True)
class Limits:
    """What may be asked for."""

    hour_bytes: int
    """Of one source within an hour."""
    original_bytes: int
    """Of one original."""
    body_seconds: float
    """For the body of a request to arrive."""
    max_wait: float
    """Seconds, the most for ``wait=``."""


def router(
    store: Store,
    images: ImageService,
    dispatch: RequestDispatch,
    event_bus: EventBus,
    bodies: Budget,
    limits: Limits,
) -> APIRouter:
    """The routes of requests about stored frames."""
    routes = APIRouter(tags=["requests"])
    hour_bytes, original_bytes, max_wait = limits.hour_bytes, limits.original_bytes, limits.max_wait
    body_limits = BodyLimits(BODY_BYTES, limits.body_seconds, "")

    @routes.post(
        "/v1/frames/{id}/requests",
        status_code=202,
        response_model=None,
        responses=schemas.json_of(schemas.RequestBody, 400, 401, 403, 404, 408, 410, 413, 429, 503, success=202),
        openapi_extra=schemas.json_body_of(schemas.AskBody),
    )
    async def ask(request: Request, tenant: Tenant, id: FrameId) -> Response:
        """Ask the box for more of a picture: the whole in better quality, a region, the original, or a new picture."""
        if not hour_bytes:
            raise RequestsForbidden(
                "this service sends no requests to boxes: its operator can raise AEIC_CLOUD_REQUEST_BYTES_PER_HOUR"
            )
        row = await images.row(tenant, id)
        asked = _parsed(await read_body(request, body_limits, bodies, tenant))
        if row.state is FrameState.PRUNED:
            raise Gone(f"frame {id} is gone: {row.reason}")
        if row.repeats_parent:  # a new picture has an original of its own
            raise InvalidParameter(f"frame {id} answers a request itself: ask about its parent, frame {row.parent}")
        if asked.kind is RequestKind.ORIGINAL and asked.max_bytes > original_bytes:
            raise InvalidParameter(
                f"max_bytes: this service takes originals of at most {original_bytes} bytes:"
                " ask for less, or raise AEIC_CLOUD_REQUEST_ORIGINAL_BYTES"
            )
        region = None if asked.region is None else _inside(asked.region, row)
        now_ms = int(dispatch.now() * 1000)
        new = NewRequest(
            tenant=tenant,
            id=new_request_id(),
            parent=row.id,
            source=row.source,
            box=row.box or row.source,
            kind=asked.kind,
            region=region,
            max_bytes=asked.max_bytes,
            created_ms=now_ms,
            deadline_ms=now_ms + int(asked.deadline_seconds * 1000),
        )
        stored = await asyncio.to_thread(store.requests.add, new, hour_bytes)
        if stored is None:
            raise await asyncio.to_thread(_full, new)
        audit.info(
            "request %s of tenant %r for frame %s of source %r: %s %s, at most %d bytes within %g s",
            new.id, tenant, row.id, row.source, new.kind.value, region or "", new.max_bytes, asked.deadline_seconds,
        )  # fmt: skip
        if stored.state is not RequestState.OPEN:  # the frame was deleted meanwhile
            dispatch.ended(stored)
        dispatch.wake()
        location = f"/v1/frames/{id}/requests/{new.id}"
        return JSONResponse(request_json(stored), 202, {"Location": location, "Cache-Control": "no-store"})

    def _full(new: NewRequest) -> BudgetSpent:
        """Which limit of the source leaves no room for a request, and when there is room again."""
        charge = max(new.max_bytes, LEAST_CHARGE_BYTES)
        about, setting = f"source {new.source!r}", "AEIC_CLOUD_REQUEST_BYTES_PER_HOUR"
        if charge > hour_bytes:
            return BudgetSpent(
                f"{about} may be asked for {hour_bytes} bytes an hour, which is less than {charge}: ask for less,"
                f" or raise {setting}"
            )
        wait_ms = store.requests.room_ms(new.tenant, new.source, charge, hour_bytes, new.created_ms)
        if not wait_ms:
            return BudgetSpent(
                f"{MOST_OPEN} requests about {about} are open, which is the limit: ask again when some have ended",
                retry_after=RETRY_SECONDS,
            )
        left = max(0, hour_bytes - store.requests.spent(new.tenant, new.source, new.created_ms))
        return BudgetSpent(
            f"{about} may be asked for {hour_bytes} bytes an hour, of which {left} are left: ask for less, ask for"
            f" {charge} bytes again in {math.ceil(wait_ms / 60_000)} min, or raise {setting}",
            retry_after=wait_ms / 1000,
        )

    @routes.get(
        "/v1/frames/{id}/requests",
        response_model=None,
        responses=schemas.json_of(schemas.RequestListBody, 400, 401, 404, 503),
    )
    async def list_requests(tenant: Tenant, id: FrameId) -> dict[str, Any]:
        """The requests about a frame, newest first, at most 200. Also what the box and the source's hourly budget
        still allow, and the speed of the last answers."""
        row = await images.row(tenant, id)
        found = await asyncio.to_thread(store.requests.of_frame, tenant, row.id)
        limits = dispatch.limits(tenant, row.box or row.source)
        now_ms = int(dispatch.now() * 1000)
        spent = await asyncio.to_thread(store.requests.spent, tenant, row.source, now_ms)
        speed = await asyncio.to_thread(store.requests.speed, tenant, row.source, now_ms)
        return {
            "requests": [request_json(one) for one in found],
            "max_bytes": None if limits is None else limits[0],
            "original_max_bytes": None if limits is None else min(limits[1], original_bytes),
            "hour_bytes_left": max(0, hour_bytes - spent),
            "bytes_per_second": None if speed is None else round(speed, 1),
        }

    @routes.get(
        "/v1/frames/{id}/requests/{request}",
        response_model=None,
        responses=schemas.json_of(schemas.RequestBody, 400, 401, 404, 429, 503),
    )
    async def get_request(
        http: Request, tenant: Tenant, id: FrameId, request: RequestId, wait: Seconds = 0.0
    ) -> dict[str, Any]:
        """One request; ``wait`` until it has ended."""
        with images.waiter(tenant):
            return request_json(await while_connected(http, _state(tenant, id, request, min(wait, max_wait))))

    async def _state(tenant: str, id: UUID, request: UUID, wait: float) -> StoredRequest:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        with event_bus.subscribe(tenant) as events:
            while True:
                found = await asyncio.to_thread(store.requests.get, tenant, request)
                if found is None or found.parent != id:
                    raise UnknownRequest(f"there is no request {request} about frame {id}")
                left = end - loop.time()
                if found.state is not RequestState.OPEN or left <= 0 or images.draining:
                    return found
                await events.about(request, min(left, POLL_SECONDS))

    return routes


def _parsed(body: bytes) -> schemas.AskBody:
    try:
        return schemas.AskBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise InvalidParameter(f"{place}: {first['msg']}") from None


def _inside(region: schemas.RegionBody, row: StoredFrame) -> list[int]:
    """The region as x, y, width, height. ``InvalidParameter`` if it is not inside the frame's original."""
    width, height = row.original_width or row.width, row.original_height or row.height
    if region.x + region.width > width or region.y + region.height > height:
        raise InvalidParameter(
            f"region: it ends at {region.x + region.width},{region.y + region.height}, outside the original of frame"
            f" {row.id}, which has {width}x{height} pixels"
        )
    return [region.x, region.y, region.width, region.height]
