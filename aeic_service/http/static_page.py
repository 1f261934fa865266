"""A page of static files: served from a folder, under a policy that allows nothing from other hosts.

The style sheet is sent inside the page, so that a browser paints after one request.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response
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
_SHEET = '<link rel="stylesheet" href="/viewer/style.css">'
_SERVED = {".js", ".css", ".svg", ".json", ".jpg", ".webp", ".avif"}
_AVIF = {".avif": "image/avif"}  # not known to mimetypes before Python 3.13


def files(folder: Path) -> dict[str, Path]:
    """The files that a page loads, by their names in URLs. They are listed once, so that no URL becomes a path."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in _SERVED}


def whole(folder: Path) -> tuple[str, dict[str, str]]:
    """``index.html`` with ``style.css`` in the place of its link, and the headers that allow no other style inside."""
    style = (folder / "style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["Content-Security-Policy"].replace("style-src 'self'", f"style-src 'self' 'sha256-{digest}'")
    text = (folder / "index.html").read_text().replace(_SHEET, f"<style>{style}</style>")
    return text, HEADERS | {"Content-Security-Policy": policy}


def router(folder: Path) -> APIRouter:
    """``index.html`` of a folder at ``/``, and the files beside it under ``/viewer/``."""
    routes = APIRouter()
    served = files(folder)
    text, headers = whole(folder)

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(text, headers=headers)

    @routes.get("/viewer/{name:path}", include_in_schema=False)
    async def viewer(name: str) -> Response:
        if name not in served:
            raise HTTPException(404, "the page has no such file")
        return FileResponse(served[name], media_type=_AVIF.get(served[name].suffix), headers=HEADERS)

    return routes
