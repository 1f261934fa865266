"""Addresses and the limit on connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import socket
import subprocess
import sys
import time

import pytest
from fastapi import FastAPI, Request

from aeic_service.http import problems
from aeic_service.http.request_body import BodyLimits, read_body
from aeic_service.http.server import HttpServer, ServerSettings, address_text, connection_limit, listen


@pytest.mark.parametrize(
    ("host", "text"),
    [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80"), ("::", "[::]:80"), ("box", "box:80")],
)
def test_addresses_as_urls_write_them(host: str, text: str) -> None:
    assert address_text(host, 80) == text


@pytest.mark.parametrize(
    ("host", "clients"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("[::]", ["::1", "127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
    ],
)
def test_it_listens_where_it_is_told(host: str, clients: list[str]) -> None:
    with listen(host, 0) as listener:
        for client in clients:
            socket.create_connection((client, listener.getsockname()[1]), timeout=5).close()


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """An answer has two segments. With Nagle's algorithm the second one would wait 40 ms on a kept connection."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_host_that_is_not_ours_is_an_os_error() -> None:
    for host in ("203.0.113.7", "no.such.name.invalid"):
        with pytest.raises(OSError):
            listen(host, 0)


def test_the_limit_follows_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def allow(files: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))

    allow(1024)
    assert connection_limit(1024) == 448
    allow(100_000)
    assert connection_limit(1024) == 1024
    allow(64)
    assert connection_limit(1024) == 16
    allow(resource.RLIM_INFINITY)
    assert connection_limit(5000) == 5000


_SERVER = """
import asyncio, json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from fastapi import FastAPI
from aeic_service import logs
from aeic_service.http.server import HttpServer, ServerSettings
logs.set_up("info", "json")
app = FastAPI()
app.get("/")(lambda: {"ok": True})
failures = []
def count(loop, context):
    failures.append(context)
    loop.default_exception_handler(context)
async def main():
    asyncio.get_running_loop().set_exception_handler(count)
    limits = dict(header_seconds=30.0, grace_seconds=1, max_connections=%d)
    server = HttpServer(app, ServerSettings("127.0.0.1", 0, "AEIC_X_", **limits))
    if %d:
        server.connections.limit = 10_000  # as if nothing were derived: the process runs out of files
    print(await server.start(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop()
asyncio.run(main())
print(len(failures), flush=True)
"""


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(10):
            return await reader.read(4096)
    return b""


