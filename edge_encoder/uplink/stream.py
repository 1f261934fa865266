"""One stream to the cloud, from Hello to its end: what is sent, what is answered, and when it counts as broken.

Four tasks share it: one leases frames and sends them, one reads answers, one checks that answers arrive at all, and one
sends health reports. Each request of the cloud is a task besides. A picture file that answers one is
sent in pieces: the next piece only after the answer to the last one, while no frame waits or is in flight, so that a
frame waits for one piece at most. Where frames are in flight all the time, pieces take a tenth of the time, and none
while frames wait to be sent.
An Ack ends one frame (_ACKS). A rejected frame is not sent again; while a bundle is on trial it also ends the trial,
and the edge restarts (bundle_update/trial.py). A gRPC status ends the stream and no frame: the uplink (uplink.py)
returns the unanswered frames to the spool, shows the state that REFUSALS gives the status, `unreachable` or a problem
of TLS for all others, and connects again after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import logging
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from aeic.v1 import ingest_pb2 as pb
from aeic_service import tracing
from edge_encoder.answers.answerer import (
    File,
    Ignored,
    Interrupted,
    PictureRequest,
    RefusalReason,
    Refused,
    RequestKind,
    Send,
)
from edge_encoder.answers.hourly_budget import PIECE_HEAD_BYTES, bytes_in_pieces
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool.record import Record, State
from edge_encoder.spool.spool import Spool
from edge_encoder.uplink.in_flight import InFlight
from edge_encoder.uplink.pieces import PieceSize
from edge_encoder.uplink.window import Window

log = logging.getLogger("aeic.edge.uplink")

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DeliverRequest, pb.DeliverResponse]"

_GRPC_PREFIX_BYTES = 5
# Frames leased at a time. An urgent frame that arrives meanwhile is sent after them, so the number is small.
_LEASE_FRAMES = 8
_ACKS = {
    pb.ACK_STATUS_STORED: ("stored", State.DELIVERED),
    pb.ACK_STATUS_DUPLICATE: ("duplicate", State.DELIVERED),
    pb.ACK_STATUS_REJECTED: ("rejected", State.REJECTED),
}
_KINDS = {
    pb.REQUEST_KIND_BETTER: RequestKind.BETTER,
    pb.REQUEST_KIND_REGION: RequestKind.REGION,
    pb.REQUEST_KIND_ORIGINAL: RequestKind.ORIGINAL,
    pb.REQUEST_KIND_NOW: RequestKind.NOW,
}
_REASONS = {
    RefusalReason.GONE: pb.REFUSAL_REASON_GONE,
    RefusalReason.FORBIDDEN: pb.REFUSAL_REASON_FORBIDDEN,
    RefusalReason.OVER_BUDGET: pb.REFUSAL_REASON_OVER_BUDGET,
    RefusalReason.EXPIRED: pb.REFUSAL_REASON_EXPIRED,
    RefusalReason.UNSUPPORTED: pb.REFUSAL_REASON_UNSUPPORTED,
}
_DETAIL_BYTES = 190
"""Of a refusal, in UTF-8: with all around it, it has no more than the REQUEST_BYTES that are charged for it."""
RECORD_AGAIN_SECONDS = 5.0
"""A frame whose delivery could not be recorded is sent again after this long; doubled per attempt."""
_PAUSES = 9.0
"""Where frames are in flight all the time, a piece follows the last one after this many times the time of that one."""
_REQUESTS = 64
"""Requests of one kind about one source in progress on one stream; the cloud sends those beyond it again later. An
original may take minutes, and a camera that is down until the deadline: they keep no others waiting."""
_REQUESTS_IN_ALL = 1024
# The uplink's state when the cloud refuses the box as a whole.
REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION: "model-mismatch",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorised",
    grpc.StatusCode.PERMISSION_DENIED: "unauthorised",
    grpc.StatusCode.UNIMPLEMENTED: "wrong-service",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
}
UNREACHABLE = "unreachable"


REPORT_SECONDS = 60.0
"""Between two looks at the health of the box."""
REPORT_AGAIN_SECONDS = 900.0
"""Between two reports while nothing changes."""


@dataclass(frozen=True, slots=True)
class Report:
    """The health of the box: frames that wait to be sent, seconds that the oldest has waited, and what keeps the box
    from its work; "" if nothing does."""

    waiting_frames: int = 0
    oldest_seconds: int = 0
    problem: str = ""


class StreamFailed(Exception):
    """The stream is over; `cause` is a short word for state and metrics."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What an uplink asks of the rest of the edge.

    `prompt(id)` is true while a client waits for that frame. `answer` answers the cloud's requests (Answerer.answer);
    without it the cloud sends none. `report` returns the edge's health, with the frames in flight among those that
    wait.
    """

    prompt: Callable[[uuid.UUID], bool] = lambda ident: False
    answer: Callable[[PictureRequest, Send | None], Awaitable[None]] | None = None
    report: Callable[[], Awaitable[Report]] | None = None


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What the streams of one uplink share.

    `window` is the edge's own limit; `wake` is set when there may be something to send; `answered(bytes)` is called for
    each acknowledged frame.
    """

    spool: Spool
    settings: EdgeSettings
    metrics: Metrics
    window: Window
    wake: asyncio.Event
    answered: Callable[[int], None]
    callbacks: Callbacks = Callbacks()


