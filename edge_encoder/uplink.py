"""The uplink: takes frames from the spool, streams them to the cloud, and never gives up.

    connect -> Hello -> Welcome(window) -> Frame ... Frame | Ack ... Ack -> (stream breaks) -> pause -> connect

A frame leaves the spool when its own Ack came. When the stream breaks, or no Ack comes for ack_timeout_seconds while
frames are under way, what was under way goes back to the spool and is sent again; the cloud knows it by its id.
Runs in one asyncio loop. Knows nothing of pictures or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
import zlib
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from aeic import tracing
from aeic.v1 import ingest_pb2 as pb
from aeic.v1.ingest_pb2_grpc import IngestServiceStub
from edge_encoder.backoff import Backoff
from edge_encoder.channel import open_channel
from edge_encoder.metrics import Metrics
from edge_encoder.records import Record, SpoolError, State
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool import Spool

log = logging.getLogger("aeic.edge.uplink")

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.DeliverRequest, pb.DeliverResponse]"

_GRPC_PREFIX_BYTES = 5
_BURST_SECONDS = 0.05
_ACKS = {
    pb.ACK_STATUS_STORED: ("stored", State.DELIVERED),
    pb.ACK_STATUS_DUPLICATE: ("duplicate", State.DELIVERED),
    pb.ACK_STATUS_REJECTED: ("rejected", State.REJECTED),
}
# What the operator should read when the cloud turns the whole box away.
_REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION: "model-mismatch",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorised",
    grpc.StatusCode.PERMISSION_DENIED: "unauthorised",
    grpc.StatusCode.UNIMPLEMENTED: "wrong-service",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
}


class StreamFailed(Exception):
    """The stream is over; `cause` is a short word for state and metrics."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


@dataclass(slots=True)
class UplinkStatus:
    """What /v1/status tells. `state`: off, connecting, connected, unreachable, stalled, model-mismatch,
    unauthorised, refused, wrong-service."""

    state: str = "connecting"
    detail: str = ""
    since: float = 0.0  # wall clock, seconds
    last_ack: float | None = None
    failures_in_a_row: int = 0


