"""TLS of the gRPC port: certificates of the edges, and renewed ones of the cloud's own."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import pytest

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.inference.decoder import Decoder
from tests.support.certificates import MISSING, authority, certificate
from tests.support.cloud.cloud import IngestClient, running_cloud
from tests.support.frames import MakeFrame

pytestmark = pytest.mark.skipif(MISSING, reason="openssl makes the certificates")


def _credentials(folder: Path, trusted: str, own: str = "") -> grpc.ChannelCredentials:
    pair = [(folder / f"{own}.{end}").read_bytes() for end in ("key", "pem")] if own else [None, None]
    return grpc.ssl_channel_credentials((folder / f"{trusted}.pem").read_bytes(), *pair)


async def test_only_edges_with_a_certificate_may_connect(
    decoder: Decoder, bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    for name in ("ca", "stranger"):
        authority(tmp_path, name)
    for name, signer in (("cloud", "ca"), ("edge", "ca"), ("fake", "stranger")):
        certificate(tmp_path, name, signer)
    own = {"grpc_tls_cert": tmp_path / "cloud.pem", "grpc_tls_key": tmp_path / "cloud.key"}
    async with running_cloud(decoder, tmp_path / "data", **own, grpc_tls_client_ca=tmp_path / "ca.pem") as cloud:
        for without in ("", "fake"):
            async with IngestClient(cloud.grpc, _credentials(tmp_path, "ca", without)) as edge:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await edge.hello(bundle)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with IngestClient(cloud.grpc, _credentials(tmp_path, "ca", "edge")) as edge:
            await edge.hello(bundle)
            await edge.send(make_frame(1), uuid4())
            assert (await edge.ack()).status == pb.ACK_STATUS_STORED


async def test_a_renewed_certificate_is_used_and_no_stream_is_dropped(
    decoder: Decoder, bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        authority(tmp_path, name)
    certificate(tmp_path, "cloud", "old")
    own = {"grpc_tls_cert": tmp_path / "cloud.pem", "grpc_tls_key": tmp_path / "cloud.key"}
    async with (
        running_cloud(decoder, tmp_path / "data", **own) as cloud,
        IngestClient(cloud.grpc, _credentials(tmp_path, "old")) as edge,
    ):
        await edge.hello(bundle)
        (tmp_path / "cloud.key").rename(tmp_path / "away")  # in the middle of a renewal
        async with IngestClient(cloud.grpc, _credentials(tmp_path, "old")) as second:
            await second.hello(bundle)
        before = await expiry(cloud.http)
        await asyncio.to_thread(certificate, tmp_path, "cloud", "new", days=20)
        async with IngestClient(cloud.grpc, _credentials(tmp_path, "new")) as third:
            await third.hello(bundle)
        after = await expiry(cloud.http)
        assert after > before > time.time()  # the metric follows the file
        await edge.send(make_frame(1), uuid4())
        assert (await edge.ack()).status == pb.ACK_STATUS_STORED


async def expiry(url: str) -> float:
    """What the metrics of a cloud say of its own certificate."""
    async with httpx.AsyncClient(base_url=url) as client:
        text = (await client.get("/metrics")).text
    (found,) = re.findall(r'aeic_cloud_certificate_expiry_timestamp_seconds\{file="grpc_tls_cert"\} (\S+)', text)
    return float(found)


async def test_client_authorities_need_a_certificate_of_our_own(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AEIC_CLOUD_GRPC_TLS_CERT"):
        async with running_cloud(decoder, tmp_path, grpc_tls_client_ca=tmp_path / "ca.pem"):
            pass
