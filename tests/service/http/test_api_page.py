"""The page at /docs: every route, nothing from another host, nothing that a browser would run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from fastapi.testclient import TestClient

from aeic_service.http import api_page
from cloud_decoder.http_api.app import build_app
from cloud_decoder.http_api.routers import decode, frames, status
from cloud_decoder.metrics import Metrics
from cloud_decoder.settings import Settings
from edge_encoder.http_api import routes as edge
from edge_encoder.metrics import Metrics as EdgeMetrics
from edge_encoder.settings import EdgeSettings

DESCRIPTION = {
    "info": {"title": "A <b>service</b>", "version": "1.2"},
    "paths": {
        "/v1/things/{id}": {
            "post": {
                "summary": "Make <script>alert(1)</script>",
                "parameters": [
                    {
                        "name": "width",
                        "in": "query",
                        "description": "pixels",
                        "schema": {"anyOf": [{"type": "integer", "minimum": 16, "maximum": 64}, {"type": "null"}]},
                    },
                    {"name": "wait", "in": "query", "schema": {"enum": ["here", "there"], "default": "here"}},
                ],
                "requestBody": {"description": "One file.", "content": {"image/png": {}}},
                "responses": {
                    "200": {"description": "There.", "content": {"application/json": {"example": {"id": "<i>"}}}},
                    "202": {
                        "description": "Taken.",
                        "content": {"application/json": {"examples": {"a": {"summary": "A & b.", "value": [7]}}}},
                    },
                    "429": {"description": "Too many."},
                },
            }
        }
    },
}


def test_the_page_lists_everything_and_escapes_it() -> None:
    page = api_page.render(DESCRIPTION)
    for part in (
        "POST /v1/things/{id}",
        "query, integer, from 16, to 64. pixels",
        "query, here or there, here by default",
        "<td>image/png<td>One file.",
        "<td>429<td>Too many.",
        "A &lt;b&gt;service&lt;/b&gt;",
        "&quot;id&quot;: &quot;&lt;i&gt;&quot;",
        "<h3>Example, 202</h3><p>A &amp; b.</p><pre>[\n 7\n]",
    ):
        assert part in page, part
    assert "<script" not in page and "//" not in page


def test_both_services_show_it() -> None:
    """Their routes are built by hand here: no picture is decoded for a page."""
    nothing = cast(Any, None)
    routers = [
        frames.router(nothing, nothing, {}, max_wait=60.0, public=True),
        decode.router(nothing, nothing, nothing, nothing, max_wait=60.0),
        status.router(nothing, nothing, nothing, nothing, nothing),
    ]
    box = SimpleNamespace(settings=EdgeSettings(), metrics=EdgeMetrics())
    for app in (edge.create_app(cast(Any, box)), build_app(Settings(), nothing, Metrics(), routers)):
        with TestClient(app) as client:
            answer = client.get("/docs")
            assert answer.status_code == 200 and "/v1/frames/{id}" in answer.text and "cdn" not in answer.text
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert client.get("/redoc").status_code == 404
