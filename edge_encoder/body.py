"""Reads a request's body with three limits: its size, the time it may take, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_encoder.service import EdgeService

# An answer sent while the client still writes may be lost with the connection; so a refused body is first read and
# thrown away, up to this much and this long.
_DISCARD_BYTES = 8 << 20
_DISCARD_SECONDS = 0.5


async def body_size(request: Request, service: EdgeService) -> int:
    """What the body may become: its stated length, else the limit. HTTPException 413."""
    limit = service.settings.max_body_bytes
    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() else limit
    if size > limit:
        await discard(request)
        raise _too_large(limit)
    return size


async def read_body(request: Request, service: EdgeService, size: int) -> bytes:
    """The whole body, of body_size(). HTTPException 400 (hung up), 408 (too slow), 413 (too large), or Busy."""
    limit = service.settings.max_body_bytes
    with service.upload(size):
        received = bytearray()
        try:
            async with asyncio.timeout(service.settings.read_timeout_seconds):
                async for chunk in request.stream():
                    received += chunk
                    if len(received) > limit:
                        raise _too_large(limit)
        except TimeoutError:
            seconds = service.settings.read_timeout_seconds
            raise HTTPException(
                408, f"the body did not arrive within {seconds:g} s; send it faster or smaller", {"Connection": "close"}
            ) from None
        except ClientDisconnect:
            raise HTTPException(400, "the client hung up before the body was complete") from None
        return bytes(received)


async def discard(request: Request) -> None:
    """Reads and forgets what the client is still sending, within bounds."""
    seen = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: read before
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > _DISCARD_BYTES:
                    return


def _too_large(limit: int) -> HTTPException:
    return HTTPException(
        413, f"the body is over {limit} bytes; send a smaller file or raise AEIC_EDGE_MAX_BODY_BYTES",
        {"Connection": "close"},
    )  # fmt: skip
