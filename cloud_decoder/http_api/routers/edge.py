"""The edge that encodes pictures dropped on the page."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from aeic_service.budgets import Budget
from aeic_service.errors import ServiceError
from aeic_service.http.parameters import JSON_NUMBER
from aeic_service.http.request_body import BodyLimits, read_body
from cloud_decoder.http_api import schemas
from cloud_decoder.http_api.dependencies import Tenant
from cloud_decoder.http_api.edge_proxy import EdgeProxy

TargetBytes = Annotated[int | None, Query(ge=64, le=1 << 20, description="approximate bytes of the frame"), JSON_NUMBER]
Rate = Annotated[str | None, Query(max_length=32, description="rate point, number or name")]


def router(edge_proxy: EdgeProxy, bodies: Budget, body_limits: BodyLimits) -> APIRouter:
    """The edge's status, and pictures for it to encode."""
    routes = APIRouter(tags=["edge"])

    @routes.get("/v1/edge", response_model=None, responses=schemas.json_of(schemas.EdgeBody, 401))
    async def edge(tenant: Tenant) -> dict[str, Any]:
        """The edge that encodes pictures dropped on the page: whether there is one, its spool and its link."""
        if not edge_proxy.serves(tenant):
            return {"configured": False, "detail": edge_proxy.why_not()}
        try:
            return {"configured": True, "reachable": True, **await edge_proxy.status()}
        except ServiceError as error:
            return {"configured": True, "reachable": False, "detail": str(error)}

    @routes.post(
        "/v1/encode",
        status_code=202,
        response_model=None,
        responses=schemas.json_of(schemas.EncodedBody, 400, 401, 404, 408, 413, 422, 429, 502, 503, success=202),
        openapi_extra=schemas.body_of(
            "The bytes of one JPEG, PNG, WebP or AVIF file.",
            "application/octet-stream",
            "image/jpeg",
            "image/png",
            "image/webp",
        ),
    )
    async def encode(
        request: Request, tenant: Tenant, rate: Rate = None, target_bytes: TargetBytes = None
    ) -> dict[str, Any]:
        """A picture file in the body goes to the configured edge; the answer names the frame to come."""
        edge_proxy.check(tenant)
        picture = await read_body(request, body_limits, bodies, tenant)
        return await edge_proxy.encode(picture, rate, target_bytes)

    return routes
