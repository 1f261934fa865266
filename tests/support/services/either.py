"""Either service, running in this process on a real socket, for the tests of the rules that hold for both."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from aeic.bundle import Bundle
from aeic_service.http.server import HttpServer
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from edge_encoder.__main__ import http_server
from edge_encoder.service import EdgeService
from tests.support.cloud.cloud import FakeGenerator, running_cloud
from tests.support.edge.fakes import settings as edge_settings
from tests.support.frames import frame_maker, new_frame
from tests.support.pictures import picture

BODY_SECONDS = 0.6
BODY_BYTES = 20_000


@dataclass
class Running:
    """One service; ``post`` is a route that takes a body, ``listing`` one with query parameters."""

    name: str
    http: httpx.AsyncClient
    host: str
    port: int
    server: HttpServer
    post: str
    listing: str
    parameter: str
    """A query parameter of ``listing`` that is a whole number."""
    body: bytes
    """What ``post`` takes: a picture or a frame."""
    drain: Callable[[], Awaitable[None]]
    """Begins to stop, and leaves the HTTP server running."""
    break_down: Callable[[], None]
    """From now on the work behind ``post`` fails with an unforeseen error, whose words are ``secret words``."""
    store: Callable[[], Awaitable[str]]
    """Stores ``body`` as a frame, and returns the route of its state."""
    waiting: bytes
    """A request that waits for 30 s."""
    waits: Callable[[], bool]
    """Whether a request waits now."""
    gone: str
    """The metric of one request like ``waiting`` whose client has disconnected."""

    async def raw(self, data: bytes, *, seconds: float = 5.0) -> bytes:
        """What comes back over a connection of its own until it is closed, or for ``seconds``."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(data)
        received = b""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while chunk := await reader.read(65536):
                    received += chunk
        writer.close()
        return received


@contextlib.asynccontextmanager
async def running(name: str, bundle: Path, folder: Path, **changed: Any) -> AsyncIterator[Running]:
    """The edge or the cloud with small limits."""
    start = _edge if name == "edge" else _cloud
    async with start(bundle, folder, **changed) as service:
        yield service


@contextlib.asynccontextmanager
async def _edge(bundle: Path, folder: Path, **changed: Any) -> AsyncIterator[Running]:
    limits = {"read_timeout_seconds": BODY_SECONDS, "max_body_bytes": BODY_BYTES, "drain_timeout_seconds": 0.0}
    service = EdgeService(edge_settings(folder, bundle=bundle, cloud_address="", **{**limits, "port": 0, **changed}))
    await service.start()
    server = http_server(service)
    url = await server.start()

    async def drain() -> None:
        service.stopping.set()

    def break_down() -> None:
        service.encoder.encode = _broken  # type: ignore[method-assign]  # the service ends with the test

    async def store() -> str:
        return str((await http.post("/v1/frames", content=picture())).headers["location"])

    head = f"POST /v1/frames?wait=delivered&timeout=30 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture())}\r\n\r\n"
    async with httpx.AsyncClient(base_url=url) as http:
        where = httpx.URL(url)
        yield Running(
            "edge",
            http,
            where.host,
            where.port or 0,
            server,
            "/v1/frames",
            "/v1/frames",
            "priority",
            picture(),
            drain,
            break_down,
            store,
            head.encode() + picture(),
            lambda: bool(service.waiting._waiters),
            'aeic_edge_request_seconds_count{status="499",wait="delivered"} 1.0',
        )
    await server.stop()
    await service.stop()


@contextlib.asynccontextmanager
async def _cloud(bundle: Path, folder: Path, **changed: Any) -> AsyncIterator[Running]:
    loaded = Bundle.load(bundle)
    decoder = Decoder(loaded, FakeGenerator(loaded), settings=DecoderSettings(threads=1, max_batch=4))
    limits = {"body_timeout_seconds": BODY_SECONDS, "max_bitstream_bytes": BODY_BYTES}
    async with (
        running_cloud(decoder, folder, **{**limits, **changed}) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):

        async def drain() -> None:
            await cloud.backend.stop()

        def break_down() -> None:
            cloud.backend.decode = _broken  # type: ignore[method-assign]  # the service ends with the test

        async def store() -> str:
            frame = new_frame(frame_maker(loaded)(1))
            await asyncio.to_thread(cloud.store.frames.add, [frame], time.time())
            return f"/v1/frames/{frame.id}"

        unknown = uuid.uuid4()
        where = httpx.URL(cloud.http)
        yield Running(
            "cloud",
            http,
            where.host,
            where.port or 0,
            cloud._http_server,
            "/v1/decode",
            "/v1/frames",
            "limit",
            frame_maker(loaded)(1),
            drain,
            break_down,
            store,
            f"GET /v1/frames/{unknown}?wait=30 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            lambda: cloud.waiters.held > 0,
            'aeic_cloud_http_requests_total{code="4xx",route="/v1/frames/{id}"} 1.0',
        )


def _broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secret words")
