"""Static pages of both services: their policy, and nothing but the files that were there at the start."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from aeic_service.http import static_page
from cloud_decoder.http_api.routers import page
from edge_encoder.http_api import routes

FOLDERS = {"cloud": page.STATIC, "edge": routes.STATIC}


@pytest.mark.parametrize("side", FOLDERS)
def test_every_file_has_the_policy_and_names_no_other_host(side: str) -> None:
    app = FastAPI()
    app.include_router(static_page.router(FOLDERS[side]))
    client = TestClient(app)
    for path in ("/", *(f"/viewer/{name}" for name in static_page.files(FOLDERS[side]))):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy, path
        if path.endswith((".js", ".css", "/")):
            loads = answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in loads and "https://" not in loads and "style=" not in loads, path


@pytest.mark.parametrize("side", FOLDERS)
def test_the_page_has_its_style_in_it_and_allows_no_other(side: str) -> None:
    """So that a browser paints after one request."""
    app = FastAPI()
    app.include_router(static_page.router(FOLDERS[side]))
    answer = TestClient(app).get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8" and "stylesheet" not in answer.text
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.S)
    assert style == (FOLDERS[side] / "style.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'self' 'sha256-{digest}';" in answer.headers["content-security-policy"]


def test_a_name_never_becomes_a_path(tmp_path: Path) -> None:
    (tmp_path / "static" / "in").mkdir(parents=True)
    (tmp_path / "secret.js").write_text("")
    (tmp_path / "static" / "index.html").write_text("")
    (tmp_path / "static" / "style.css").write_text("")
    (tmp_path / "static" / "in" / "a.js").write_text("")
    app = FastAPI()
    app.include_router(static_page.router(tmp_path / "static"))
    client = TestClient(app)
    assert client.get("/viewer/in/a.js").status_code == 200
    (tmp_path / "static" / "late.js").write_text("")
    for name in ("../secret.js", "%2e%2e/secret.js", "in%2f..%2f..%2fsecret.js", "index.html", "in", "late.js"):
        assert client.get(f"/viewer/{name}").status_code == 404, name
