"""What one client or one tenant can hold: streams of events, bodies, pixels, and the edge beside the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from aeic.bitstream import HEADER_BYTES, Frame
from aeic.bundle import Bundle
from cloud_decoder.http_api.edge_proxy import EdgeProxy, EdgeUnreachable
from cloud_decoder.inference.decoder import Decoder
from tests.support.cloud.cloud import FakeGenerator, metric, running_cloud
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until

ACME, OTHER = ({"Authorization": f"Bearer token-of-{name}"} for name in ("acme", "other"))
TOKENS = "acme:token-of-acme,other:token-of-other"


@contextlib.asynccontextmanager
async def _events(http: httpx.AsyncClient, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    async with http.stream("GET", "/v1/events", headers=headers) as answer:
        yield answer


async def test_too_many_streams_of_events_are_refused_before_they_begin(decoder: Decoder, tmp_path: Path) -> None:
    limits = httpx.Limits(max_connections=None)
    async with (
        running_cloud(decoder, tmp_path, tokens=TOKENS, max_waiters=10) as cloud,
        httpx.AsyncClient(base_url=cloud.http, limits=limits, timeout=30) as http,
        contextlib.AsyncExitStack() as held,
    ):
        statuses = [(await held.enter_async_context(_events(http, ACME))).status_code for _ in range(12)]
        assert statuses == [200] * 8 + [429] * 4
        refused = await held.enter_async_context(_events(http, ACME))
        assert refused.headers["content-type"] == "application/problem+json" and "retry-after" in refused.headers
        assert (await held.enter_async_context(_events(http, OTHER))).status_code == 200
        await held.aclose()
        await until(lambda: cloud.waiters.held == 0)


async def test_uploads_that_stand_still_keep_no_place_from_others(decoder: Decoder, tmp_path: Path) -> None:
    """At the edge beside the cloud there is room for four pictures; they are counted once they have arrived."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = {"edge_url": f"http://127.0.0.1:{listener.getsockname()[1]}", "body_timeout_seconds": 20.0}

    def edge() -> None:
        line, _ = listener.accept()
        line.recv(65536)
        line.sendall(b'HTTP/1.1 415 No\r\nContent-Length: 16\r\n\r\n{"detail": "no"}')
        line.close()

    threading.Thread(target=edge, daemon=True).start()
    async with (
        running_cloud(decoder, tmp_path, **options) as cloud,
        httpx.AsyncClient(base_url=cloud.http, timeout=30) as http,
    ):
        host, port = cloud.http.removeprefix("http://").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
        for _, writer in idle:
            writer.write(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
        await asyncio.sleep(0.3)
        async with asyncio.timeout(10):
            assert (await http.post("/v1/encode", content=b"x")).status_code == 415
        for _, writer in idle:
            writer.close()
    listener.close()


@pytest.mark.parametrize("kind", ["head", "body"])
async def test_an_edge_that_drips_is_given_up_and_holds_no_thread(kind: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def edge() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = listener.accept()
                threading.Thread(target=drip, args=(line,), daemon=True).start()

    def drip(line: socket.socket) -> None:
        line.recv(65536)
        if kind == "body":
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                line.sendall(b"H")
                time.sleep(0.05)
        ended.set()

    threading.Thread(target=edge, daemon=True).start()
    proxy = EdgeProxy(f"http://127.0.0.1:{listener.getsockname()[1]}", "", seconds=0.5)
    async with asyncio.timeout(10):
        for _ in range(3):  # more in all than there are threads
            results = await asyncio.gather(*(proxy.encode(b"x", None) for _ in range(2)), return_exceptions=True)
            assert all(isinstance(one, EdgeUnreachable) for one in results), results
        with pytest.raises(EdgeUnreachable):
            await proxy.status()
        await asyncio.to_thread(ended.wait, 5)
    proxy.close()
    listener.close()
    await until(lambda: not any(thread.name.startswith("edge-") for thread in threading.enumerate()), 5)


async def test_many_large_pictures_of_one_tenant_do_not_keep_another_one_waiting(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    options = {"tokens": TOKENS, "max_pixels_at_once": 3 * 256 * 256, "max_queue": 40}
    limits = httpx.Limits(max_connections=None)
    async with (
        running_cloud(decoder, tmp_path, **options) as cloud,
        httpx.AsyncClient(base_url=cloud.http, limits=limits, timeout=30) as http,
    ):
        generator.gate.clear()
        order: list[str] = []

        async def ask(name: str, headers: dict[str, str], data: bytes) -> int:
            status = (await http.post("/v1/decode", content=data, headers=headers)).status_code
            order.append(name)
            return status

        flood = [asyncio.create_task(ask("acme", ACME, make_frame(seed, 256, 256))) for seed in range(20)]
        await until(lambda: cloud.admission.callers.held == 20)
        other = asyncio.create_task(ask("other", OTHER, make_frame(100, 64, 64)))
        await until(lambda: cloud.admission.callers.held == 21)
        generator.gate.set()
        assert await other == 200
        assert order.index("other") <= 4
        assert set(await asyncio.gather(*flood)) == {200}
        stored = new_frame(make_frame(200, 256, 256), tenant="acme")
        cloud.store.frames.add([stored], time.time())
        answer = await http.get(f"/v1/frames/{stored.id}/image?wait=20", headers=ACME)
        assert answer.status_code == 200
        await until(lambda: cloud.admission.pixels.held == 0)
        text = (await http.get("/metrics")).text
        assert 'aeic_cloud_budget_limit{budget="pixels"} 196608.0' in text
        assert 'aeic_cloud_budget_used{budget="connections"}' in text


async def test_a_picture_that_outlives_its_caller_keeps_its_place(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http, timeout=30) as http,
    ):
        new = new_frame(make_frame(1), wanted=False)
        cloud.store.frames.add([new], time.time())
        generator.gate.clear()
        assert (await http.get(f"/v1/frames/{new.id}/image?wait=0.2")).status_code == 202
        assert cloud.admission.pixels.held == 128 * 96
        generator.gate.set()
        await until(lambda: cloud.admission.pixels.held == 0)
        assert metric(cloud.metrics, "decodes_total", result="done") == 1


async def test_a_frame_that_cannot_be_of_its_size_is_refused_without_work(
    decoder: Decoder, bundle: Bundle, generator: FakeGenerator, tmp_path: Path
) -> None:
    huge = Frame(8192, 8192, 0, bundle.fingerprint, b"\x01" * 11).to_bytes()
    assert len(huge) == HEADER_BYTES + 11
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http, timeout=30) as http:
        answer = await http.post("/v1/decode", content=huge)
        assert answer.status_code == 422 and "8192x8192" in answer.json()["detail"]
        assert generator.entered == 1  # the warm-up
        assert metric(cloud.metrics, "entropy_seconds_count") == 0


async def test_a_frame_of_another_tenant_with_the_same_bytes_does_not_show(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    data = make_frame(1)
    async with (
        running_cloud(decoder, tmp_path, tokens=TOKENS, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http, timeout=30) as http,
    ):
        first, second = (new_frame(data, tenant=name, wanted=False) for name in ("acme", "other"))
        cloud.store.frames.add([first, second], time.time())
        assert (await http.get(f"/v1/frames/{first.id}/image?wait=20", headers=ACME)).status_code == 200
        assert (await http.get(f"/v1/frames/{second.id}/image", headers=OTHER)).status_code == 202
        assert (await http.get(f"/v1/frames/{second.id}/image?wait=20", headers=OTHER)).status_code == 200
