"""The HTTP application: routers, error handlers and middleware."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response

import aeic
from aeic_service import api_page, problems
from aeic_service.head import Head
from cloud_decoder.auth import Tokens
from cloud_decoder.http_api.middleware import RequestMetrics
from cloud_decoder.metrics import Metrics


def build_app(tokens: Tokens, metrics: Metrics, routers: Iterable[APIRouter]) -> FastAPI:
    """The application that serves ``routers``, and ``/docs`` with their description."""
    about = "Frames in, pictures out."
    app = FastAPI(title="AEIC cloud", version=aeic.__version__, description=about, docs_url=None, redoc_url=None)
    app.state.tokens = tokens
    problems.install(app)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_middleware(Head)
    for router in routers:
        app.include_router(router)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page.render(app.openapi()), headers=api_page.HEADERS)

    return app
