"""The ingest stream: frames from edges, acknowledged when they are committed and not before.

    Deliver -> _greet -> _read: _accept -> GroupCommit.add ... committed and synced ... _ack -> acks.py -> the edge

Each stream begins with Hello, which names the edge's token and bundle; frames follow, and their answers come in the
same order. Before ``_ack`` answers STORED, the store has written the frame, and its job if it is to be decoded on
arrival, in one synced transaction (group_commit.py). DUPLICATE means that an earlier transaction did so, for the same
id and the same bytes; the frame may have been decoded or deleted since. A frame that this cloud can never decode is
rejected with the reason, before it reaches the store; another frame under a known id is rejected too. A frame of a
bundle that this cloud does not have is acknowledged and stored in quarantine, without a job, because the bundle may be
added: an edge that was updated still has frames of its old one. ``aeic store requeue`` (JobQueue.requeue) then queues
it. A store that cannot write ends the stream, so that the edge keeps its frames and connects again. An edge with more
unanswered frames than twice the window is not read any further.

Called by the gRPC server (server.py), once for each stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc

from aeic.bitstream import Frame
from aeic.errors import AeicError, WrongModel
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from aeic_service import tracing
from aeic_service.errors import Overloaded
from cloud_decoder.auth import Tokens
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.grpc_api.acks import AckBatcher
from cloud_decoder.grpc_api.calls import Calls
from cloud_decoder.grpc_api.group_commit import GroupCommit
from cloud_decoder.grpc_api.originals import OriginalAssembler
from cloud_decoder.grpc_api.status import grpc_status
from cloud_decoder.metrics import Metrics
from cloud_decoder.presence import Presence, Report
from cloud_decoder.request_dispatch import Outbox, RequestDispatch
from cloud_decoder.store.store import Added, NewFrame, RefusalReason, RequestKind, StoredRequest

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
MAX_PRIORITY = 2**31 - 1
_CAPTURED_FROM = {
    pb.CAPTURE_TIME_SOURCE_SENDER: "sender",
    pb.CAPTURE_TIME_SOURCE_EXIF: "exif",
    pb.CAPTURE_TIME_SOURCE_FILE: "file",
    pb.CAPTURE_TIME_SOURCE_CLOCK: "clock",
}
_KINDS = {
    RequestKind.BETTER: pb.REQUEST_KIND_BETTER,
    RequestKind.REGION: pb.REQUEST_KIND_REGION,
    RequestKind.ORIGINAL: pb.REQUEST_KIND_ORIGINAL,
    RequestKind.NOW: pb.REQUEST_KIND_NOW,
}
_REFUSALS = {
    pb.REFUSAL_REASON_GONE: RefusalReason.GONE,
    pb.REFUSAL_REASON_FORBIDDEN: RefusalReason.FORBIDDEN,
    pb.REFUSAL_REASON_OVER_BUDGET: RefusalReason.OVER_BUDGET,
    pb.REFUSAL_REASON_EXPIRED: RefusalReason.EXPIRED,
    pb.REFUSAL_REASON_UNSUPPORTED: RefusalReason.UNSUPPORTED,
}
MAX_DETAIL = 1000
"""Characters of a refusal that are looked at."""
MAX_PROBLEM = 200
"""Characters of a box's problem that are kept."""
MAX_PIECE_ACKS = 16
"""Answers to pieces that wait on one stream; an edge that does not read them is not read any further."""
MAX_CAMERAS = 256
"""Cameras of one stream that are shown as connected; the frames of all of them are accepted."""


@dataclass(frozen=True)
class IngestSettings:
    """Limits of a stream, and the checks that its frames go through."""

    window: int
    """Unacknowledged frames allowed on one stream."""
    max_bitstream_bytes: int
    bundle_name: str
    """The bundles of this cloud, for the message to an edge that has another one."""
    knows_bundle: Callable[[bytes], bool]
    """Whether this cloud decodes the bundle of a digest."""
    check: Callable[[bytes], Frame]
    """The header of a bitstream; raises an ``AeicError`` if it cannot be decoded here."""
    decode_on_arrival: Callable[[str], bool]
    """Whether the frames of a source are decoded before anyone asks for them."""


