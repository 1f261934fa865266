"""Errors as HTTP problem+json (RFC 9457). The error's class has the status; this module has the form."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from aeic.errors import AeicError
from cloud_decoder.errors import ServiceError

log = logging.getLogger(__name__)


def problem(status: int, detail: str, kind: str = "", headers: dict[str, str] | None = None) -> Response:
    """A problem+json answer. ``kind`` is a short kebab-case name, by default the status's phrase, as at the edge."""
    title = _title(status)
    name = kind or title.lower().replace(" ", "-")
    body: dict[str, Any] = {"type": f"urn:aeic:{name}", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json", headers=headers)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # nginx's 499, for a client that has gone
        return "Client Closed Request"


def problem_of(error: AeicError) -> Response:
    """The answer for an error of the tree."""
    headers = {}
    if isinstance(error, ServiceError) and error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.http_status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not worth reading
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(error).__name__).strip("-")
    return problem(error.http_status, str(error), words, headers)


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem; what nobody foresaw is logged and told without its words."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, AeicError)
        if error.http_status >= 500 and not isinstance(error, ServiceError):
            log.error("%s", error, exc_info=error)
        return problem_of(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        return problem(400, said[:500], "invalid-parameter")

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    async def unforeseen(_: Request, error: Exception) -> Response:
        log.error("unforeseen error", exc_info=error)
        return problem(500, "an internal error; the service's log has it")

    app.add_exception_handler(AeicError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)
