"""A fake cloud that keeps the frames it receives and can misbehave, a TCP proxy, and settings for tests."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from aeic.v1 import ingest_pb2 as pb
from aeic.v1.ingest_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from cloud_decoder.grpc_api.acks import AckBatcher
from edge_encoder.settings import EdgeSettings


class _Break(Exception):
    """The stream is to end here."""


@dataclass
class FakeCloud(IngestServiceServicer):
    """Stores frames in `frames` (id -> bitstream) and their messages. The fields below make it misbehave."""

    frames: dict[uuid.UUID, bytes] = field(default_factory=dict)
    order: list[uuid.UUID] = field(default_factory=list)
    messages: dict[uuid.UUID, pb.Frame] = field(default_factory=dict)
    received: int = 0
    hellos: list[pb.Hello] = field(default_factory=list)
    window: int = 32
    token: str = ""
    digest: bytes = b""
    reject: set[uuid.UUID] = field(default_factory=set)
    break_after: list[int] = field(default_factory=list)  # per stream: end it after so many frames, unacknowledged
    break_on: set[uuid.UUID] = field(default_factory=set)  # frames that kill the stream every time
    silent: bool = False  # takes frames and never answers
    welcomes: bool = True
    rejects_all: bool = False
    seconds_a_frame: float = 0.0
    miscounts: int = 0  # acknowledges so many frames more than came

    async def Deliver(  # the generated name
        self, requests: AsyncIterator[pb.DeliverRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.DeliverResponse]:
        first = await anext(requests)
        assert first.WhichOneof("message") == "hello"
        self.hellos.append(first.hello)
        if self.token and first.hello.token != self.token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not known")
        if self.digest and first.hello.bundle_digest != self.digest:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "bundle 0badcafe is not loaded")
        if not self.welcomes:
            await asyncio.sleep(3600)
        yield pb.DeliverResponse(welcome=pb.Welcome(window=self.window))
        acks: AckBatcher[pb.Ack | None] = AckBatcher(min(first.hello.window, self.window), self._resolve)
        reader = asyncio.create_task(self._read(requests, acks))
        try:
            async with contextlib.aclosing(acks.messages()) as messages:
                async for _, message in messages:
                    if message.stored:
                        message.stored += self.miscounts
                    yield message
        except _Break:
            await context.abort(grpc.StatusCode.INTERNAL, "the test breaks this stream")
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.DeliverRequest], acks: AckBatcher[pb.Ack | None]) -> None:
        limit = self.break_after.pop(0) if self.break_after else None
        count = 0
        async for request in requests:
            frame = request.frame
            assert zlib.crc32(frame.bitstream) == frame.crc32
            await asyncio.sleep(self.seconds_a_frame)
            self.received += 1
            count += 1
            if self.silent:
                continue
            broken = uuid.UUID(bytes=frame.id) in self.break_on or (limit is not None and count > limit)
            acks.add(frame.id, None if broken else self._keep(frame), frame.prompt)
        acks.end()

    def _keep(self, frame: pb.Frame) -> pb.Ack:
        ident = uuid.UUID(bytes=frame.id)
        if self.rejects_all or ident in self.reject:
            return pb.Ack(id=frame.id, status=pb.ACK_STATUS_REJECTED, reason="damaged frame")
        if ident in self.frames:
            assert self.frames[ident] == frame.bitstream
            return pb.Ack(id=frame.id, status=pb.ACK_STATUS_DUPLICATE)
        self.frames[ident] = frame.bitstream
        self.order.append(ident)
        self.messages[ident] = frame
        return pb.Ack(id=frame.id, status=pb.ACK_STATUS_STORED)

    async def _resolve(self, id: bytes, ack: pb.Ack | None) -> pb.Ack:
        if ack is None:
            raise _Break
        return ack


@contextlib.asynccontextmanager
async def serving(
    cloud: FakeCloud, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """Runs the fake; yields its host:port."""
    server = grpc.aio.server(options=[("grpc.http2.bdp_probe", 0)])
    add_IngestServiceServicer_to_server(cloud, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class Proxy:
    """A TCP relay on loopback that can cut, stall (half-open), delay and count."""

    def __init__(self, target: str, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.host, port = target.split(":")
        self.port = int(port)
        self.up = self.down = 0
        self.stalled = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Resets every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        await asyncio.gather(self._pump(reader, far_writer, "up"), self._pump(far_reader, writer, "down"))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                while self.stalled:  # half-open: bytes vanish into a buffer, no error, no answer
                    await asyncio.sleep(0.02)
                await asyncio.sleep(self.delay_seconds)
                setattr(self, way, getattr(self, way) + len(data))
                writer.write(data)
                await writer.drain()
        writer.close()


def settings(folder: Path, **changes: Any) -> EdgeSettings:
    """Settings for a test: short times, nothing from the environment but what is given."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "data_dir": folder,
        "source_id": "mast-7",
        "cloud_address": "",
        "backoff_min_seconds": 0.02,
        "backoff_max_seconds": 0.2,
        "ack_timeout_seconds": 5.0,
        "drain_timeout_seconds": 2.0,
        "threads": 1,
    }
    return EdgeSettings(**{**values, **changes})
