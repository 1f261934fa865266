"""A page of static files: served from a folder, under a policy that allows nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_SERVED = {".js", ".css", ".svg", ".json", ".jpg", ".webp", ".avif"}
_AVIF = {".avif": "image/avif"}  # not known to mimetypes before Python 3.13


def files(folder: Path) -> dict[str, Path]:
    """The files that a page loads, by their names in URLs. They are listed once, so that no URL becomes a path."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in _SERVED}


def router(folder: Path) -> APIRouter:
    """``index.html`` of a folder at ``/``, and the files beside it under ``/viewer/``."""
    routes = APIRouter()
    served = files(folder)

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(folder / "index.html", headers=HEADERS)

    @routes.get("/viewer/{name:path}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in served:
            raise HTTPException(404, "the page has no such file")
        return FileResponse(served[name], media_type=_AVIF.get(served[name].suffix), headers=HEADERS)

    return routes