@pytest.mark.parametrize("unlimited", [False, True], ids=["derived", "out of files"])
async def test_more_half_requests_than_files_stop_nobody(unlimited: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER % (1024, unlimited)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(process.stdout.readline().rsplit(":", 1)[1])

    async def scenario() -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
        for _, writer in held:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-")
        await asyncio.sleep(3 if unlimited else 0.5)
        if not unlimited:
            assert b" 200 " in await _ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _, writer in held:
            writer.close()
        await asyncio.sleep(1.5)
        assert b" 200 " in await _ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    try:
        await scenario()
    finally:
        counted, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert int(counted) <= (10 if unlimited else 0)  # one a second, and not one for each place in the backlog
    lines = [line for line in map(json.loads, errors.splitlines()) if line["level"] != "info"]
    assert len(lines) <= (1 if unlimited else 0), errors[-2000:]


async def test_uploads_that_do_not_end_do_not_hold_up_the_stop_and_fill_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()

    @app.post("/")
    async def take(request: Request) -> str:
        return str(len(await read_body(request, BodyLimits(100, 60.0))))

    problems.install(app)
    server = HttpServer(app, ServerSettings("127.0.0.1", 0, "AEIC_EDGE_", header_seconds=10.0, grace_seconds=1))
    host, port = (await server.start()).removeprefix("http://").split(":")
    lines = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    for _, writer in lines:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    await asyncio.sleep(0.2)
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(10):
            await server.stop()
    assert not caplog.records
    for _, writer in lines:
        writer.close()


@pytest.mark.parametrize("path", ["/health", "/"], ids=["answered early", "awaited"])
async def test_bodies_that_do_not_come_keep_no_other_client_out(path: str) -> None:
    app = FastAPI()
    app.get("/health")(lambda: {"ok": True})

    @app.post("/")
    async def take(request: Request) -> str:
        return str(len(await read_body(request, BodyLimits(1000, 60.0))))

    problems.install(app)
    settings = ServerSettings("127.0.0.1", 0, "AEIC_EDGE_", header_seconds=10.0, grace_seconds=1, max_connections=20)
    server = HttpServer(app, settings)
    host, port = (await server.start()).removeprefix("http://").split(":")
    method = "GET" if path == "/health" else "POST"
    lines = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    for reader, writer in lines:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        if path == "/health":
            assert b" 200 " in await reader.readline()
        writer.write(b"x")
    await asyncio.sleep(1.2)
    assert server.connections.held == 20
    assert b" 200 " in await _ask(int(port), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    for _, writer in lines:
        writer.close()
    await server.stop()


async def test_the_rest_of_a_body_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aeic_service.http.server._REST_SECONDS", 0.3)
    app = FastAPI()
    app.get("/")(lambda: {"ok": True})
    server = HttpServer(app, ServerSettings("127.0.0.1", 0, "AEIC_EDGE_", header_seconds=10.0, grace_seconds=1))
    host, port = (await server.start()).removeprefix("http://").split(":")
    request = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\na"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request + b"bcd")  # whole: the connection is used again
    assert b" 200 " in await reader.readline()
    writer.write(request)
    async with asyncio.timeout(10):
        rest = await reader.read()  # until the server closes it
    assert rest.count(b" 200 ") == 1
    writer.close()
    await server.stop()


async def test_bytes_that_this_process_has_not_read_count_as_heard() -> None:
    app = FastAPI()

    @app.post("/")
    async def take(request: Request) -> str:
        return str(len(await read_body(request, BodyLimits(1000, 60.0))))

    settings = ServerSettings("127.0.0.1", 0, "AEIC_EDGE_", header_seconds=10.0, grace_seconds=1, max_connections=3)
    server = HttpServer(app, settings)
    address = (await server.start()).removeprefix("http://").split(":")
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    honest, *others = [await asyncio.open_connection(address[0], int(address[1])) for _ in range(3)]
    for _, writer in (honest, *others):
        writer.write(head)
        await asyncio.sleep(0.05)
    honest[1].write(b"body")
    with socket.create_connection((address[0], int(address[1]))) as new:
        new.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(1.2)  # the event loop is busy: the oldest upload's bytes wait in the kernel
        found = server.connections._idle()
        assert found is not None and found.client == others[0][1].get_extra_info("sockname")
        async with asyncio.timeout(10):
            assert b" 200 " in await honest[0].readline()
    for _, writer in (honest, *others):
        writer.close()
    await server.stop()


async def test_half_requests_and_stopped_uploads_make_room_before_a_connection_that_is_new() -> None:
    app = FastAPI()

    @app.post("/")
    async def take(request: Request) -> str:
        return str(len(await read_body(request, BodyLimits(1000, 60.0))))

    settings = ServerSettings("127.0.0.1", 0, "AEIC_EDGE_", header_seconds=10.0, grace_seconds=1, max_connections=4)
    server = HttpServer(app, settings)
    host, port = (await server.start()).removeprefix("http://").split(":")
    lines = {}
    for name, sent in (
        ("upload", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"),
        ("waits", b""),
        ("half", b"GET / HTTP/1.1\r\nHost"),
    ):
        lines[name] = await asyncio.open_connection(host, int(port))
        lines[name][1].write(sent)
        await asyncio.sleep(1.1 if name == "upload" else 0.05)

    def next_to_go() -> str:
        found = server.connections._idle()
        assert found is not None
        server.connections.forget(found)
        return next(name for name, (_, writer) in lines.items() if writer.get_extra_info("sockname") == found.client)

    assert [next_to_go() for _ in lines] == ["half", "upload", "waits"]
    for _, writer in lines.values():
        writer.close()
    await server.stop()
