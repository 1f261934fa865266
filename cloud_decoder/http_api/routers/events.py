"""Server-sent events, out of the store's log: a client that sends ``Last-Event-ID`` goes on where it was."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from aeic.bundle import Bundle
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.events import EventBus
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.serializers import frame_json, request_json
from cloud_decoder.store.event_log import REQUEST, LoggedEvent, Position
from cloud_decoder.store.store import Store

KEEP_ALIVE_SECONDS = 15.0
BATCH = 100
"""Events that are read from the log at once."""
REST_SECONDS = 0.05
"""Between two readings for one client; what happens meanwhile is read together."""
AGAIN_SECONDS = 0.2
"""PostgreSQL shows an event once the transactions before it have ended."""

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^([0-9]{1,18}-[0-9]{1,18})?$",
        description="The id of the last event that the client has. The stream begins after it.",
    ),
]


class _Events(StreamingResponse):
    """A stream of events that gives back ``places`` when it ends, however it ends."""

    def __init__(self, events: AsyncIterator[str], places: ExitStack) -> None:
        headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
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
            **schemas.refusals(400, 401, 429, 503),
        },
    )
    async def events(tenant: Tenant, last_event_id: LastEventId = None) -> Response:
        """Server-sent events: ``received``, ``done``, ``failed`` and ``pruned`` with the frame, ``request`` with the
        request that has ended.

        With ``Last-Event-ID`` the stream begins after that event, at any front end and after a restart. ``lost`` comes
        first if events after it are no longer kept: list the frames again.
        """
        position = Position.parse(last_event_id) if last_event_id else await asyncio.to_thread(store.events.newest)
        places = ExitStack()
        places.enter_context(images.waiter(tenant))  # 429 if there is no room; once the stream begins it is too late
        return _Events(stream(tenant, position), places)

    async def stream(tenant: str, position: Position) -> AsyncIterator[str]:
        with event_bus.subscribe(tenant) as hints:
            yield f"retry: 2000\nid: {position}\n\n"
            hinted, spoken = True, time.monotonic()
            while not backend.draining:
                hinted = hints.forget() or hinted
                read = await asyncio.to_thread(store.events.after, tenant, position, BATCH)
                if read.lost:
                    position = await asyncio.to_thread(store.events.newest)
                    yield _message(position, {"event": "lost"})
                elif read.events:
                    position = read.events[-1].position
                    for text in await asyncio.to_thread(messages, tenant, read.events):
                        yield text
                if read.lost or read.events:
                    hinted, spoken = True, time.monotonic()
                    await asyncio.sleep(REST_SECONDS)
                    continue
                left = AGAIN_SECONDS if hinted else KEEP_ALIVE_SECONDS - (time.monotonic() - spoken)
                hinted = await hints.next(max(0.0, left)) is not None
                if not hinted and time.monotonic() - spoken >= KEEP_ALIVE_SECONDS:
                    yield ": still here\n\n"
                    spoken = time.monotonic()

    def messages(tenant: str, read: list[LoggedEvent]) -> list[str]:
        rows = store.frames.many(tenant, {event.id for event in read if event.kind != REQUEST})
        found = []
        for event in read:
            body: dict[str, Any] = {"event": event.kind}
            if event.kind == REQUEST:
                request = store.requests.get(tenant, event.id)
                body["request"] = None if request is None else request_json(request)
            elif row := rows.get(event.id):
                body |= {"id": str(event.id), "frame": frame_json(row, bundles)}
            else:
                continue
            found.append(_message(event.position, body))
        return found

    return routes


def _message(position: Position, body: Mapping[str, Any]) -> str:
    return f"id: {position}\nevent: {body['event']}\ndata: {json.dumps(body)}\n\n"
