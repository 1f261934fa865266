"""The edge and its HTTP API in this process, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from edge_encoder.http_api.routes import create_app
from edge_encoder.service import EdgeService
from tests.support.edge.fakes import settings


@contextlib.asynccontextmanager
async def edge(folder: Path, bundle: Path, **changes: object) -> AsyncIterator[tuple[httpx.AsyncClient, EdgeService]]:
    service = EdgeService(settings(folder, bundle=bundle, **{"drain_timeout_seconds": 0.0, **changes}))
    await service.start()
    # As uvicorn does: an exception of ours is an answer, not a crash of the test.
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client, service
    await service.stop()


def is_problem(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail"} and body["status"] == status
    for word in words:
        assert word.lower() in body["detail"].lower(), body
