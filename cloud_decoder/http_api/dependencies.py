"""Parameters that several routes of the cloud have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer

from aeic_service.http.parameters import JSON_NUMBER
from cloud_decoder.auth import Tokens
from cloud_decoder.images.formats import known_format
from cloud_decoder.images.negotiation import acceptable_format

_BEARER = HTTPBearer(auto_error=False, description="Needed where AEIC_CLOUD_TOKENS is set; it determines the tenant.")


async def _tenant(request: Request, _: Annotated[object, Security(_BEARER)]) -> str:
    tokens: Tokens = request.app.state.tokens
    return tokens.tenant_of_header(request.headers.get("authorization"))


Tenant = Annotated[str, Depends(_tenant)]
"""The tenant of the request's bearer token; ``NotAllowed`` without a valid one."""


@dataclass(frozen=True)
class ChosenFormat:
    """A picture's format, and the headers of answers that depend on how it was chosen."""

    name: str
    headers: dict[str, str]


async def _format(
    request: Request,
    format: Annotated[
        str | None, Query(description="png, webp, jpeg or avif; without it, the header Accept decides; by default png")
    ] = None,
) -> ChosenFormat:
    if format is not None:
        return ChosenFormat(known_format(format), {})
    accept = ", ".join(request.headers.getlist("accept"))
    return ChosenFormat(acceptable_format(accept), {"Vary": "Accept"})


Format = Annotated[ChosenFormat, Depends(_format)]
"""The format of the picture that is asked for: ``InvalidParameter`` or ``NotAcceptable`` if there is none. Declared
after the tenant."""
NO_RANGES = {"Accept-Ranges": "none"}
"""Of pictures and bitstreams. They are small, and pictures are made on demand, so a part would cost as much as all."""
Width = Annotated[int | None, Query(ge=16, le=8192, description="pixels; a picture is never made wider"), JSON_NUMBER]
