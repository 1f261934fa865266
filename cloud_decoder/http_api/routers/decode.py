"""Decoding without storing: a bitstream in the request, its picture in the response."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from aeic_service.budgets import Budget
from aeic_service.http.disconnects import while_connected
from aeic_service.http.parameters import Seconds
from aeic_service.http.request_body import BodyLimits, read_body
from cloud_decoder.admission import Admission
from cloud_decoder.decode_backend import DecodeBackend, Decoded
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Format, Tenant, Width
from cloud_decoder.images import formats


def router(
    backend: DecodeBackend, admission: Admission, bodies: Budget, body_limits: BodyLimits, *, max_wait: float
) -> APIRouter:
    """``max_wait`` seconds limit ``timeout=``."""
    routes = APIRouter(tags=["decode"])

    @routes.post(
        "/v1/decode",
        response_class=Response,
        responses=schemas.pictures(400, 401, 408, 413, 422, 429, 503),
        openapi_extra=schemas.body_of("The bytes of one .aeic file.", "application/octet-stream"),
    )
    async def decode(
        request: Request, tenant: Tenant, format: Format, width: Width = None, timeout: Seconds | None = None
    ) -> Response:
        """Decode the bitstream in the body and return its picture; nothing is stored."""
        data = await read_body(request, body_limits, bodies, tenant)
        seconds = max_wait if timeout is None else min(timeout, max_wait)
        frame = backend.check(data)

        async def work() -> tuple[Decoded, bytes, float]:
            with await admission.enter(tenant, frame, seconds) as place:
                decoded = await backend.decode(data, timeout=place.seconds_left)
                started = time.monotonic()
                image = await backend.encode(decoded.picture, format.name, width)
            return decoded, image, time.monotonic() - started

        decoded, image, image_seconds = await while_connected(request, work())
        stages = decoded.timings | {"image": image_seconds}
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages.items()),
            "X-Latents-Digest": decoded.latents_digest,
            "Cache-Control": "no-store",
        }
        return Response(image, media_type=formats.media_type(format.name), headers=headers | format.headers)

    return routes
