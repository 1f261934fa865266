"""Errors as RFC 9457 problem+json: {type, title, status, detail}. One place maps our error tree to HTTP."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from aeic.errors import AeicError
from edge_encoder.encoding.encode_queue import Busy

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


_EXAMPLES = {
    400: "no rate point 'r9' in aeic-se-nano: choose one of 0 (r1, 0.0265 bpp), 1 (r2, 0.03 bpp)",
    404: "no frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e is known here; finished ones are forgotten after some time",
    408: "the body did not arrive within 20 s; send it faster or smaller",
    409: "id 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e belongs to another picture; use a fresh id for each picture",
    413: "the picture is 9000x20: at most 67108864 pixels and 8192 a side are taken, scale it down",
    415: "this is GIF: send JPEG, PNG or WebP",
    422: "the picture is cut short or damaged: send it again in full",
    429: "9 pictures are being encoded or wait; come again in 1 s, or raise AEIC_EDGE_ENCODE_QUEUE_FRAMES",
    503: "the service is stopping; try again shortly",
    507: "the spool holds 268435456 of 268435456 bytes; wait for the uplink or raise AEIC_EDGE_SPOOL_MAX_BYTES",
}


def example(status: int) -> dict[str, Any]:
    """A problem of that status as the OpenAPI description shows it."""
    title = HTTPStatus(status).phrase
    kind = title.lower().replace(" ", "-")
    return {"type": f"urn:aeic:{kind}", "title": title, "status": status, "detail": _EXAMPLES[status]}


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
