"""One stream of the uplink over a thin link, in simulated time: the same figures on every machine, within a second.

Real: stream.py with its window, pieces and order. Simulated: the clock, gRPC's call (a queue of bytes that leave at the
speed of the link), the cloud at its end, and the spool (in memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

from aeic.v1 import ingest_pb2 as pb
from edge_encoder.answers.answerer import (
    PRIORITY,
    File,
    Interrupted,
    PictureRequest,
    RefusalReason,
    Refused,
    RequestKind,
    Send,
)
from edge_encoder.metrics import Metrics
from edge_encoder.spool.record import Record, State
from edge_encoder.uplink import in_flight, stream
from edge_encoder.uplink.stream import Call, Callbacks, Stream, StreamContext
from edge_encoder.uplink.window import Window
from tests.support.edge.fakes import settings

GRPC_PREFIX_BYTES = 5
BUFFER_BYTES = 1 << 16
"""What gRPC and the kernel take before write() waits."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer whenever nothing else is to be done. Nothing may run in other threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]  # private to asyncio, without a type
        select = selector.select

        def jump(timeout: float | None = None) -> Any:
            events = select(0)
            if not events and timeout is None:
                raise RuntimeError("nothing will ever happen")
            if not events and timeout is not None:
                self._now += timeout
            return events

        selector.select = jump
        self.set_default_executor(_Inline())

    def time(self) -> float:
        """Simulated seconds."""
        return self._now


class _Inline(ThreadPoolExecutor):
    """Runs everything at once, in the thread of the loop."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class Plan:
    """What happens: `frames` of `frame_bytes`, one every `period` seconds, and requests at their times."""

    bytes_per_second: float = 2000.0
    latency: float = 0.15
    frame_bytes: int = 800
    period: float = 1.0
    frames: int = 60
    asks: tuple[tuple[float, RequestKind, int], ...] = ()
    """Seconds, kind and bytes; the answer is as large as it may be."""
    cloud: Literal["takes", "old", "silent", "unwanted", "stuck"] = "takes"
    """How the cloud takes pieces: all; none, and it says so; without an answer; with the answer that it wants no more,
    or that it has none."""
    ack_timeout_seconds: float = 1e6


@dataclass
class Run:
    """What was measured. `delays`: seconds from spooling to acknowledgement, by the number of the frame. `answered`:
    seconds that each answer took, in the order in which they ended. `pieces`: bytes of each."""

    delays: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    interrupted: int = 0

    def most_later_than(self, other: Run) -> float:
        """The most by which a frame was later than the same one in another run, in seconds."""
        return max(mine - its for mine, its in zip(self.delays, other.delays, strict=True))


class _Spool:
    """Frames in memory: the largest priority first, then the oldest."""

    def __init__(self, now: Callable[[], float], finished: Callable[[uuid.UUID], None]) -> None:
        self._waiting: dict[uuid.UUID, Record] = {}
        self._leased: set[uuid.UUID] = set()
        self._finished = finished

    @property
    def pending_frames(self) -> int:
        return len(self._waiting)

    def put(self, record: Record) -> None:
        self._waiting[record.id] = record

    def lease(self, limit: int) -> list[Record]:
        free = [record for ident, record in self._waiting.items() if ident not in self._leased]
        chosen = sorted(free, key=lambda record: -record.priority)[:limit]
        self._leased.update(record.id for record in chosen)
        return chosen

    def finish(self, ident: uuid.UUID, state: State, reason: str = "") -> Future[bool]:
        assert state is State.DELIVERED, reason
        del self._waiting[ident]
        self._finished(ident)
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    def release(self, idents: list[uuid.UUID], delay_seconds: float = 0.0) -> None:
        self._leased.difference_update(idents)

    def next_retry_seconds(self) -> None:
        return None


class _Link:
    """gRPC's call, the link, and the cloud at its end, which answers at once."""

    def __init__(self, loop: SimulatedLoop, plan: Plan, run: Run) -> None:
        self._loop, self._plan, self._run = loop, plan, run
        self._free = 0.0  # when all that was written has left
        self._down: asyncio.Queue[pb.DeliverResponse] = asyncio.Queue()
        self._files: dict[bytes, int] = {}

    async def write(self, message: pb.DeliverRequest) -> None:
        rate = self._plan.bytes_per_second
        self._free = max(self._free, self._loop.time()) + (message.ByteSize() + GRPC_PREFIX_BYTES) / rate
        self._loop.call_at(self._free + self._plan.latency, self._arrive, message)
        full = self._free - self._loop.time() - BUFFER_BYTES / rate
        if full > 0:
            await asyncio.sleep(full)

    async def read(self) -> pb.DeliverResponse:
        return await self._down.get()

    def send(self, message: pb.DeliverResponse) -> None:
        """From the cloud to the box."""
        self._loop.call_later(self._plan.latency, self._down.put_nowait, message)

    def _arrive(self, message: pb.DeliverRequest) -> None:
        match message.WhichOneof("message"):
            case "hello":
                welcome = pb.Welcome(window=64, sends_requests=True, takes_originals=self._plan.cloud != "old")
                self.send(pb.DeliverResponse(welcome=welcome))
            case "frame":
                self.send(pb.DeliverResponse(ack=pb.Ack(id=message.frame.id, status=pb.ACK_STATUS_STORED)))
            case "piece":
                piece = message.piece
                had = self._files.get(piece.request_id, 0)
                self._run.pieces.append(len(piece.data))
                if self._plan.cloud in ("stuck", "unwanted"):
                    ack = pb.PieceAck(request_id=piece.request_id, unwanted=self._plan.cloud == "unwanted")
                    self.send(pb.DeliverResponse(piece=ack))
                if self._plan.cloud != "takes":
                    return
                assert piece.offset == had, "a piece that does not follow the last one"
                self._files[piece.request_id] = had + len(piece.data)
                ack = pb.PieceAck(request_id=piece.request_id, received_bytes=had + len(piece.data))
                self.send(pb.DeliverResponse(piece=ack))
            case "refusal":
                self._run.refusals.append(pb.RefusalReason.Name(message.refusal.reason))


