"""The page at ``/``: its files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parents[1] / "static"
_SERVED = {".js", ".css", ".svg", ".json", ".jpg", ".webp", ".avif"}
FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in _SERVED}
_AVIF = {".avif": "image/avif"}  # not known to mimetypes before Python 3.13
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


def router() -> APIRouter:
    """The page and the files that it loads."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    @routes.get("/viewer/{name:path}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "the page has no such file")
        return FileResponse(FILES[name], media_type=_AVIF.get(FILES[name].suffix), headers=PAGE_HEADERS)

    return routes
