"""Deleting frames: one, or those of a source."""

from __future__ import annotations

import urllib.parse
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from aeic_service.http.parameters import FrameId
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.deletion import Deletion
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.serializers import milliseconds


def router(deletion: Deletion) -> APIRouter:
    """The routes that delete."""
    routes = APIRouter(tags=["frames"])

    @routes.delete(
        "/v1/frames/{id}",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "The frame is deleted."}, **schemas.refusals(400, 401, 403, 404, 503)},
    )
    async def delete_frame(tenant: Tenant, id: FrameId) -> Response:
        """Delete a frame with its pictures and the answers to requests about it.

        Its state becomes ``pruned``; its bitstream is removed after the grace period. Deleting it again changes
        nothing, and a delivery of the same id does not bring it back.
        """
        await deletion.frame(tenant, id)
        return Response(status_code=204)

    @routes.delete(
        "/v1/frames",
        response_model=None,
        responses=schemas.json_of(schemas.DeletedBody, 400, 401, 403, 503),
    )
    async def delete_frames(
        request: Request,
        tenant: Tenant,
        source: Annotated[str, Query(min_length=1, max_length=128, description="The source of the frames.")],
        since: datetime | None = None,
        until: datetime | None = None,
        cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
    ) -> dict[str, Any]:
        """Delete the frames of a source that arrived from ``since`` on and before ``until``.

        A request looks at 20,000 frames at most. While ``next`` is not null, send DELETE to that path to continue.
        """
        span = milliseconds(since), milliseconds(until)
        deleted, after = await deletion.source(tenant, source, *span, 0 if cursor is None else int(cursor))
        following = None
        if after is not None:
            asked = dict(request.query_params) | {"cursor": str(after)}
            following = f"/v1/frames?{urllib.parse.urlencode(asked)}"
        return {"deleted": deleted, "next_cursor": None if after is None else str(after), "next": following}

    return routes
