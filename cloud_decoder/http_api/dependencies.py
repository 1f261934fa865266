"""Parameters that several routes of the cloud have."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer

from cloud_decoder.auth import Tokens

_BEARER = HTTPBearer(auto_error=False, description="Needed where AEIC_CLOUD_TOKENS is set; it decides the tenant.")


async def _tenant(request: Request, _: Annotated[object, Security(_BEARER)]) -> str:
    tokens: Tokens = request.app.state.tokens
    return tokens.tenant_of_header(request.headers.get("authorization"))


Tenant = Annotated[str, Depends(_tenant)]
"""The tenant of the request's bearer token; ``NotAllowed`` without a valid one."""
Width = Annotated[int | None, Query(ge=16, le=8192, description="pixels; a picture is never made wider")]
