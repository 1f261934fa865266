"""Parameters that several routes have."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request

from cloud_decoder.auth import Tokens
from cloud_decoder.http_api.requests import frame_id


async def _tenant(request: Request) -> str:
    tokens: Tokens = request.app.state.tokens
    return tokens.tenant_of_header(request.headers.get("authorization"))


async def _frame_id(id: str) -> UUID:
    return frame_id(id)


Tenant = Annotated[str, Depends(_tenant)]
"""The tenant of the request's bearer token; ``NotAllowed`` without a valid one."""
FrameId = Annotated[UUID, Depends(_frame_id)]
"""The frame id in the path. Declare it after :data:`Tenant`: a request without a token learns nothing of ids."""
Wait = Annotated[float, Query(ge=0, le=86400, allow_inf_nan=False, description="seconds; cut at the service's limit")]
Width = Annotated[int | None, Query(ge=16, le=8192, description="pixels; only ever narrower")]