class Uplink:
    """Ships one spool. `run()` until cancelled; `wake()` when a frame was spooled; `drain()` before stopping."""

    def __init__(
        self, spool: Spool, settings: EdgeSettings, metrics: Metrics, *, bundle_digest: bytes, software: str
    ) -> None:
        self.status = UplinkStatus(state="connecting" if settings.cloud_address else "off", since=time.time())
        self._spool = spool
        self._settings = settings
        self._metrics = metrics
        token = settings.token.get_secret_value() if settings.token else ""
        if token and not settings.tls:
            log.warning("the token travels unencrypted; set AEIC_EDGE_TLS=1 outside a trusted network")
        self._hello = pb.Hello(
            source_id=settings.source_id, bundle_digest=bundle_digest, software=software, token=token
        )
        self._wake = asyncio.Event()
        self.delivered_bytes = 0  # of acknowledged frames; tells what the link carries
        self._under_way: dict[uuid.UUID, float] = {}  # id -> when it was handed to gRPC, monotonic; 0 before
        self._sizes: dict[uuid.UUID, int] = {}  # their bytes
        self._progress = 0.0  # when the last Ack came, or the first frame after a quiet time left; monotonic
        self._window = 1
        self._leasing: asyncio.Future[list[Record]] | None = None

    def wake(self) -> None:
        """There may be something to send, or room in the window."""
        self._wake.set()

    async def run(self) -> None:
        """Connects, ships, and after every failure pauses and connects again, until cancelled."""
        if not self._settings.cloud_address:
            return
        backoff = Backoff(self._settings.backoff_min_seconds, self._settings.backoff_max_seconds)
        while True:
            try:
                await self._stream(backoff)
            except StreamFailed as failure:
                self._failed(failure)
            except (OSError, SpoolError) as error:
                self._failed(StreamFailed("local", str(error)))
            except Exception as error:  # a fault of ours must not end the shipping for two years
                log.exception("the uplink stumbled; it goes on")
                self._failed(StreamFailed("internal", repr(error)))
            finally:
                self._metrics.connected.set(0)
                await self._give_back()
            await asyncio.sleep(backoff.pause())

    async def drain(self, seconds: float) -> None:
        """Waits until everything spooled is acknowledged, for at most that long, if the stream is up."""
        deadline = time.monotonic() + seconds
        while self._spool.pending_frames and self.status.state == "connected" and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    # -- one stream --------------------------------------------------------------------------------------------

    async def _stream(self, backoff: Backoff) -> None:
        async with contextlib.AsyncExitStack() as stack:
            channel = await stack.enter_async_context(open_channel(self._settings))
            call = IngestServiceStub(channel).Deliver(wait_for_ready=False)
            stack.callback(call.cancel)
            try:
                await self._greet(call)
                backoff.reset()
                tasks = [asyncio.ensure_future(work(call)) for work in (self._send, self._receive, self._watch)]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            except grpc.aio.AioRpcError as error:
                cause = _REFUSALS.get(error.code(), "unreachable")
                raise StreamFailed(cause, f"{error.code().name}: {error.details()}") from None
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise StreamFailed("unreachable", f"the stream ended: {error}") from None

    async def _greet(self, call: Call) -> None:
        timeout = self._settings.ack_timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                await self._write(call, pb.DeliverRequest(hello=self._hello))
                answer = await call.read()
        except TimeoutError:
            raise StreamFailed("stalled", f"no Welcome within {timeout:g} s") from None
        if not isinstance(answer, pb.DeliverResponse):
            raise await _ended(call)
        if answer.WhichOneof("message") != "welcome":
            raise StreamFailed("refused", "the cloud did not answer Hello with Welcome")
        self._window = max(1, min(answer.welcome.window or 1, self._settings.window_frames))
        self._set_status("connected", f"window {self._window}")
        self.status.failures_in_a_row = 0
        self._metrics.connected.set(1)
        log.info("uplink connected to %s, window %d", self._settings.cloud_address, self._window)

    async def _send(self, call: Call) -> None:
        while True:
            await self._gather_room()
            self._wake.clear()
            room = self._window - len(self._under_way)
            records = await self._lease(room) if room > 0 else []
            for record in records:
                now = time.monotonic()
                if not any(self._under_way.values()):
                    self._progress = now
                self._under_way[record.id] = now
                await self._write(call, pb.DeliverRequest(frame=_frame(record, self._settings.source_id)))
            self._metrics.in_flight.set(len(self._under_way))
            if not records:
                rest = self._spool.next_retry_seconds() if room > 0 else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), None if rest is None else rest + 0.01)

    async def _gather_room(self) -> None:
        """With a full window, waits a moment until half of it is free. gRPC puts a window update (26 bytes) into the
        first write after anything was received; frames sent in bursts share it, frames sent singly each pay it."""
        deadline = time.monotonic() + _BURST_SECONDS
        while 0 < self._window - len(self._under_way) < self._window // 2 and time.monotonic() < deadline:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, deadline - time.monotonic()))

    async def _lease(self, room: int) -> list[Record]:
        # The future is kept: if the stream breaks meanwhile, _give_back() must still learn what was leased.
        self._leasing = asyncio.get_running_loop().run_in_executor(None, self._spool.lease, room)
        records = await asyncio.shield(self._leasing)
        self._leasing = None
        for record in records:
            self._under_way[record.id] = 0.0
            self._sizes[record.id] = len(record.data)
        return records

    async def _receive(self, call: Call) -> None:
        while True:
            answer = await call.read()
            if not isinstance(answer, pb.DeliverResponse):
                raise await _ended(call)
            self._metrics.stream_bytes.labels("down").inc(answer.ByteSize() + _GRPC_PREFIX_BYTES)
            if answer.WhichOneof("message") == "ack":
                self._acknowledged(answer.ack)

    async def _watch(self, call: Call) -> None:
        timeout = self._settings.ack_timeout_seconds
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            if any(self._under_way.values()) and time.monotonic() - self._progress > timeout:
                raise StreamFailed("stalled", f"{len(self._under_way)} frames under way, no Ack for {timeout:g} s")

    async def _write(self, call: Call, message: pb.DeliverRequest) -> None:
        await call.write(message)
        self._metrics.stream_bytes.labels("up").inc(message.ByteSize() + _GRPC_PREFIX_BYTES)

    # -- book-keeping ------------------------------------------------------------------------------------------

    def _acknowledged(self, ack: pb.Ack) -> None:
        if len(ack.id) != 16 or ack.status not in _ACKS:
            log.warning("the cloud sent an Ack without a known id or status; it is ignored")
            return
        ident = uuid.UUID(bytes=ack.id)
        word, state = _ACKS[ack.status]
        sent = self._under_way.pop(ident, None)
        self.delivered_bytes += self._sizes.pop(ident, 0)
        self._progress = time.monotonic()
        self.status.last_ack = time.time()
        self._metrics.acks.labels(word).inc()
        self._metrics.in_flight.set(len(self._under_way))
        if sent:
            self._metrics.stage_seconds.labels("ship").observe(time.monotonic() - sent)
        if state is State.REJECTED:
            log.error("the cloud rejected frame %s: %s", ident, ack.reason)
        future = self._spool.finish(ident, state, ack.reason[:200])
        # Not recorded (disk full): rest the frame and send it again; the cloud will say DUPLICATE.
        future.add_done_callback(lambda done: self._spool.release([ident], 5.0) if done.exception() else None)
        self._wake.set()

    async def _give_back(self) -> None:
        if self._leasing is not None:
            leased = (await asyncio.gather(self._leasing, return_exceptions=True))[0]
            self._leasing = None
            if isinstance(leased, list):
                self._under_way.update((record.id, 0.0) for record in leased)
        # The cloud answers in order, so if a frame broke the stream it is the first: that one rests, the others do not.
        first = next(iter(self._under_way), None)
        for ident in self._under_way:
            self._spool.release([ident], self._settings.backoff_min_seconds if ident == first else 0.0)
        self._under_way.clear()
        self._sizes.clear()
        self._metrics.in_flight.set(0)

    def _failed(self, failure: StreamFailed) -> None:
        self._metrics.reconnects.labels(failure.cause).inc()
        self.status.failures_in_a_row += 1
        state = "unreachable" if failure.cause in ("closed", "local", "internal") else failure.cause
        if (self.status.state, self.status.detail) != (state, str(failure)):
            level = logging.ERROR if state in _REFUSALS.values() else logging.WARNING
            log.log(level, "uplink %s: %s; %d frames wait", state, failure, self._spool.pending_frames)
        self._set_status(state, str(failure))

    def _set_status(self, state: str, detail: str) -> None:
        if self.status.state != state:
            self.status.since = time.time()
        self.status.state, self.status.detail = state, detail


async def _ended(call: Call) -> StreamFailed:
    code = await call.code()
    cause = "closed" if code is grpc.StatusCode.OK else _REFUSALS.get(code, "unreachable")
    return StreamFailed(cause, f"{code.name}: {await call.details() or 'the cloud ended the stream'}")


def _frame(record: Record, own_source: str) -> pb.Frame:
    return pb.Frame(
        id=record.id.bytes,
        bitstream=record.data,
        crc32=zlib.crc32(record.data),
        captured_unix_ms=record.captured_ms,
        priority=record.priority,
        source_id="" if record.source_id == own_source else record.source_id,
        trace_context=tracing.kept(record.id),
    )