@dataclass(frozen=True)
class Destinations:
    """Where the messages of a stream go."""

    commits: GroupCommit
    """Frames, into the store."""
    originals: OriginalAssembler
    """Pieces of originals."""
    dispatch: RequestDispatch
    """Refusals of requests. It also has the requests that a stream sends to its edge."""


@dataclass(frozen=True)
class _Peer:
    """What Hello says of the other end of a stream, and the tenant of its token."""

    tenant: str
    source: str
    software: str
    window: int
    box: bytes
    request_max_bytes: int
    original_max_bytes: int


class Reject(Exception):
    """The reason why a frame will never be accepted."""


class Ingest(pb_grpc.IngestServiceServicer):
    """The servicer of IngestService."""

    def __init__(
        self,
        destinations: Destinations,
        presence: Presence,
        tokens: Tokens,
        calls: Calls,
        metrics: Metrics,
        settings: IngestSettings,
    ) -> None:
        self._commits, self._originals = destinations.commits, destinations.originals
        self._dispatch = destinations.dispatch
        self._presence, self._tokens, self._calls = presence, tokens, calls
        self._metrics, self._settings = metrics, settings
        self._draining = asyncio.Event()
        self._open_streams = 0

    async def drain(self) -> None:
        """End every stream after its last acknowledgement, and commit the frames that wait."""
        self._draining.set()
        while self._open_streams:
            await asyncio.sleep(0.01)
        await self._originals.close()
        await self._commits.close()

    async def Deliver(
        self, requests: AsyncIterator[pb.DeliverRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.DeliverResponse]:
        """The stream of one edge."""
        peer = await self._greet(requests, context)
        try:
            with self._calls.admitted(peer.tenant):
                async with contextlib.aclosing(self._stream(requests, context, peer)) as messages:
                    async for message in messages:
                        yield message
        except Overloaded as error:
            await context.abort(grpc_status(error), str(error))

    async def _stream(
        self,
        requests: AsyncIterator[pb.DeliverRequest],
        context: grpc.aio.ServicerContext[Any, Any],
        peer: _Peer,
    ) -> AsyncGenerator[pb.DeliverResponse, None]:
        tenant, source, box = peer.tenant, peer.source, peer.box
        keys = {(tenant, source)}  # the edge itself, and the cameras behind it as their frames arrive
        self._open_streams += 1
        self._presence.connect(tenant, source)
        self._presence.box_connects(tenant, source, box, peer.software)
        self._metrics.streams.inc()
        acks = AckBatcher(min(peer.window, self._settings.window), functools.partial(self._ack, context))
        room = asyncio.Semaphore(2 * self._settings.window)  # an edge that exceeds its window is not read any further
        piece_acks: asyncio.Queue[pb.PieceAck] = asyncio.Queue(MAX_PIECE_ACKS)
        reader = asyncio.create_task(self._read(requests, tenant, source, box, acks, piece_acks, room, keys))
        stopper = asyncio.create_task(self._cancel_on_drain(reader))
        try:
            await self._commits.saw(tenant, source)
            takes = self._originals.max_bytes > 0
            welcome = pb.Welcome(
                window=self._settings.window, sends_requests=True, takes_originals=takes, takes_reports=True
            )
            yield pb.DeliverResponse(welcome=welcome)
            with self._dispatch.stream(tenant, source, peer.request_max_bytes, peer.original_max_bytes) as outbox:
                merged = _merged(acks.messages(), outbox, piece_acks, self._dispatch.now)
                async with contextlib.aclosing(merged) as messages:
                    async for frames, message in messages:
                        yield message
                        for _ in range(frames):
                            room.release()
        finally:
            stopper.cancel()
            reader.cancel()
            self._metrics.streams.dec()
            for key in keys:
                self._presence.disconnect(*key)
            self._presence.box_disconnects(tenant, source, box)
            self._open_streams -= 1

    async def _greet(
        self, requests: AsyncIterator[pb.DeliverRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> _Peer:
        """Read Hello. Ends the call with a reason if it is refused."""
        if self._draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is stopping: connect again in a moment")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there was no Hello: it must be the first message")
        if first.WhichOneof("message") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        hello = first.hello
        if not _is_name(hello.source_id):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "source_id must be 1 to 128 printable characters")
        try:
            tenant = self._tokens.tenant(hello.token)
        except AeicError as error:
            await context.abort(grpc_status(error), "the token in Hello is missing or wrong")
        if not self._settings.knows_bundle(hello.bundle_digest):
            digest = hello.bundle_digest[:6].hex()
            log.warning("source %r has bundle %s, which this cloud does not decode", hello.source_id, digest)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this cloud decodes bundle {self._settings.bundle_name}, the edge has"
                f" {digest or 'none'}: install the same bundle on both sides",
            )
        software = _printable(hello.software[:80])
        log.info("source %r connected (%s)", hello.source_id, software)
        limits = hello.request_max_bytes, hello.original_max_bytes
        return _Peer(tenant, hello.source_id, software, hello.window, hello.process_id[:16], *limits)

    async def _read(
        self,
        requests: AsyncIterator[pb.DeliverRequest],
        tenant: str,
        source: str,
        box: bytes,
        acks: AckBatcher[asyncio.Future[Added] | str],
        piece_acks: asyncio.Queue[pb.PieceAck],
        room: asyncio.Semaphore,
        keys: set[tuple[str, str]],
    ) -> None:
        warned = False
        foreign: str | None = None
        try:
            async for request in requests:
                if request.WhichOneof("message") == "refusal":
                    await self._refused(tenant, source, request.refusal)
                    continue
                if request.WhichOneof("message") == "piece":
                    if (piece_ack := await self._originals.take(tenant, source, request.piece)) is not None:
                        await piece_acks.put(piece_ack)
                    continue
                if request.WhichOneof("message") == "report":
                    said = request.report
                    problem = _printable(said.problem[:MAX_PROBLEM])
                    report = Report(min(said.waiting_frames, 2**53), said.oldest_seconds, problem)
                    self._presence.set_report(tenant, source, report)
                    continue
                await room.acquire()
                if not warned and self._presence.is_superseded(tenant, source, box):
                    warned = True
                    self._presence.set_conflict(tenant, source)
                    self._metrics.source_conflicts.inc()
                    log.warning("two boxes send as source %r: give each its own AEIC_EDGE_SOURCE_ID", source)
                if request.WhichOneof("message") != "frame":
                    acks.add(b"", "only frames may follow Hello")
                    continue
                try:
                    began = time.monotonic()
                    frame = await self._accept(request.frame, tenant, source)
                    if frame.reason is not None and frame.fingerprint != foreign:
                        foreign = frame.fingerprint
                        log.warning("source %r sends frames for quarantine: %s", source, frame.reason)
                    trace_arrival(frame.id, request.frame.trace_context, time.monotonic() - began)
                    acks.add(request.frame.id, self._commits.add(frame), request.frame.prompt)
                    if (camera := (tenant, frame.source)) not in keys and len(keys) < MAX_CAMERAS:
                        keys.add(camera)
                        self._presence.connect(*camera)
                except Reject as reason:
                    acks.add(request.frame.id, str(reason))
        finally:
            acks.end()

    async def _refused(self, tenant: str, source: str, refusal: pb.Refusal) -> None:
        if len(refusal.request_id) != 16:
            return
        reason = _REFUSALS.get(refusal.reason, RefusalReason.UNSUPPORTED)
        with contextlib.suppress(StoreUnavailable):  # the request stays open, and is sent again
            await self._dispatch.refused(
                tenant, source, UUID(bytes=refusal.request_id), reason, refusal.detail[:MAX_DETAIL]
            )

    async def _accept(self, message: pb.Frame, tenant: str, source: str) -> NewFrame:
        if len(message.id) != 16:
            raise Reject(f"an id has 16 bytes, this one {len(message.id)}")
        if len(message.bitstream) > self._settings.max_bitstream_bytes:
            raise Reject(f"{len(message.bitstream)} bytes are over the limit of {self._settings.max_bitstream_bytes}")
        if zlib.crc32(message.bitstream) != message.crc32:
            raise Reject("the CRC-32 does not match the bitstream: it was damaged before it was sent")
        if message.source_id and not _is_name(message.source_id):
            raise Reject("source_id must be 1 to 128 printable characters")
        reason = None
        try:
            try:
                frame = self._settings.check(message.bitstream)
            except WrongModel:
                frame = Frame.parse(message.bitstream)
                reason = (
                    f"bundle {frame.fingerprint} made it, which this cloud did not have when it arrived: add the bundle"
                    " to AEIC_CLOUD_OTHER_BUNDLES, then run 'aeic store requeue'"
                )
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
            wanted=self._settings.decode_on_arrival(message.source_id or source),
            original_width=_side(message.original_width),
            original_height=_side(message.original_height),
            captured_from=_CAPTURED_FROM.get(message.captured_from),
            box=source if message.source_id not in ("", source) else None,
            reason=reason,
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
            return pb.Ack(id=id, status=pb.ACK_STATUS_REJECTED, reason="another frame has this id")
        self._metrics.frames.labels(added.value).inc()
        status = pb.ACK_STATUS_STORED if added is Added.STORED else pb.ACK_STATUS_DUPLICATE
        return pb.Ack(id=id, status=status)

    async def _cancel_on_drain(self, reader: asyncio.Task[None]) -> None:
        await self._draining.wait()
        reader.cancel()


