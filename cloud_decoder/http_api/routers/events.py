"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aeic.bundle import Bundle
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.events import EventBus
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.serializers import frame_json, request_json
from cloud_decoder.store.store import Store

KEEP_ALIVE_SECONDS = 15.0


class _Events(StreamingResponse):
    """A stream of events that gives back ``places`` when it ends, however it ends."""

    def __init__(self, events: AsyncIterator[str], places: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._places:
            await super().__call__(scope, receive, send)


def router(
    event_bus: EventBus, images: ImageService, backend: DecodeBackend, bundles: Mapping[str, Bundle], store: Store
) -> APIRouter:
    """The stream of a tenant's events. It ends when ``backend`` drains."""
    routes = APIRouter(tags=["frames"])

    @routes.get(
        "/v1/events",
        response_class=Response,
        responses={
            200: {
                "description": "A stream of events without end.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **schemas.refusals(401, 429, 503),
        },
    )
    async def events(tenant: Tenant) -> Response:
        """Server-sent events: ``received``, ``done`` and ``failed`` with the frame, ``request`` with a request that has
        ended, ``lost`` after an overflow."""
        places = ExitStack()
        places.enter_context(images.waiter(tenant))  # 429 if there is no room; once the stream begins it is too late
        return _Events(stream(tenant), places)

    async def stream(tenant: str) -> AsyncIterator[str]:
        with event_bus.subscribe(tenant) as subscription:
            yield "retry: 2000\n\n"
            while not backend.draining:
                event = await subscription.next(KEEP_ALIVE_SECONDS)
                if event is None:
                    yield ": still here\n\n"
                    continue
                if "id" in event:
                    row = await images.row(tenant, UUID(event["id"]))
                    event = event | {"frame": frame_json(row, bundles)}
                elif "request_id" in event:
                    request = await asyncio.to_thread(store.requests.get, tenant, UUID(event["request_id"]))
                    event = {"event": "request", "request": None if request is None else request_json(request)}
                yield f"event: {event['event']}\ndata: {json.dumps(event)}\n\n"

    return routes
