"""The stream on the wire: bytes counted on the socket, answers gathered and counted, mutual TLS."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from cloud_decoder.grpc_api import acks
from edge_encoder.uplink.stream import Callbacks
from tests.support.edge.fakes import FakeCloud, Proxy, serving
from tests.support.edge.uplink import exactly, put_frames, shipping
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("delay", "pause", "count"),
    [(0.02, 0.0, 750), (0.0, 0.0, 750), (0.0, 0.1, 30), (0.0, 0.45, 10)],
    ids=["far", "near", "ten a second", "two a second"],
)
async def test_wire_bytes_on_a_long_stream(tmp_path: Path, delay: float, pause: float, count: int) -> None:
    """Counted on the socket: at most 64 bytes over the payload per frame upward, 43 downward; on a busy stream over a
    link with 20 ms each way, on one without any delay, and with a frame now and then, ten or two a second."""

    cloud, size = FakeCloud(), 1500
    async with (
        serving(cloud) as address,
        Proxy(address, delay_seconds=delay) as proxy,
        shipping(tmp_path, proxy.address) as (spool, _),
    ):
        await put_frames(spool, 20, size)
        await until(lambda: spool.pending_frames == 0)
        up, down = proxy.up, proxy.down
        step = 1 if pause else 250
        for _ in range(count // step):
            await put_frames(spool, step, size)
            await asyncio.sleep(pause)
        await until(lambda: spool.pending_frames == 0)
        assert (proxy.up - up) / count - size <= 64
        assert (proxy.down - down) / count <= 43


async def test_an_answer_that_a_client_waits_for_is_not_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "GATHER_SECONDS", 1e9)  # what is gathered never comes
    cloud = FakeCloud()
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, uplink):
        uplink._context = dataclasses.replace(uplink._context, callbacks=Callbacks(prompt=lambda ident: True))
        await until(lambda: uplink.status.state == "connected")
        for _ in range(10):
            await put_frames(spool, 1)
            await until(lambda: spool.pending_frames == 0)


async def test_a_cloud_that_acknowledges_too_many_frames_is_disconnected(tmp_path: Path) -> None:
    cloud = FakeCloud()
    cloud.miscounts = 7
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, uplink):
        await put_frames(spool, 2)
        await until(lambda: uplink.status.state == "refused")
        assert spool.pending_frames == 2 and "not sent" in uplink.status.detail


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_mutual_tls_with_both_sides_checked(tmp_path: Path) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        _openssl(
            tmp_path, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"
        )
    (tmp_path / "names").write_text("subjectAltName=DNS:cloud.test,IP:127.0.0.1")
    for name in ("cloud", "edge"):
        _openssl(tmp_path, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}.test")
        _openssl(
            tmp_path, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip
    read = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    credentials = grpc.ssl_server_credentials(
        [(read["cloud.key"], read["cloud.pem"])], root_certificates=read["ca.pem"], require_client_auth=True
    )

    cloud = FakeCloud()
    own = {"tls": True, "tls_cert": tmp_path / "edge.pem", "tls_key": tmp_path / "edge.key"}
    async with serving(cloud, credentials=credentials) as address:
        async with shipping(tmp_path / "a", address, **own, tls_ca=tmp_path / "stranger.pem") as (spool, uplink):
            await put_frames(spool, 1)
            await until(lambda: uplink.status.failures_in_a_row >= 2)
            assert cloud.received == 0 and uplink.status.state == "tls-failed"
            assert "AEIC_EDGE_TLS_CA" in uplink.status.detail
        async with shipping(tmp_path / "b", address, tls=True, tls_ca=tmp_path / "ca.pem") as (spool, uplink):
            await put_frames(spool, 1)
            await until(lambda: uplink.status.failures_in_a_row >= 2)
            assert cloud.received == 0
        async with shipping(tmp_path / "c", address, **own, tls_ca=tmp_path / "ca.pem") as (spool, uplink):
            records = await put_frames(spool, 3)
            await until(lambda: exactly(cloud, records))


async def failing(folder: Path, credentials: grpc.ServerCredentials | None, **changes: object) -> tuple[str, str]:
    """The uplink's state and detail at a cloud with these credentials, whose frames do not arrive."""
    cloud = FakeCloud()
    async with (
        serving(cloud, credentials=credentials) as address,
        shipping(folder, address, **changes) as (spool, uplink),
    ):
        await put_frames(spool, 1)
        await until(lambda: uplink.status.failures_in_a_row >= 2)
        assert cloud.received == 0 and spool.pending_frames == 1
        return uplink.status.state, uplink.status.detail


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_a_failed_handshake_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(tmp_path, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    made = {}
    for name, names, days in (("other", "DNS:other.test", "2"), ("expired", "IP:127.0.0.1", "0")):
        _openssl(tmp_path, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (tmp_path / "names").write_text(f"subjectAltName={names}")
        _openssl(
            tmp_path, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", f"{name}.pem", "-days", days,
        )  # fmt: skip
        pair = (tmp_path / f"{name}.key").read_bytes(), (tmp_path / f"{name}.pem").read_bytes()
        made[name] = grpc.ssl_server_credentials([pair])
    tls = {"tls": True, "tls_ca": tmp_path / "ca.pem"}
    for number, (credentials, changes, state, remedy) in enumerate(
        (
            (made["other"], tls, "tls-failed", "AEIC_EDGE_TLS_SERVER_NAME"),
            (made["expired"], tls, "tls-failed", "not valid at this time"),
            (None, tls, "tls-failed", "does not speak TLS"),
            (made["other"], {}, "unreachable", "AEIC_EDGE_TLS=true"),
        )
    ):
        found = await failing(tmp_path / str(number), credentials, **changes)
        assert found[0] == state and remedy in found[1], found
    errors = [r for r in caplog.records if "tls-failed" in r.getMessage() and r.levelname == "ERROR"]
    assert len(errors) == 3  # one for each cloud, not for each attempt
    good = {**tls, "tls_server_name": "other.test"}
    cloud = FakeCloud()
    async with (
        serving(cloud, credentials=made["other"]) as address,
        shipping(tmp_path / "good", address, **good) as (spool, _),
    ):
        records = await put_frames(spool, 1)
        await until(lambda: exactly(cloud, records))


async def test_loopback_is_never_proxied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    cloud = FakeCloud()
    async with serving(cloud) as address, shipping(tmp_path, address) as (spool, _):
        records = await put_frames(spool, 2)
        await until(lambda: exactly(cloud, records))


@pytest.mark.parametrize("how", ["setting", "environment"])
async def test_a_cloud_elsewhere_is_reached_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    asked: list[bytes] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", url if how == "environment" else "http://127.0.0.1:9")
    changes = {"proxy": url} if how == "setting" else {}
    async with proxy, shipping(tmp_path, "cloud.invalid:9090", **changes) as (spool, uplink):
        await put_frames(spool, 1)
        await until(lambda: bool(asked) and uplink.status.failures_in_a_row > 0)
    assert asked[0].startswith(b"CONNECT cloud.invalid:9090")
