"""Decoding without storing: a bitstream in the request, its picture in the response."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.http_api.dependencies import Tenant, Wait, Width
from cloud_decoder.http_api.requests import read_body, while_connected
from cloud_decoder.images import formats


def router(backend: DecodeBackend, *, max_wait: float, max_bytes: int, body_timeout: float) -> APIRouter:
    """``max_wait`` and ``body_timeout`` in seconds, ``max_bytes`` of the bitstream."""
    routes = APIRouter()

    @routes.post("/v1/decode")
    async def decode(
        request: Request, tenant: Tenant, format: str = "png", width: Width = None, timeout: Wait | None = None
    ) -> Response:
        """A bitstream in the body, its picture in the answer; nothing is stored."""
        media_type = formats.media_type(format)
        data = await read_body(request, max_bytes, body_timeout)
        seconds = max_wait if timeout is None else min(timeout, max_wait)
        decoded = await while_connected(request, backend.decode(data, timeout=seconds))
        started = time.monotonic()
        image = await backend.encode(decoded.picture, format, width)
        stages = decoded.timings | {"image": time.monotonic() - started}
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages.items()),
            "X-Latents-Digest": decoded.latents_digest,
            "Cache-Control": "no-store",
        }
        return Response(image, media_type=media_type, headers=headers)

    return routes
