"""Errors as RFC 9457 problem+json, by one rule for each status at both services.

The error tree says the status and its class name becomes the type (``BodyTooLarge``: ``urn:aeic:body-too-large``), so
that a client may tell two kinds of 400 or 503 apart.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from aeic.errors import AeicError, BitstreamError, InputError
from aeic_service.errors import InvalidParameter, ServiceError

log = logging.getLogger("aeic.http")

SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:aeic:unsupported-format"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, and what to do about it."},
    },
}
NAMED = {"$ref": "#/components/schemas/Problem"}
"""The same in an OpenAPI description, which :func:`install` gives the component."""
ANY = {"description": "A problem", "content": {"application/problem+json": {"schema": NAMED}}}
"""What the OpenAPI description says of any status that it does not name."""
# The standard library renamed the first two in Python 3.13, and does not know nginx's 499.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}
STRIPPED = "aeic.stripped"
"""In the scope of a request whose body looks as if ``curl -d`` had taken bytes out of it."""
_STRIPPED_REMEDY = "`curl -d` removes line ends and zero bytes from a file, send it with `curl --data-binary @FILE`"
_FULL_DISK_SECONDS = 30
_MEMORY_SECONDS = 5
_LONGEST_DETAIL = 500


def problem(status: int, detail: str, kind: str = "", headers: Mapping[str, str] | None = None) -> Response:
    """A problem+json answer. ``kind`` is a short kebab-case name, by default the status's phrase."""
    return JSONResponse(body(status, detail, kind), status, headers, media_type="application/problem+json")


def problem_of(error: AeicError) -> Response:
    """The answer for an error of the tree."""
    headers = {}
    retry_after = error.retry_after if isinstance(error, ServiceError) else None
    if error.http_status == HTTPStatus.INSUFFICIENT_STORAGE and retry_after is None:
        retry_after = _FULL_DISK_SECONDS
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if error.http_status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not worth reading
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.http_status, str(error), _type_of(error), headers)


def responses(examples: Mapping[int, str], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI description says of these statuses; ``examples`` has a detail for each."""
    return {
        status: {
            "description": title(status),
            "content": {"application/problem+json": {"schema": NAMED, "example": body(status, examples[status], "")}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem. An unforeseen one is logged; its words do not reach the client."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, AeicError)
        if isinstance(error, InputError | BitstreamError) and request.scope.get(STRIPPED):
            return problem(error.http_status, f"{error}; {_STRIPPED_REMEDY}", _type_of(error))
        if error.http_status >= 500 and not isinstance(error, ServiceError):
            log.error("%s at %s %s", error, request.method, request.url.path, exc_info=error)
        return problem_of(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        return problem_of(InvalidParameter(said[:_LONGEST_DETAIL]))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND and error.detail == "Not Found":  # by the router, not by a route
            return problem(404, _no_route(request))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = _methods(request)
            detail = f"{request.method[:16]} is not possible here: this route takes {methods}"
            return problem(405, detail, headers={"Allow": methods})
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def no_memory(request: Request, error: Exception) -> Response:
        log.error("no memory at %s %s", request.method, request.url.path, exc_info=error)
        detail = f"this machine has too little memory for it now: try again in {_MEMORY_SECONDS} s"
        return problem(503, detail, "out-of-memory", {"Retry-After": str(_MEMORY_SECONDS)})

    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("unforeseen error at %s %s", request.method, request.url.path, exc_info=error)
        return problem(500, "an internal error; the service's log has the details")

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description.setdefault("components", {}).setdefault("schemas", {})["Problem"] = SCHEMA
        return description

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the description
    app.add_exception_handler(AeicError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(MemoryError, no_memory)
    app.add_exception_handler(Exception, unforeseen)


def body(status: int, detail: str, kind: str = "") -> dict[str, Any]:
    """The members of a problem."""
    phrase = title(status)
    name = kind or phrase.lower().replace(" ", "-")
    return {"type": f"urn:aeic:{name}", "title": phrase, "status": status, "detail": detail}


def title(status: int) -> str:
    """The phrase of a status, the same on every version of Python."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def _no_route(request: Request) -> str:
    known = list(request.app.openapi()["paths"])
    nearest = difflib.get_close_matches(request.url.path, known, 1) or [
        path for path in known if path.endswith(request.url.path)
    ]
    remedy = f"did you mean {nearest[0]}? " if nearest else ""
    return f"there is no such route: {remedy}GET /docs lists them all"  # without the path, which may be hostile


def _methods(request: Request) -> str:
    """All methods of the path, where the router names those of its first route only."""
    found = {
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))


def _type_of(error: AeicError) -> str:
    name = type(error).__name__
    return error.problem_type or "".join(f"-{c.lower()}" if c.isupper() else c for c in name).strip("-")
