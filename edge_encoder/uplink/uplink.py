"""The uplink: takes frames from the spool, streams them to the cloud, and never gives up.

    connect -> Hello -> Welcome(window) -> Frame ... Frame | answer ... answer -> (stream breaks) -> pause -> connect

A frame leaves the spool when the cloud has acknowledged it: stream.py then calls Spool.finish, which frees its bytes.
When the stream breaks, or no answer arrives for ack_timeout_seconds while frames are in flight, the unanswered frames
return to the spool and are sent again; the cloud recognises repeated frames by their id. Runs in one asyncio loop.
Independent of pictures and HTTP. stream.py is one stream; this module opens one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import dataclass

import grpc

from aeic.v1 import ingest_pb2 as pb
from aeic.v1.ingest_pb2_grpc import IngestServiceStub
from aeic_service.backoff import Backoff
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool.spool import Spool
from edge_encoder.uplink.channel import open_channel
from edge_encoder.uplink.stream import REFUSALS, UNREACHABLE, Callbacks, Stream, StreamContext, StreamFailed, greet
from edge_encoder.uplink.tls import TLS_FAILED, explain
from edge_encoder.uplink.window import Window

log = logging.getLogger("aeic.edge.uplink")

_PROCESS_ID = secrets.token_bytes(16)


@dataclass(slots=True)
class UplinkStatus:
    """The uplink's part of /v1/status. `state`: off, connecting, connected, unreachable, stalled, tls-failed,
    model-mismatch, unauthorised, refused, wrong-service."""

    state: str = "connecting"
    detail: str = ""
    since: float = 0.0  # wall clock, seconds
    last_ack: float | None = None
    failures_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """What an edge says of itself besides its settings: the digest of its bundle, and its program with version."""

    bundle_digest: bytes
    software: str


class Uplink:
    """Ships one spool. `run()` until cancelled; `wake()` when a frame was spooled; `drain()` before stopping."""

    def __init__(
        self,
        spool: Spool,
        settings: EdgeSettings,
        metrics: Metrics,
        identity: Identity,
        callbacks: Callbacks = Callbacks(),
    ) -> None:
        self.status = UplinkStatus(state="connecting" if settings.cloud_address else "off", since=time.time())
        self.delivered_bytes = 0  # of acknowledged frames: measures the link
        self._spool = spool
        self._settings = settings
        self._metrics = metrics
        if not settings.cloud_address:  # an edge that never sends is not disconnected
            metrics.registry.unregister(metrics.connected)
        if settings.token and settings.token.get_secret_value() and not settings.tls:
            log.warning("the token travels unencrypted; set AEIC_EDGE_TLS=1 outside a trusted network")
        self._hello = _hello(settings, identity)
        if callbacks.answer is not None:
            self._hello.request_max_bytes = settings.request_max_bytes
            self._hello.original_max_bytes = settings.request_original_max_bytes
        self._wake = asyncio.Event()
        self._context = StreamContext(
            spool, settings, metrics, Window(settings.window_frames), self._wake, self._answered, callbacks
        )

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
                self._failed(_explained(failure, self._settings))
            except (OSError, SpoolError) as error:
                self._failed(StreamFailed("local", str(error)))
            except Exception as error:  # a programming error must not end delivery until the next restart
                log.exception("unexpected error in the uplink; it reconnects")
                self._failed(StreamFailed("internal", repr(error)))
            finally:
                self._metrics.connected.set(0)
            await asyncio.sleep(backoff.pause())

    async def drain(self, seconds: float) -> None:
        """Waits until everything spooled is acknowledged, for at most that long, if the stream is up."""
        deadline = time.monotonic() + seconds
        while self._spool.pending_frames and self.status.state == "connected" and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _stream(self, backoff: Backoff) -> None:
        async with contextlib.AsyncExitStack() as stack:
            channel = await stack.enter_async_context(open_channel(self._settings))
            call = IngestServiceStub(channel).Deliver(wait_for_ready=False)
            stack.callback(call.cancel)
            stream = Stream(call, self._context)
            stack.push_async_callback(stream.give_back)
            try:
                await stream.greet(self._hello)
                backoff.reset()
                self._set_status("connected", f"window {stream.window}")
                self.status.failures_in_a_row = 0
                self._metrics.connected.set(1)
                log.info("uplink connected to %s, window %d", self._settings.cloud_address, stream.window)
                await stream.ship()
            except grpc.aio.AioRpcError as error:
                cause = REFUSALS.get(error.code(), UNREACHABLE)
                raise StreamFailed(cause, f"{error.code().name}: {error.details()}") from None
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise StreamFailed("unreachable", f"the stream ended: {error}") from None

    def _answered(self, size: int) -> None:
        self.delivered_bytes += size
        self.status.last_ack = time.time()

    def _failed(self, failure: StreamFailed) -> None:
        self._metrics.reconnects.labels(failure.cause).inc()
        self.status.failures_in_a_row += 1
        state = UNREACHABLE if failure.cause in ("closed", "local", "internal") else failure.cause
        if (self.status.state, self.status.detail) != (state, str(failure)):
            level = logging.ERROR if state in (*REFUSALS.values(), TLS_FAILED) else logging.WARNING
            log.log(level, "uplink %s: %s; %d frames wait", state, failure, self._spool.pending_frames)
        self._set_status(state, str(failure))

    def _set_status(self, state: str, detail: str) -> None:
        if self.status.state != state:
            self.status.since = time.time()
        self.status.state, self.status.detail = state, detail


async def ask(settings: EdgeSettings, identity: Identity) -> str:
    """Whether the cloud accepts frames of that bundle now: "" if so, else the state the uplink would be in."""
    async with open_channel(settings) as channel:
        call = IngestServiceStub(channel).Deliver(wait_for_ready=False)
        try:
            await greet(call, _hello(settings, identity), min(10.0, settings.ack_timeout_seconds))
        except StreamFailed as failure:
            return _explained(failure, settings).cause
        except grpc.aio.AioRpcError as error:
            ended = StreamFailed(REFUSALS.get(error.code(), UNREACHABLE), error.details() or "")
            return _explained(ended, settings).cause
        except (grpc.aio.UsageError, asyncio.InvalidStateError):
            return "unreachable"
        finally:
            call.cancel()
    return ""


def _explained(failure: StreamFailed, settings: EdgeSettings) -> StreamFailed:
    """The failure of a connection with what it means (tls.py); any other as it is."""
    if failure.cause != UNREACHABLE:
        return failure
    state, meaning = explain(str(failure), tls=settings.tls, own_certificate=settings.tls_cert is not None)
    return StreamFailed(state, meaning)


def _hello(settings: EdgeSettings, identity: Identity) -> pb.Hello:
    return pb.Hello(
        source_id=settings.source_id,
        bundle_digest=identity.bundle_digest,
        software=identity.software,
        token=settings.token.get_secret_value() if settings.token else "",
        window=settings.window_frames,
        process_id=_PROCESS_ID,
    )
