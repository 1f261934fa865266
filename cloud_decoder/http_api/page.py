"""The page at ``/`` and what only it asks: its files, sizes beside PNG and JPEG, and the way to an edge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from aeic_service.errors import ServiceError
from aeic_service.request_body import Limits, read_body
from cloud_decoder.errors import UnknownFrame
from cloud_decoder.http_api.requests import frame_id, while_connected

if TYPE_CHECKING:
    from cloud_decoder.http_api.routes import Parts

STATIC = Path(__file__).parent / "static"
FILES = frozenset(path.name for path in STATIC.iterdir() if path.suffix in {".js", ".css", ".svg"})
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def install(app: FastAPI, parts: Parts, tenant_of: Callable[[Request], Awaitable[str]]) -> None:
    """Add the page's routes. ``tenant_of`` says who asks, or raises ``NotAllowed``."""
    settings, image_service, edge_proxy = parts.settings, parts.image_service, parts.edge_proxy
    upload = Limits(settings.max_upload_bytes, settings.body_timeout_seconds, "AEIC_CLOUD_MAX_UPLOAD_BYTES")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    @app.get("/viewer/{name}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in FILES:
            raise UnknownFrame("there is no such file")
        return FileResponse(STATIC / name, headers=PAGE_HEADERS)

    @app.get("/v1/frames/{id}/sizes")
    async def sizes(request: Request, id: str, tenant: str = Depends(tenant_of)) -> Response:
        """Bytes of the frame, and of its reconstruction as PNG and JPEG (quality 75). 202 while it is not decoded."""
        with image_service.waiter():
            found = await while_connected(request, image_service.sizes(tenant, frame_id(id)))
        caching = "private, max-age=3600" if found else "no-store"
        return JSONResponse(found, 200 if found else 202, {"Cache-Control": caching})

    @app.get("/v1/edge")
    async def edge(tenant: str = Depends(tenant_of)) -> dict[str, Any]:
        """The edge that encodes pictures dropped on the page: whether there is one, its spool and its link."""
        if not edge_proxy.serves(tenant):
            return {"configured": False, "detail": edge_proxy.why_not()}
        try:
            return {"configured": True, "reachable": True, **await edge_proxy.status()}
        except ServiceError as error:
            return {"configured": True, "reachable": False, "detail": str(error)}

    @app.post("/v1/encode", status_code=202)
    async def encode(
        request: Request,
        tenant: str = Depends(tenant_of),
        rate: str | None = Query(None, max_length=32, description="rate point, number or name"),
    ) -> dict[str, Any]:
        """A JPEG, PNG or WebP file in the body goes to the configured edge; the answer names the frame to come."""
        with edge_proxy.place(tenant):
            picture = await read_body(request, upload)
            return await edge_proxy.encode(picture, rate)
