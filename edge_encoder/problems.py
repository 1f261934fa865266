"""Errors as RFC 9457 problem+json: {type, title, status, detail}. One place maps our error tree to HTTP."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from aeic.errors import AeicError
from edge_encoder.encode_queue import Busy

log = logging.getLogger("aeic.edge.http")

PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:aeic:unsupported-format"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, and what to do about it."},
    },
}


def problem(status: int, detail: str, kind: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer; `kind` is a short kebab-case name, by default the status's phrase."""
    title = HTTPStatus(status).phrase
    name = kind or title.lower().replace(" ", "-")
    body = {"type": f"urn:aeic:{name}", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Every error the app can raise becomes a problem; an unforeseen one is logged in full and told in short."""

    @app.exception_handler(AeicError)
    async def _ours(request: Request, error: AeicError) -> JSONResponse:
        headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, Busy) else None
        if error.http_status == HTTPStatus.INSUFFICIENT_STORAGE:
            headers = {"Retry-After": "30"}
        return problem(error.http_status, str(error), _kebab(type(error).__name__), headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return problem(422, "; ".join(parts)[:1000], "invalid-parameter")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("unforeseen error at %s %s", request.method, request.url.path, exc_info=error)
        return problem(500, "an error of this program; its log has the details")


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")