def simulate(plan: Plan, folder: Path) -> Run:
    """Sends the frames of a plan, answers its requests, and returns what was measured. `folder` is not written to."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(_simulate(plan, folder))


async def _simulate(plan: Plan, folder: Path) -> Run:
    loop = cast(SimulatedLoop, asyncio.get_running_loop())
    run, wake = Run(), asyncio.Event()
    spooled: dict[uuid.UUID, float] = {}
    acknowledged: dict[uuid.UUID, float] = {}
    answers: set[uuid.UUID] = set()

    def finished(ident: uuid.UUID) -> None:
        acknowledged[ident] = loop.time()
        if ident in answers:
            run.answered.append(loop.time() - spooled[ident])

    spool = _Spool(loop.time, finished)

    async def answer(ask: PictureRequest, send: Send | None) -> None:
        spooled[ask.id] = loop.time()
        answers.add(ask.id)
        if ask.kind is RequestKind.ORIGINAL:
            if send is None:
                raise Refused(RefusalReason.UNSUPPORTED, "as the Answerer does")
            try:
                await send(File(bytes(ask.max_bytes)))
            except Interrupted:
                run.interrupted += 1
                raise
            run.answered.append(loop.time() - spooled[ask.id])
            return
        spool.put(Record(ask.id, bytes(ask.max_bytes), 64, 64, 0, priority=PRIORITY))
        wake.set()

    link = _Link(loop, plan, run)
    given = settings(folder, ack_timeout_seconds=plan.ack_timeout_seconds)
    context = StreamContext(
        cast(Any, spool), given, Metrics(), Window(64), wake, lambda size: None, Callbacks(answer=answer)
    )
    kinds = {RequestKind.REGION: pb.REQUEST_KIND_REGION, RequestKind.ORIGINAL: pb.REQUEST_KIND_ORIGINAL}
    for number, (at, kind, size) in enumerate(plan.asks):
        ident = uuid.UUID(int=0x8 << 76 | 0x2 << 62 | number)
        request = pb.Request(
            id=ident.bytes, frame_id=bytes(16), kind=kinds[kind], max_bytes=size, expires_in_ms=1 << 30
        )
        loop.call_at(at, link.send, pb.DeliverResponse(request=request))

    def frame(number: int) -> None:
        ident = uuid.UUID(int=number + 1)
        spooled[ident] = loop.time()
        spool.put(Record(ident, bytes(plan.frame_bytes), 64, 64, 0))
        wake.set()

    for number in range(plan.frames):
        loop.call_at(1.0 + number * plan.period, frame, number)
    with _clock(loop):
        shipped = Stream(cast(Call, link), context)
        await shipped.greet(pb.Hello(source_id="mast-7"))
        task = asyncio.ensure_future(shipped.ship())
        while len(acknowledged) < plan.frames + sum(kind is not RequestKind.ORIGINAL for _, kind, _ in plan.asks):
            assert not task.done(), task.exception()
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    frames = [uuid.UUID(int=number + 1) for number in range(plan.frames)]
    run.delays = [acknowledged[ident] - spooled[ident] for ident in frames]
    return run


@contextlib.contextmanager
def _clock(loop: SimulatedLoop) -> Iterator[None]:
    """The modules of the uplink read the simulated clock."""
    modules: list[Any] = [in_flight, stream]
    before = [module.time for module in modules]
    for module in modules:
        module.time = SimpleNamespace(monotonic=loop.time, time=loop.time)
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            module.time = old
