"""The HTTP application: the rules of both services, the cloud's metrics and its routers."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from aeic_service.app import new_app
from cloud_decoder.auth import Tokens
from cloud_decoder.http_api.middleware import RequestMetrics
from cloud_decoder.metrics import Metrics
from cloud_decoder.settings import Settings


def build_app(settings: Settings, tokens: Tokens, metrics: Metrics, routers: Iterable[APIRouter]) -> FastAPI:
    """The application that serves ``routers``, and ``/docs`` with their description."""
    about = "Receives frames, stores them and serves their pictures."
    app = new_app("AEIC cloud", about, settings, [Middleware(RequestMetrics, metrics=metrics)])
    app.state.tokens = tokens
    for router in routers:
        app.include_router(router)
    return app
