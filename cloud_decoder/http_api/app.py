"""The HTTP application: the rules of both services, the cloud's metrics and its routers."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.types import Scope

from aeic_service.http.app import new_app
from aeic_service.http.request_timing import Observe, RequestTiming
from cloud_decoder.auth import Tokens
from cloud_decoder.metrics import Metrics
from cloud_decoder.settings import Settings


def build_app(settings: Settings, tokens: Tokens, metrics: Metrics, routers: Iterable[APIRouter]) -> FastAPI:
    """The application that serves ``routers``, and ``/docs`` with their description."""
    about = "Receives frames, stores them and serves their pictures."
    app = new_app("AEIC cloud", about, settings, [Middleware(RequestTiming, _observer(metrics))])
    app.state.tokens = tokens
    for router in routers:
        app.include_router(router)
    return app


def _observer(metrics: Metrics) -> Observe:
    """Counts and times requests by their route. An event stream lasts as long as its client wants."""

    def observe(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        metrics.requests.labels(route, f"{status // 100}xx").inc()
        if route != "/v1/events":
            metrics.request_seconds.labels(route).observe(seconds)

    return observe
