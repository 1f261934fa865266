"""Calls of clients without a token: they take no place from an edge, whatever they open and however they leave it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.grpc_api import calls
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from tests.support.clients import http2
from tests.support.cloud.cloud import IngestClient, cloud_process, metric, running_cloud
from tests.support.frames import MakeFrame
from tests.support.waiting import until

TOKENS = "acme:token-of-acme,other:token-of-other"


async def _delivers(address: str, bundle: Bundle, data: bytes, token: str = "token-of-acme") -> None:
    async with asyncio.timeout(10), IngestClient(address) as edge:
        await edge.hello(bundle, token=token)
        await edge.send(data, uuid4())
        assert (await edge.ack()).status == pb.ACK_STATUS_STORED


async def _never(_: object = None) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield None


@contextlib.asynccontextmanager
async def _channels(cloud: Cloud, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(cloud.grpc, options=options))
            for _ in range(count)
        ]


@pytest.mark.parametrize("kind", ["health", "reflection", "deliver"])
async def test_a_thousand_calls_without_a_token_take_no_place_from_an_edge(
    decoder: Decoder, bundle: Bundle, make_frame: MakeFrame, tmp_path: Path, kind: str
) -> None:
    def opened(channel: grpc.aio.Channel) -> Any:
        if kind == "health":
            return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        if kind == "reflection":
            return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(_never())
        return pb_grpc.IngestServiceStub(channel).Deliver(_never())

    async with running_cloud(decoder, tmp_path, tokens=TOKENS, max_streams=100) as cloud, _channels(cloud, 12) as many:
        held = [opened(channel) for channel in many for _ in range(90)]
        await until(lambda: metric(cloud.metrics, "sheds_total", reason="calls") > 700, 20)
        await _delivers(cloud.grpc, bundle, make_frame(1))
        async with grpc.aio.insecure_channel(cloud.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1
            names = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            assert [one async for one in stub.ServerReflectionInfo(iter([names]), timeout=10)]
        for one in held:
            one.cancel()


async def test_one_connection_has_no_more_calls_than_its_share(
    decoder: Decoder, bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path, tokens=TOKENS) as cloud:
        assert cloud.calls.budget.held == 0
        with http2.connect(cloud.grpc) as line:
            path = b"/grpc.health.v1.Health/Check"
            for number in range(1024):  # calls whose message never comes, as no client opens them
                with contextlib.suppress(OSError):  # the connection may be closed for it
                    line.sendall(http2.frame(http2.HEADERS, 4, 2 * number + 1, http2.call(path)))
            await _delivers(cloud.grpc, bundle, make_frame(1))
            running = [task for task in asyncio.all_tasks() if "rpc" in repr(task.get_coro()).lower()]
            assert len(running) < 2 * calls.PROBES + 50


async def test_a_tenant_with_many_calls_leaves_room_for_another_one(
    decoder: Decoder, bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path, tokens=TOKENS, max_streams=10) as cloud:
        async with contextlib.AsyncExitStack() as stack:
            edges = [await stack.enter_async_context(IngestClient(cloud.grpc)) for _ in range(12)]
            for edge in edges[:8]:
                await edge.hello(bundle, token="token-of-other")
            for edge in edges[8:]:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await edge.hello(bundle, token="token-of-other")
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "AEIC_CLOUD_MAX_STREAMS" in (refused.value.details() or "")
            await _delivers(cloud.grpc, bundle, make_frame(1))
        await until(lambda: cloud.calls.budget.held == 0)


async def test_headers_without_end_are_not_kept(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    """A CONTINUATION flood on one connection: fields of one byte, many fields, and one field of 64 MiB.

    gRPC keeps some 50 MB for such a connection while it lasts (docs/security.md), however long it is.
    """
    psutil = pytest.importorskip("psutil")
    fields = b"".join(http2.field(b"x-%05d" % number, b"v" * 100) for number in range(140))[: http2.MAX_FRAME]
    long = http2.field(b"x", b"v" * (64 << 20))
    floods: list[Iterable[bytes]] = [
        itertools.repeat(b"\x90" * http2.MAX_FRAME, 512),
        itertools.repeat(fields, 4096),
        (long[at : at + http2.MAX_FRAME] for at in range(0, len(long), http2.MAX_FRAME)),
        itertools.repeat(fields, 4096),
    ]
    with cloud_process(bundle, tmp_path, MALLOC_ARENA_MAX="2") as (running, addresses):
        process, address = psutil.Process(running.pid), addresses["grpc"]
        before = process.memory_info().rss
        for blocks in floods:
            await asyncio.to_thread(_flood, address, blocks)
        assert process.memory_info().rss - before < 96 << 20
        await _delivers(address, bundle, make_frame(1), "")


def _flood(address: str, blocks: Iterable[bytes]) -> None:
    with http2.connect(address) as line, contextlib.suppress(OSError):
        line.sendall(http2.frame(http2.HEADERS, 0, 1, http2.call(b"/aeic.v1.IngestService/Deliver")))
        for block in blocks:
            line.sendall(http2.frame(http2.CONTINUATION, 0, 1, block))