class Stream:
    """One stream over `call`: `greet()`, then `ship()` until it raises, then `give_back()`."""

    def __init__(self, call: Call, context: StreamContext) -> None:
        self.window = 1  # the cloud's limit, from its Welcome
        self._call = call
        self._own_window = context.window
        self._spool = context.spool
        self._settings = context.settings
        self._metrics = context.metrics
        self._wake = context.wake
        self._answered = context.answered
        self._prompt = context.callbacks.prompt
        self._answer = context.callbacks.answer
        self._report = context.callbacks.report
        self._takes_reports = False
        self._requests: dict[bytes, asyncio.Task[None]] = {}
        self._in_progress: Counter[tuple[RequestKind, str]] = Counter()  # by kind and source
        self._takes_originals = False
        self._piece = PieceSize()
        self._pieces: dict[bytes, asyncio.Future[pb.PieceAck]] = {}  # those on their way, by the request's id
        self._quiet = asyncio.Event()  # set while no frame waits to be sent
        self._idle = asyncio.Event()  # set while, besides, none is in flight
        self._writing = asyncio.Lock()
        self._in_flight = InFlight()
        self._leasing: asyncio.Future[list[Record]] | None = None

    async def greet(self, hello: pb.Hello) -> None:
        """Sends Hello and takes the window from Welcome."""
        self._metrics.stream_bytes.labels("up").inc(hello.ByteSize() + _GRPC_PREFIX_BYTES)
        welcome = await greet(self._call, hello, self._settings.ack_timeout_seconds)
        self.window = max(1, welcome.window)
        self._takes_originals = welcome.takes_originals
        self._takes_reports = welcome.takes_reports

    async def ship(self) -> None:
        """Sends frames and reads answers until the stream breaks."""
        tasks = [asyncio.ensure_future(work()) for work in (self._send, self._receive, self._watch, self._send_reports)]
        try:
            await asyncio.gather(*tasks)
        finally:
            tasks += self._requests.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def give_back(self) -> None:
        """Returns unanswered frames to the spool. The cloud answers in order, so a frame that broke the stream is the
        first one: only that one waits before its next attempt."""
        if self._leasing is not None:
            leased = (await asyncio.gather(self._leasing, return_exceptions=True))[0]
            for record in leased if isinstance(leased, list) else ():
                self._in_flight.lease(record.id, len(record.data))
        for place, ident in enumerate(self._in_flight.clear()):
            self._spool.release([ident], 0.0 if place else self._settings.backoff_min_seconds)
        self._metrics.in_flight.set(0)

    async def _send(self) -> None:
        while True:
            self._wake.clear()
            self._quiet.clear()
            self._idle.clear()
            limit = min(self.window, self._own_window.frames)
            room = limit - len(self._in_flight)
            records = await self._lease(min(room, _LEASE_FRAMES)) if room > 0 else []
            for record in records:
                self._in_flight.send(record.id)
                frame = self._frame(record)
                if record is records[-1] and len(self._in_flight) >= limit:
                    frame.prompt = (
                        True  # it fills the window, so the cloud must not wait for more frames before it answers
                    )
                await self._write(pb.DeliverRequest(frame=frame))
            self._metrics.in_flight.set(len(self._in_flight))
            if not records:
                if room > 0:
                    self._quiet.set()
                if not self._in_flight:
                    self._idle.set()
                rest = self._spool.next_retry_seconds() if room > 0 else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), None if rest is None else rest + 0.01)

    async def _lease(self, room: int) -> list[Record]:
        # The future is kept: if the stream breaks during the lease, give_back() still needs its result.
        self._leasing = asyncio.get_running_loop().run_in_executor(None, self._spool.lease, room)
        records = await asyncio.shield(self._leasing)
        self._leasing = None
        for record in records:
            self._in_flight.lease(record.id, len(record.data))
        return records

    async def _receive(self) -> None:
        while True:
            answer = await self._call.read()
            if not isinstance(answer, pb.DeliverResponse):
                raise await _ended(self._call)
            self._metrics.stream_bytes.labels("down").inc(answer.ByteSize() + _GRPC_PREFIX_BYTES)
            match answer.WhichOneof("message"):
                case "stored":
                    try:
                        idents = self._in_flight.first(answer.stored)
                    except ValueError as error:
                        raise StreamFailed(
                            "refused", f"the cloud acknowledged frames that were not sent: {error}"
                        ) from None
                    for ident in idents:
                        self._acknowledged(ident, pb.ACK_STATUS_STORED, "")
                case "ack" if len(answer.ack.id) == 16 and answer.ack.status in _ACKS:
                    self._acknowledged(uuid.UUID(bytes=answer.ack.id), answer.ack.status, answer.ack.reason)
                case "request":
                    self._take(answer.request)
                case "piece":
                    waiting = self._pieces.get(answer.piece.request_id)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(answer.piece)
                case "ack":
                    log.warning("the cloud sent an Ack without a known id or status; it is ignored")

    def _take(self, request: pb.Request) -> None:
        alike = _KINDS.get(request.kind, RequestKind.UNKNOWN), request.source_id
        full = self._in_progress[alike] >= _REQUESTS or len(self._requests) >= _REQUESTS_IN_ALL
        if self._answer is None or request.id in self._requests or full:
            return
        if len(request.id) != 16 or len(request.frame_id) != 16 or uuid.UUID(bytes=request.id).version != 8:
            log.warning("the cloud sent a malformed request; it is ignored")
            return
        task = asyncio.ensure_future(self._work(request))
        self._requests[request.id] = task
        self._in_progress[alike] += 1

        def ended(_: asyncio.Task[None]) -> None:
            del self._requests[request.id]
            self._in_progress[alike] -= 1
            if not self._in_progress[alike]:
                del self._in_progress[alike]

        task.add_done_callback(ended)

    async def _work(self, request: pb.Request) -> None:
        assert self._answer is not None
        ask = PictureRequest(
            id=uuid.UUID(bytes=request.id),
            frame_id=uuid.UUID(bytes=request.frame_id),
            kind=_KINDS.get(request.kind, RequestKind.UNKNOWN),
            region=(request.x, request.y, request.width, request.height),
            max_bytes=request.max_bytes,
            seconds=request.expires_in_ms / 1000,
            source_id=request.source_id,
        )
        send = functools.partial(self._send_file, request.id) if self._takes_originals else None
        try:
            await self._answer(ask, send)
            return
        except Refused as refused:
            reason = _REASONS[refused.reason]
            detail = str(refused).encode()[:_DETAIL_BYTES].decode(errors="ignore")
        except Ignored as ignored:
            log.debug("request %s is ignored: %s", ask.id, ignored)
            return
        except (SpoolError, Interrupted) as error:
            log.warning("request %s waits: %s", ask.id, error)
            return
        except Exception:
            log.exception("request %s could not be answered", ask.id)
            return
        refusal = pb.Refusal(request_id=request.id, reason=reason, detail=detail)
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            await self._write(pb.DeliverRequest(refusal=refusal))  # on a stream that has ended, the cloud asks again

    async def _send_file(self, request_id: bytes, file: File) -> None:
        """Sends a file in pieces, from where the cloud has it already: the answer to the first one says so, and each
        other piece follows the last one. Interrupted if the cloud answers late, or asks for what it has got; Refused if
        the rest of the file needs more than `file.limit` allows."""
        size, digest, offset = len(file.data), hashlib.sha256(file.data).digest(), 0
        took, first = 0.0, True
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSES * took):
                    await self._idle.wait()
            await self._quiet.wait()
            data = file.data[offset : offset + min(self._piece.bytes, file.limit - file.sent - PIECE_HEAD_BYTES)]
            answer: asyncio.Future[pb.PieceAck] = asyncio.get_running_loop().create_future()
            self._pieces[request_id] = answer
            begin = time.monotonic()
            try:
                piece = pb.Piece(request_id=request_id, total_bytes=size, sha256=digest, offset=offset, data=data)
                file.spend(len(data) + PIECE_HEAD_BYTES)
                await self._write(pb.DeliverRequest(piece=piece))
                async with asyncio.timeout(self._settings.ack_timeout_seconds):
                    ack = await answer
            except (TimeoutError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                self._piece.unanswered()
                raise Interrupted("a piece of its file was not answered") from None
            finally:
                del self._pieces[request_id]
            took = time.monotonic() - begin
            self._piece.answered(took)
            due, offset = offset + len(data), min(ack.received_bytes, size)
            if ack.unwanted or offset == size:
                return
            left, rest = file.limit - file.sent, size - offset
            if left < rest + PIECE_HEAD_BYTES and file.limit < bytes_in_pieces(size):
                raise Refused(
                    RefusalReason.OVER_BUDGET, f"the rest of the file has {rest} bytes, {max(0, left)} are left"
                )
            if left <= PIECE_HEAD_BYTES or not (first or offset == due):
                raise Interrupted("the cloud asks for pieces again that were sent to it")
            first = False

    async def _watch(self) -> None:
        timeout = self._settings.ack_timeout_seconds
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            if self._in_flight.sent and time.monotonic() - self._in_flight.progress > timeout:
                raise StreamFailed("stalled", f"{len(self._in_flight)} frames in flight, no answer for {timeout:g} s")

    async def _send_reports(self) -> None:
        """Reports the health of the box: at once, then when it has changed, and at least every REPORT_AGAIN_SECONDS."""
        last, at = Report(), float("-inf")
        while self._takes_reports and self._report is not None:
            try:
                report = await self._report()
            except SpoolError as error:
                report = Report(problem=str(error))
            waiting = max(0, report.waiting_frames - len(self._in_flight))
            report = dataclasses.replace(
                report,
                waiting_frames=waiting,
                oldest_seconds=report.oldest_seconds if waiting else 0,
                problem=report.problem.encode()[:_DETAIL_BYTES].decode(errors="ignore"),
            )
            if report != last or time.monotonic() - at >= REPORT_AGAIN_SECONDS:
                last, at = report, time.monotonic()
                await self._write(pb.DeliverRequest(report=pb.Report(**dataclasses.asdict(report))))
            await asyncio.sleep(REPORT_SECONDS)

    async def _write(self, message: pb.DeliverRequest) -> None:
        async with self._writing:  # gRPC takes one message at a time
            await self._call.write(message)
        self._metrics.stream_bytes.labels("up").inc(message.ByteSize() + _GRPC_PREFIX_BYTES)

    def _acknowledged(self, ident: uuid.UUID, status: pb.AckStatus, reason: str) -> None:
        word, state = _ACKS[status]
        size, seconds = self._in_flight.answer(ident)
        self._answered(size)
        self._metrics.acks.labels(word).inc()
        self._metrics.in_flight.set(len(self._in_flight))
        if seconds is not None:
            self._own_window.answered(seconds)
            self._metrics.stage_seconds.labels("ship").observe(seconds)
        if state is State.REJECTED:
            log.error("the cloud rejected frame %s: %s", ident, reason)
        loop = asyncio.get_running_loop()

        def recorded(done: Future[bool]) -> None:
            """In the thread of the spool. A delivery that could not be recorded is sent again later; the cloud answers
            DUPLICATE. The sender may be waiting without a deadline, so it is woken to take the new one."""
            if done.exception() is not None:
                self._spool.release([ident], RECORD_AGAIN_SECONDS)
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._wake.set)

        self._spool.finish(ident, state, reason[:200]).add_done_callback(recorded)
        self._wake.set()

    def _frame(self, record: Record) -> pb.Frame:
        return pb.Frame(
            id=record.id.bytes,
            bitstream=record.data,
            crc32=zlib.crc32(record.data),
            captured_unix_ms=record.captured_ms,
            priority=record.priority,
            source_id="" if record.source_id == self._settings.source_id else record.source_id,
            prompt=self._prompt(record.id),
            original_width=record.original_width,
            original_height=record.original_height,
            captured_from=pb.CaptureTimeSource.Name(record.captured_from.value),
            trace_context=tracing.kept(record.id),
        )


async def greet(call: Call, hello: pb.Hello, seconds: float) -> pb.Welcome:
    """Sends Hello and returns the Welcome. StreamFailed or AioRpcError when none arrives."""
    try:
        async with asyncio.timeout(seconds):
            await call.write(pb.DeliverRequest(hello=hello))
            answer = await call.read()
    except TimeoutError:
        raise StreamFailed("stalled", f"no Welcome within {seconds:g} s") from None
    if not isinstance(answer, pb.DeliverResponse):
        raise await _ended(call)
    if answer.WhichOneof("message") != "welcome":
        raise StreamFailed("refused", "the cloud did not answer Hello with Welcome")
    return answer.welcome


async def _ended(call: Call) -> StreamFailed:
    code = await call.code()
    cause = "closed" if code is grpc.StatusCode.OK else REFUSALS.get(code, UNREACHABLE)
    return StreamFailed(cause, f"{code.name}: {await call.details() or 'the cloud ended the stream'}")
