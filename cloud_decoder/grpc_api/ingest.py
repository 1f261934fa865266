"""The gRPC side: frames from edges, acknowledged when they are committed and not before.

Frames of all streams that arrive while one commit runs share the next one. Answers on a stream come in the order of
its frames (answers.py). A frame that can never be decoded here is rejected with its reason; a store that cannot write
breaks the stream, so that the edge keeps its frames and comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc

from aeic.bitstream import Frame
from aeic.errors import AeicError
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.auth import Tokens
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.grpc_api.acks import Answers
from cloud_decoder.grpc_api.status import grpc_status
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import Added, NewFrame, Store
from cloud_decoder.worker import tracing

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
MAX_PRIORITY = 2**31 - 1
MAX_CAMERAS = 256
"""Cameras of one stream that are shown as connected; the frames of all of them are taken."""


@dataclass(frozen=True)
class Limits:
    """What a stream may do."""

    window: int
    max_bitstream_bytes: int
    commit_frames: int


class Committer:
    """Groups frames into commits. ``await add(frame)`` returns when it is durable."""

    def __init__(self, store: Store, metrics: Metrics, limit: int, stored: Callable[[list[NewFrame]], None]) -> None:
        self._store, self._metrics, self._limit, self._stored = store, metrics, limit, stored
        self._waiting: list[tuple[NewFrame, asyncio.Future[Added]]] = []
        self._thread = ThreadPoolExecutor(1, "commit")
        self._running: asyncio.Task[None] | None = None

    def add(self, frame: NewFrame) -> asyncio.Future[Added]:
        """Have ``frame`` stored with the next commit. The future fails with ``StoreUnavailable``."""
        done: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._waiting.append((frame, done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return done

    async def saw(self, tenant: str, source: str) -> None:
        """Note that a source is in touch."""
        with contextlib.suppress(StoreUnavailable):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._store.saw, tenant, source, time.time())

    async def close(self) -> None:
        """Commit what waits."""
        if self._running is not None:
            await self._running
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
            new = [frame for frame, _ in batch]
            started = time.monotonic()
            try:
                loop = asyncio.get_running_loop()
                added = await loop.run_in_executor(self._thread, self._store.add, new, time.time())
            except Exception as error:
                log.error("%s", error)
                self._metrics.sheds.labels("store").inc(len(batch))
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            self._metrics.commit_seconds.observe(time.monotonic() - started)
            self._metrics.commit_frames.observe(len(batch))
            for (_, done), result in zip(batch, added, strict=True):
                if not done.done():
                    done.set_result(result)
            if stored := [frame for frame, result in zip(new, added, strict=True) if result is Added.STORED]:
                self._stored(stored)


class Reject(Exception):
    """Why a frame will never be taken."""


class Ingest(pb_grpc.IngestServiceServicer):
    """The servicer of IngestService. ``check`` raises what is wrong with a bitstream, and returns its header."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        event_bus: EventBus,
        tokens: Tokens,
        *,
        bundle_name: str,
        speaks: Callable[[bytes], bool],
        check: Callable[[bytes], Frame],
        wanted: Callable[[str], bool],
        wake: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._metrics, self._event_bus, self._tokens = metrics, event_bus, tokens
        self._bundle_name, self._speaks = bundle_name, speaks
        self._check, self._wanted, self._wake, self._limits = check, wanted, wake, limits
        self._committer = Committer(store, metrics, limits.commit_frames, self._stored)
        self._draining = asyncio.Event()
        self.connected: dict[tuple[str, str], int] = {}

    async def drain(self) -> None:
        """End every stream after its last acknowledgement, and commit what waits."""
        self._draining.set()
        while self.connected:
            await asyncio.sleep(0.01)
        await self._committer.close()

    async def Deliver(
        self, requests: AsyncIterator[pb.DeliverRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.DeliverResponse]:
        """One edge's stream."""
        tenant, source, window = await self._greet(requests, context)
        keys = {(tenant, source)}  # the box, and the cameras behind it as their frames come
        self._connect((tenant, source))
        self._metrics.streams.inc()
        answers = Answers(min(window, self._limits.window), functools.partial(self._ack, context))
        room = asyncio.Semaphore(2 * self._limits.window)  # an edge that overruns its window is simply not read
        reader = asyncio.create_task(self._read(requests, tenant, source, answers, room, keys))
        stopper = asyncio.create_task(self._cancel_on_drain(reader))
        try:
            await self._committer.saw(tenant, source)
            yield pb.DeliverResponse(welcome=pb.Welcome(window=self._limits.window))
            async with contextlib.aclosing(answers.messages()) as messages:
                async for frames, message in messages:
                    yield message
                    for _ in range(frames):
                        room.release()
        finally:
            stopper.cancel()
            reader.cancel()
            self._metrics.streams.dec()
            for key in keys:
                self.connected[key] -= 1
                if not self.connected[key]:
                    del self.connected[key]

    def _connect(self, key: tuple[str, str]) -> None:
        self.connected[key] = self.connected.get(key, 0) + 1

    async def _greet(
        self, requests: AsyncIterator[pb.DeliverRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[str, str, int]:
        """The tenant, the source and the edge's window of a stream, or its end with a reason."""
        if self._draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is stopping: come again in a moment")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no Hello came: it must be the first message")
        if first.WhichOneof("message") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        hello = first.hello
        if not _is_name(hello.source_id):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "source_id must be 1 to 128 printable characters")
        try:
            tenant = self._tokens.tenant(hello.token)
        except AeicError as error:
            await context.abort(grpc_status(error), "the token in Hello is missing or wrong")
        if not self._speaks(hello.bundle_digest):
            log.warning("source %r speaks bundle %s", hello.source_id, hello.bundle_digest[:6].hex())
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this cloud decodes bundle {self._bundle_name}, the edge has"
                f" {hello.bundle_digest[:6].hex() or 'none'}: install the same bundle on both sides",
            )
        log.info("source %r connected (%s)", hello.source_id, hello.software[:80])
        return tenant, hello.source_id, hello.window

    async def _read(
        self,
        requests: AsyncIterator[pb.DeliverRequest],
        tenant: str,
        source: str,
        answers: Answers[asyncio.Future[Added] | str],
        room: asyncio.Semaphore,
        keys: set[tuple[str, str]],
    ) -> None:
        try:
            async for request in requests:
                await room.acquire()
                if request.WhichOneof("message") != "frame":
                    answers.add(b"", "only frames may follow Hello")
                    continue
                try:
                    began = time.monotonic()
                    frame = await self._accept(request.frame, tenant, source)
                    tracing.arrived(frame.id, request.frame.trace_context, time.monotonic() - began)
                    answers.add(request.frame.id, self._committer.add(frame), request.frame.prompt)
                    if (camera := (tenant, frame.source)) not in keys and len(keys) < MAX_CAMERAS:
                        keys.add(camera)
                        self._connect(camera)
                except Reject as reason:
                    answers.add(request.frame.id, str(reason))
        finally:
            answers.end()

    async def _accept(self, message: pb.Frame, tenant: str, source: str) -> NewFrame:
        if len(message.id) != 16:
            raise Reject(f"an id has 16 bytes, this one {len(message.id)}")
        if len(message.bitstream) > self._limits.max_bitstream_bytes:
            raise Reject(f"{len(message.bitstream)} bytes are over the limit of {self._limits.max_bitstream_bytes}")
        if zlib.crc32(message.bitstream) != message.crc32:
            raise Reject("the CRC-32 does not fit the bitstream: it was damaged before it was sent")
        if message.source_id and not _is_name(message.source_id):
            raise Reject("source_id must be 1 to 128 printable characters")
        try:
            frame = self._check(message.bitstream)
        except AeicError as error:
            raise Reject(f"{type(error).__name__}: {error}") from None
        return NewFrame(
            tenant=tenant,
            id=UUID(bytes=message.id),
            source=message.source_id or source,
            captured_ms=min(message.captured_unix_ms, 2**53),
            priority=min(message.priority, MAX_PRIORITY),
            width=frame.width,
            height=frame.height,
            rate=frame.rate,
            fingerprint=frame.fingerprint,
            digest=hashlib.sha256(message.bitstream).hexdigest(),
            bitstream=message.bitstream,
            wanted=self._wanted(message.source_id or source),
        )

    async def _ack(
        self, context: grpc.aio.ServicerContext[Any, Any], id: bytes, result: asyncio.Future[Added] | str
    ) -> pb.Ack:
        if isinstance(result, str):
            self._metrics.frames.labels("rejected").inc()
            return pb.Ack(id=id, status=pb.ACK_STATUS_REJECTED, reason=result)
        try:
            added = await result
        except StoreUnavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if added is Added.CONFLICT:
            self._metrics.frames.labels("rejected").inc()
            return pb.Ack(id=id, status=pb.ACK_STATUS_REJECTED, reason="this id is taken by other bytes")
        self._metrics.frames.labels(added.value).inc()
        status = pb.ACK_STATUS_STORED if added is Added.STORED else pb.ACK_STATUS_DUPLICATE
        return pb.Ack(id=id, status=status)

    def _stored(self, new: list[NewFrame]) -> None:
        for frame in new:
            self._metrics.frame_bytes.observe(len(frame.bitstream))
            self._event_bus.publish(frame.tenant, {"event": "received", "id": str(frame.id)})
        self._wake()

    async def _cancel_on_drain(self, reader: asyncio.Task[None]) -> None:
        await self._draining.wait()
        reader.cancel()


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= 128 and text.isprintable()
