"""The edge as a process: start, addresses, slow clients, SIGTERM, kill -9, wrong settings, and no torch."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest

from edge_encoder.__main__ import main
from tests.support.edge.fakes import FakeCloud, serving
from tests.support.edge.process import StartEdge
from tests.support.pictures import picture
from tests.support.roots import ROOT
from tests.support.waiting import until, wait_until


def test_it_prints_its_address_and_drains_on_sigterm(start_edge: StartEdge) -> None:
    edge = start_edge()
    assert edge.ready["service"] == "edge"
    body = httpx.post(f"{edge.url}/v1/frames", content=picture()).json()
    assert body["state"] == "spooled"
    assert httpx.get(f"{edge.url}/readyz").status_code == 200
    code, log = edge.stop(signal.SIGTERM)
    assert code == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert any("1 frames and 0 received pictures stay in the spool" in line["event"] for line in lines)


async def test_sigterm_finishes_what_was_taken_and_sends_it(start_edge: StartEdge) -> None:
    cloud = FakeCloud()
    async with serving(cloud) as address:
        edge = await asyncio.to_thread(start_edge, AEIC_EDGE_CLOUD_ADDRESS=address)
        async with httpx.AsyncClient() as client:
            posts = [
                asyncio.create_task(client.post(f"{edge.url}/v1/frames", content=picture(700, 500 + n)))
                for n in range(6)
            ]
            await asyncio.sleep(0.05)
            edge.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*posts, return_exceptions=True)
        taken = {uuid.UUID(a.json()["id"]) for a in answers if isinstance(a, httpx.Response) and a.status_code == 202}
        assert await asyncio.to_thread(edge.process.wait, 15) == 0
        assert taken <= set(cloud.frames)


async def test_kill_9_between_202_and_delivery_loses_nothing(start_edge: StartEdge) -> None:
    cloud, taken = FakeCloud(), set()
    edge = await asyncio.to_thread(start_edge)
    async with httpx.AsyncClient() as client:
        for n in range(5):
            response = await client.post(f"{edge.url}/v1/frames", content=picture(seed=n))
            taken.add(uuid.UUID(response.json()["id"]))
    await asyncio.to_thread(edge.stop, signal.SIGKILL)
    async with serving(cloud) as address:
        edge = await asyncio.to_thread(start_edge, AEIC_EDGE_CLOUD_ADDRESS=address)
        await until(lambda: set(cloud.frames) == taken)
        assert len(taken) == 5


@pytest.mark.perf
def test_it_is_up_within_six_seconds(start_edge: StartEdge) -> None:
    begin = time.monotonic()
    start_edge()
    assert time.monotonic() - begin < 6


def test_slow_and_oversized_clients_over_a_real_socket(start_edge: StartEdge) -> None:
    edge = start_edge(AEIC_EDGE_READ_TIMEOUT_SECONDS="0.5", AEIC_EDGE_MAX_BODY_BYTES="100000")
    host, port = edge.url.removeprefix("http://").split(":")
    request = b"POST /v1/frames HTTP/1.1\r\nHost: edge\r\nContent-Length: 5000\r\n\r\n" + b"x" * 10
    with (
        socket.create_connection((host, int(port)), timeout=5) as body,
        socket.create_connection((host, int(port)), timeout=5) as headers,
    ):
        body.sendall(request)
        headers.sendall(request[:30])
        assert b" 408 " in body.recv(65536).split(b"\r\n")[0]
        assert b" 408 " in headers.recv(65536).split(b"\r\n")[0]
    with httpx.Client(base_url=edge.url) as client:
        for _ in range(3):  # keep-alive goes on working
            assert client.post("/v1/frames", content=picture()).status_code == 202
        response = client.post("/v1/frames", content=bytes(3_000_000))
        assert response.status_code == 413 and response.json()["status"] == 413
        assert client.get("/v1/status").json()["spool"]["frames"] == 3


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AEIC_EDGE_PORT": "many"}, "AEIC_EDGE_PORT: "),
        ({"AEIC_EDGE_PROT": "8080"}, "AEIC_EDGE_PROT"),
        ({"AEIC_EDGE_TLS_CERT": "/nowhere.pem"}, "tls_key"),
        ({"AEIC_EDGE_CONFIG": "/nowhere.toml"}, "nowhere"),
    ],
)
def test_wrong_settings_are_named(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AEIC_EDGE_TOKEN", "s3cret-token")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    errors = capsys.readouterr().err
    assert words in errors and "s3cret" not in errors


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "edge_encoder", "--port", "0", "--data-dir", str(tmp_path), "--bundle", "/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 5
    assert "nowhere" in run.stderr and "Traceback" not in run.stderr


def test_the_edge_never_loads_torch() -> None:
    heavy = ("torch", "torchvision", "sqlalchemy", "diffusers", "compressai", "aeic_nets")
    code = f"import sys, edge_encoder.__main__; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert run.stdout.strip() == "[]", run.stderr


def test_systemd_is_notified_and_the_folder_is_watched(start_edge: StartEdge, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.jpg").write_bytes(picture())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(10)
        edge = start_edge(NOTIFY_SOCKET=address, AEIC_EDGE_WATCH_DIR=str(inbox), AEIC_EDGE_WATCH_SECONDS="0.1")
        assert channel.recv(100) == b"READY=1"
        assert channel.recv(100) == b"WATCHDOG=1"
        wait_until(lambda: (inbox / "done" / "a.jpg").exists())
        code, _ = edge.stop(signal.SIGTERM)
        assert code == 0
        last = b""
        while last != b"STOPPING=1":
            last = channel.recv(100)
