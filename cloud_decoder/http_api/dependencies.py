"""Parameters that several routes of the cloud have."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from cloud_decoder.auth import Tokens


async def _tenant(request: Request) -> str:
    tokens: Tokens = request.app.state.tokens
    return tokens.tenant_of_header(request.headers.get("authorization"))


Tenant = Annotated[str, Depends(_tenant)]
"""The tenant of the request's bearer token; ``NotAllowed`` without a valid one."""
Width = Annotated[int | None, Query(ge=16, le=8192, description="pixels; a picture is never made wider")]
