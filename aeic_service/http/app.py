"""The FastAPI app that each service adds its routes to, with the rules that hold for every route of both services."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import aeic
from aeic_service.errors import InvalidParameter, UnknownParameter
from aeic_service.http import api_page, problems
from aeic_service.http.head import Head
from aeic_service.http.origins import Origins, split
from aeic_service.settings import ServiceSettings

_EXPOSED = ["ETag", "Link", "Location", "Retry-After", "Server-Timing", "X-Latents-Digest"]


def new_app(title: str, about: str, settings: ServiceSettings, middleware: Sequence[Middleware] = ()) -> FastAPI:
    """An app with ``/openapi.json`` and ``/docs``; every error is a problem, HEAD works wherever GET does, a trailing
    slash means the same, unknown query parameters, foreign hosts and foreign origins are refused.

    ``middleware`` is the service's own and sees every request, those refused by these rules too.
    """
    shared = [Middleware(Head), Middleware(_TrailingSlash), *middleware, Middleware(_NoSniff)]
    shared.append(Middleware(Origins, settings.allowed_hosts, settings.cors_origins, settings.prefix))
    if origins := split(settings.cors_origins):
        every = ["*"]
        shared.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=every,
                allow_headers=every,
                expose_headers=_EXPOSED,
            )
        )
    app = FastAPI(
        title=title,
        version=aeic.__version__,
        summary=about,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=shared,
        dependencies=[Depends(_known_parameters)],
        # FastAPI would describe a malformed parameter as 422 with its own body.
        responses={"default": problems.ANY},
        generate_unique_id_function=lambda route: route.name,  # the names of functions in generated clients
    )
    problems.install(app)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page.render(app.openapi()), headers=api_page.HEADERS)

    return app


def prometheus_text(registry: CollectorRegistry) -> Response:
    """The answer of ``GET /metrics``."""
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _known_parameters(request: Request) -> None:
    """For routes under ``/v1``: ``UnknownParameter`` for a query parameter that the route does not have, and
    ``InvalidParameter`` for one that is given twice."""
    app, route = request.app, request.scope.get("route")
    path = getattr(route, "path_format", "")
    operation: dict[str, Any] = app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    if not operation or not path.startswith("/v1/"):
        return
    known = [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            nearest = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, known, 1))
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UnknownParameter(f"{path} has no query parameter {name[:40]!r}: {takes}{nearest}")
        if given.count(name) > 1:
            raise InvalidParameter(f"{name} is given {given.count(name)} times: give it once")


class _TrailingSlash:
    """``/v1/frames/`` means ``/v1/frames``. A redirect would cost a second upload, and name the wrong host behind a
    proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"][:-1]}
        await self._app(scope, receive, send)


class _NoSniff:
    """Browsers take every answer for what it says it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self._app(scope, receive, watch if scope["type"] == "http" else send)