async def _merged(
    acks: AsyncGenerator[tuple[int, pb.DeliverResponse], None],
    outbox: Outbox,
    piece_acks: asyncio.Queue[pb.PieceAck],
    now: Callable[[], float],
) -> AsyncGenerator[tuple[int, pb.DeliverResponse], None]:
    """The messages of a stream: its acknowledgements, until they end, and between them the requests to the box and the
    acknowledgements of its pieces."""
    ack = asyncio.ensure_future(anext(acks, None))
    request = asyncio.ensure_future(outbox.next())
    piece_ack = asyncio.ensure_future(piece_acks.get())
    try:
        while True:
            await asyncio.wait((ack, request, piece_ack), return_when=asyncio.FIRST_COMPLETED)
            if ack.done():
                found = ack.result()
                if found is None:
                    return
                yield found
                ack = asyncio.ensure_future(anext(acks, None))
            if request.done():
                if (message := _request(request.result(), now())) is not None:
                    yield 0, pb.DeliverResponse(request=message)
                request = asyncio.ensure_future(outbox.next())
            if piece_ack.done():
                yield 0, pb.DeliverResponse(piece=piece_ack.result())
                piece_ack = asyncio.ensure_future(piece_acks.get())
    finally:
        for task in (ack, request, piece_ack):
            task.cancel()
        await asyncio.gather(ack, request, piece_ack, return_exceptions=True)
        await acks.aclose()


