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
from tests.support.edge_fakes import FakeCloud, Proxy, serving
from tests.support.uplink import exactly, put_frames, shipping
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("delay", "pause", "count"),
    [(0.02, 0.0, 750), (0.0, 0.0, 750), (0.0, 0.1, 30), (0.0, 0.45, 10)],
    ids=["far", "near", "ten a second", "two a second"],
)
async def test_wire_bytes_on_a_long_stream(tmp_path: Path, delay, pause, count) -> None:
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
        uplink._context = dataclasses.replace(uplink._context, prompt=lambda ident: True)
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
            assert cloud.received == 0 and uplink.status.state == "unreachable"
        async with shipping(tmp_path / "b", address, tls=True, tls_ca=tmp_path / "ca.pem") as (spool, uplink):
            await put_frames(spool, 1)
            await until(lambda: uplink.status.failures_in_a_row >= 2)
            assert cloud.received == 0
        async with shipping(tmp_path / "c", address, **own, tls_ca=tmp_path / "ca.pem") as (spool, uplink):
            records = await put_frames(spool, 3)
            await until(lambda: exactly(cloud, records))
