"""What the rules for all errors answer to those that are no AeicError."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from aeic_service.http import problems


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(MemoryError(), 503, "urn:aeic:out-of-memory"), (RuntimeError("secret"), 500, "urn:aeic:internal-server-error")],
    ids=["memory", "unforeseen"],
)
async def test_errors_of_the_machine(error: Exception, status: int, kind: str) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fails() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/")
    assert answer.status_code == status and answer.json()["type"] == kind and "secret" not in answer.text
    assert ("Retry-After" in answer.headers) is (status == 503)