def _request(one: StoredRequest, now: float) -> pb.Request | None:
    """The message of a request; None if it has expired."""
    left = one.deadline_ms - int(now * 1000)
    if left <= 0:
        return None
    x, y, width, height = one.region or (0, 0, 0, 0)
    return pb.Request(
        id=one.id.bytes,
        frame_id=one.parent.bytes,
        kind=_KINDS[one.kind],
        x=x,
        y=y,
        width=width,
        height=height,
        max_bytes=one.max_bytes,
        expires_in_ms=left,
        source_id="" if one.source == one.box else one.source,
    )


def _side(pixels: int) -> int | None:
    """A side of the picture before it was scaled down, in pixels; None if it is unknown or impossible."""
    return pixels if 0 < pixels <= 1 << 20 else None


def _printable(text: str) -> str:
    """The text for a log, a page and a metric: what cannot be printed becomes a question mark."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= 128 and text.isprintable()


def trace_arrival(frame: UUID, context: bytes, seconds: float) -> None:
    """Record the span of a frame that came with a trace context; checking the frame took ``seconds``."""
    if tracing.on() and len(context) == tracing.CONTEXT_BYTES:
        tracing.keep(frame, tracing.span("cloud.ingest", seconds, under=context, attributes={"aeic.frame": str(frame)}))
