"""Stored frames: lists, single frames, their bitstreams and their pictures."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from aeic.bundle import Bundle
from aeic_service.http.disconnects import while_connected
from aeic_service.http.parameters import JSON_NUMBER, FrameId, Seconds, frame_id
from cloud_decoder.errors import Gone, OtherForm
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import NO_RANGES, Format, Tenant, Width
from cloud_decoder.http_api.image_service import ImageService
from cloud_decoder.http_api.serializers import frame_json, milliseconds
from cloud_decoder.images import files, formats
from cloud_decoder.store.store import FrameState, Store

UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match has the answer's ETag."}}


def router(
    store: Store, images: ImageService, bundles: Mapping[str, Bundle], *, max_wait: float, public: bool
) -> APIRouter:
    """``max_wait`` seconds limit every ``wait=``. ``public``: shared caches may keep pictures and bitstreams."""
    routes = APIRouter(tags=["frames"])

    def cache_headers(name: str) -> dict[str, str]:
        # Weak, since two devices may round a pixel differently; the bitstream itself never changes under its id.
        scope = "public" if public else "private"
        return {"ETag": f'W/"{name}"', "Cache-Control": f"{scope}, max-age=31536000, immutable"}

    def has_already(request: Request, headers: Mapping[str, str]) -> bool:
        given = request.headers.get("if-none-match", "").strip()
        return given == "*" or headers["ETag"] in given

    @routes.get("/v1/frames", response_model=None, responses=schemas.json_of(schemas.FrameListBody, 400, 401, 503))
    async def list_frames(
        request: Request,
        tenant: Tenant,
        limit: Annotated[int, Query(ge=1, le=200), JSON_NUMBER] = 50,
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
        source: Annotated[str | None, Query(max_length=128)] = None,
        state: FrameState | None = None,
        rate: Annotated[int | None, Query(ge=0, le=31), JSON_NUMBER] = None,
        since: datetime | None = None,
        until: datetime | None = None,
        parent: Annotated[str | None, Query(max_length=36, description="Answers to requests about that frame.")] = None,
    ) -> Response:
        """The newest arrivals first. ``next`` is the path of the next page with the same filters, null at the end.

        It is in the header ``Link`` too. ``next_cursor`` is the value of its ``cursor``.

        With filters, a page may have fewer frames than ``limit``, or none, before the end.
        """
        page = await asyncio.to_thread(
            store.frames.page,
            tenant,
            limit,
            None if cursor is None else int(cursor),
            source=source,
            state=state,
            rate=rate,
            since_ms=milliseconds(since),
            until_ms=milliseconds(until),
            parent=None if parent is None else frame_id(parent, "parent"),
        )
        cursor = None if page.next is None else str(page.next)
        following = None
        if cursor is not None:
            asked = dict(request.query_params) | {"cursor": cursor}
            following = f"/v1/frames?{urllib.parse.urlencode(asked)}"
        body = {"frames": [frame_json(row, bundles) for row in page.rows], "next_cursor": cursor, "next": following}
        # A response, since FastAPI would otherwise visit every value of every frame.
        return JSONResponse(body, headers={"Link": f'<{following}>; rel="next"'} if following else None)

    @routes.get(
        "/v1/frames/{id}", response_model=None, responses=schemas.json_of(schemas.FrameBody, 400, 401, 404, 429, 503)
    )
    async def get_frame(request: Request, tenant: Tenant, id: FrameId, wait: Seconds = 0.0) -> dict[str, Any]:
        """One frame; ``wait`` for it if it has not arrived yet."""
        with images.waiter(tenant):
            row = await while_connected(request, images.row(tenant, id, min(wait, max_wait)))
        return frame_json(row, bundles)

    @routes.get(
        "/v1/frames/{id}/bitstream",
        response_class=Response,
        responses=schemas.file_of(
            "application/octet-stream", description="An .aeic file.", statuses=(400, 401, 404, 409, 410, 503)
        )
        | UNCHANGED,
    )
    async def get_bitstream(request: Request, tenant: Tenant, id: FrameId) -> Response:
        """The frame as it arrived: an .aeic file."""
        row = await images.row(tenant, id)
        if row.media_type is not None:
            raise OtherForm(f"{id} is a picture file: get it from /v1/frames/{id}/file")
        data = await asyncio.to_thread(store.frames.bitstream, tenant, row.id)
        if data is None:
            raise Gone(f"frame {row.id} is gone: {row.reason}")
        headers = cache_headers(row.digest) | NO_RANGES
        if has_already(request, headers):
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = f'attachment; filename="{row.id}.aeic"'
        return Response(data, media_type="application/octet-stream", headers=headers)

    @routes.get(
        "/v1/frames/{id}/file",
        response_class=Response,
        responses=schemas.file_of(
            *files.MEDIA_TYPES, description="A picture file.", statuses=(400, 401, 404, 409, 410, 503)
        )
        | UNCHANGED,
    )
    async def get_file(request: Request, tenant: Tenant, id: FrameId) -> Response:
        """The original that answers a request, as the box sent it. It was never decoded here: treat it as untrusted."""
        row = await images.row(tenant, id)
        if row.media_type is None:
            raise OtherForm(f"{id} is a frame: get its picture from /v1/frames/{id}/image")
        data = await asyncio.to_thread(store.frames.bitstream, tenant, row.id)
        if data is None:
            raise Gone(f"frame {row.id} is gone: {row.reason}")
        name = f"{row.id}.{files.MEDIA_TYPES[row.media_type]}"
        headers = cache_headers(row.digest) | files.HEADERS | NO_RANGES
        if has_already(request, headers):
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return Response(data, media_type=row.media_type, headers=headers)

    @routes.get(
        "/v1/frames/{id}/image",
        response_class=Response,
        responses=schemas.pictures(400, 401, 404, 409, 410, 422, 429, 503)
        | schemas.json_of(schemas.FrameBody, success=202)
        | UNCHANGED,
    )
    async def get_image(
        request: Request, tenant: Tenant, id: FrameId, format: Format, width: Width = None, wait: Seconds = 0.0
    ) -> Response:
        """The reconstruction. 202 with the frame's state if it is not ready within ``wait`` seconds."""
        if given := request.headers.get("if-none-match"):
            row = await images.row(tenant, id)
            headers = cache_headers(f"{row.digest}-{formats.variant(format.name, width)}") | format.headers
            matches = row.state is FrameState.DONE if given.strip() == "*" else headers["ETag"] in given
            if matches and row.state is not FrameState.FAILED and not row.erased:
                return Response(status_code=304, headers=headers)
        with images.waiter(tenant):
            work = images.image(tenant, id, format.name, width, min(wait, max_wait))
            row, image = await while_connected(request, work)
        if image is None:
            return JSONResponse(frame_json(row, bundles), 202, {"Retry-After": "1", "Cache-Control": "no-store"})
        headers = cache_headers(f"{row.digest}-{formats.variant(format.name, width)}") | format.headers | NO_RANGES
        return Response(image, media_type=formats.media_type(format.name), headers=headers)

    @routes.get(
        "/v1/frames/{id}/composed",
        response_class=Response,
        responses=schemas.pictures(400, 401, 404, 409, 410, 422, 429, 503)
        | schemas.json_of(schemas.FrameBody, success=202),
    )
    async def get_composed(
        request: Request, tenant: Tenant, id: FrameId, format: Format, width: Width = None, wait: Seconds = 0.0
    ) -> Response:
        """The reconstruction in the size of the original, with the answers to requests for regions painted in.

        The header ``X-Composed-From`` and the file's EXIF name the answers. 202 while not all of them are decoded.
        """
        with images.waiter(tenant):
            work = images.composed(tenant, id, format.name, width, min(wait, max_wait))
            row, answers, image = await while_connected(request, work)
        if image is None:
            return JSONResponse(frame_json(row, bundles), 202, {"Retry-After": "1", "Cache-Control": "no-store"})
        headers = {"X-Composed-From": ", ".join(map(str, answers)), "Cache-Control": "no-store"}
        return Response(image, media_type=formats.media_type(format.name), headers=headers | format.headers | NO_RANGES)

    @routes.get(
        "/v1/frames/{id}/sizes",
        response_model=None,
        responses=schemas.json_of(schemas.SizesBody, 400, 401, 404, 409, 410, 422, 429, 503)
        | {
            202: {
                "description": "It is not decoded yet.",
                "content": {"application/json": {"schema": {"type": "null"}}},
            }
        },
    )
    async def sizes(request: Request, tenant: Tenant, id: FrameId) -> Response:
        """Bytes of the frame, and of its reconstruction as PNG and JPEG (quality 75). 202 while it is not decoded."""
        with images.waiter(tenant):
            found = await while_connected(request, images.sizes(tenant, id))
        caching = "private, max-age=3600" if found else "no-store"
        return JSONResponse(found, 200 if found else 202, {"Cache-Control": caching})

    return routes
