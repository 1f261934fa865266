"""The page's own routes: its policy, sizes beside PNG and JPEG, and uploads to an edge that may fail."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from aeic_service.http import static_page
from cloud_decoder.http_api import edge_proxy
from cloud_decoder.http_api.routers import page
from cloud_decoder.inference.decoder import Decoder
from tests.support.cloud.cloud import FakeGenerator, running_cloud
from tests.support.frames import MakeFrame, new_frame

ID = "0198c0de-0000-7000-8000-000000000000"
FRAME = {"id": ID, "width": 64, "height": 48, "bytes": 700, "bpp": 1.8, "rate": 0, "encode_ms": 3.5, "secret": "x"}
SPOOL = {"frames": 2, "bytes": 99, "oldest_seconds": 1.5}
STATUS = {"source_id": "roof", "spool": SPOOL, "uplink": {"state": "connected"}}


class FakeEdge:
    """An HTTP server with a canned answer; it remembers what it received."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (202, json.dumps(FRAME).encode())
        self.got: list[tuple[str, bytes, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                fake.got.append((self.path, body, self.headers))
                fake.gate.wait(20)
                self._say(*fake.answer)

            def do_GET(self) -> None:
                self._say(200, json.dumps(STATUS).encode())

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def edge() -> Iterator[FakeEdge]:
    made = FakeEdge()
    yield made
    made.stop()


async def test_the_page_and_its_policy(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        for path in ("/", *(f"/viewer/{name}" for name in static_page.files(page.STATIC))):
            answer = await http.get(path)
            policy = answer.headers["content-security-policy"]
            assert answer.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        text = (await http.get("/")).text
        assert "http://" not in text and "https://" not in text and "style=" not in text and "onclick" not in text
        assert (await http.get("/viewer/compare/owl-avif.avif")).headers["content-type"] == "image/avif"
        for name in (
            "../api.py",
            "index.html",
            "compare/../index.html",
            "compare",
            "compare/nothing.webp",
            "nothing.js",
            "..%2fpage.py",
        ):
            assert (await http.get(f"/viewer/{name}")).status_code == 404


async def test_sizes_beside_png_and_jpeg(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    new = new_frame(make_frame(1))

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        generator.gate.clear()
        cloud.store.frames.add([new], time.time())
        cloud.commits.announce([new])
        assert (await http.get(f"/v1/frames/{new.id}/sizes")).status_code == 202
        sources = (await http.get("/v1/sources")).json()["sources"]
        assert [(one["source"], one["waiting"]) for one in sources] == [("box-1", 1)]
        generator.gate.set()
        assert (await http.get(f"/v1/frames/{new.id}/image?wait=20")).status_code == 200
        sizes = (await http.get(f"/v1/frames/{new.id}/sizes")).json()
        assert sizes["frame"] == len(new.bitstream) and sizes["png"] > 100 and sizes["jpeg"] > 100
        assert (await http.get(f"/v1/frames/{new.id}/sizes")).json() == sizes
        assert (await http.get("/v1/sources")).json()["sources"][0]["waiting"] == 0
        assert (await http.get(f"/v1/frames/{ID}/sizes")).status_code == 404


async def test_a_picture_goes_through_the_edge(decoder: Decoder, edge: FakeEdge, tmp_path: Path) -> None:
    options = {"edge_url": edge.url, "max_upload_bytes": 2000}
    async with running_cloud(decoder, tmp_path, **options) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        answer = await http.post("/v1/encode?rate=r1%26x", content=b"a picture")
        assert answer.status_code == 202 and answer.json() == {k: v for k, v in FRAME.items() if k != "secret"}
        (path, body, headers) = edge.got[0]
        assert (path, body, headers["x-source-id"]) == ("/v1/frames?rate=r1%26x", b"a picture", "page")
        assert (await http.post("/v1/encode?target_bytes=1000", content=b"x")).status_code == 202
        assert edge.got[1][0] == "/v1/frames?target_bytes=1000"
        assert (await http.post("/v1/encode?target_bytes=1", content=b"x")).status_code == 400
        assert (await http.get("/v1/edge")).json() == {
            "configured": True, "reachable": True, "source": "roof", "waiting": 2, "waiting_bytes": 99,
            "oldest_seconds": 1.5, "link": "connected",
        }  # fmt: skip
        assert (await http.post("/v1/encode", content=bytes(3000))).status_code == 413
        refusals: list[tuple[int, bytes, int]] = [
            (415, b'{"detail": "send JPEG"}', 415),
            (429, b'{"detail": "come again"}', 429),
            (507, b'{"detail": "spool full"}', 503),
            (500, b"a traceback", 503),
            (202, b"no json", 503),
            (202, b"[1]", 503),
            (202, b'{"id": 7, "width": "wide"}', 503),
            (202, b"{" + b" " * 100_000, 503),
            (202, b"[" * 50_000, 503),
            (415, b'{"detail":' * 5_000, 503),
        ]
        for status, said, expected in refusals:
            edge.answer = (status, said)
            answer = await http.post("/v1/encode", content=b"x")
            assert answer.status_code == expected, (status, said[:20])
            assert answer.headers["content-type"] == "application/problem+json"
            assert "traceback" not in answer.text
        edge.answer = (202, json.dumps(FRAME).encode())
        edge.gate.clear()
        waiting = [asyncio.create_task(http.post("/v1/encode", content=b"x")) for _ in range(edge_proxy.AT_ONCE)]
        await asyncio.sleep(0.3)
        assert (await http.post("/v1/encode", content=b"x")).status_code == 429
        edge.gate.set()
        assert {(await one).status_code for one in waiting} == {202}
        edge.stop()
        answer = await http.post("/v1/encode", content=b"x")
        assert answer.status_code == 503 and "does not answer" in answer.json()["detail"]
        assert (await http.get("/v1/edge")).json()["reachable"] is False


async def test_only_its_own_tenant_has_the_edge(decoder: Decoder, edge: FakeEdge, tmp_path: Path) -> None:
    options = {"edge_url": edge.url, "edge_tenant": "a", "tokens": "a:token-of-a,b:token-of-b"}
    async with running_cloud(decoder, tmp_path, **options) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        for token, status in (("token-of-a", 202), ("token-of-b", 404), ("none-at-all", 401)):
            given = {"Authorization": f"Bearer {token}"}
            assert (await http.post("/v1/encode", content=b"x", headers=given)).status_code == status
        shown = (await http.get("/v1/edge", headers={"Authorization": "Bearer token-of-b"})).json()
        assert shown["configured"] is False and edge.url not in json.dumps(shown)
    assert len(edge.got) == 1
    async with running_cloud(decoder, tmp_path / "none") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        assert "AEIC_CLOUD_EDGE_URL" in (await http.get("/v1/edge")).json()["detail"]
        assert (await http.post("/v1/encode", content=b"x")).status_code == 404


def test_an_address_that_is_none_stops_the_start() -> None:
    for url in ("edge:8080", "file:///etc/passwd", "ftp://edge"):
        with pytest.raises(ValueError, match="AEIC_CLOUD_EDGE_URL"):
            edge_proxy.EdgeProxy(url, "")
