"""A sender as the edge's uplink is one: a window of frames on a stream, sent again on the next until acknowledged."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import grpc

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc


class Camera:
    """``acked`` holds when each id was first acknowledged (monotonic seconds); ``breaks`` counts lost streams."""

    def __init__(self, address: str, bundle: Bundle, source: str) -> None:
        self._address, self._bundle, self._source = address, bundle, source
        self.acked: dict[UUID, float] = {}
        self.statuses: Counter[str] = Counter()
        self.breaks = 0

    async def send(self, frames: Sequence[tuple[UUID, bytes]], per_second: float = 0.0) -> None:
        """All of them, however often the stream breaks. ``per_second`` 0 is as fast as the window allows."""
        begun = time.monotonic()
        waiting = deque(frames)
        order = {id: number for number, (id, _) in enumerate(frames)}
        while len(self.acked) < len(frames):
            try:
                await self._stream(waiting, frames, order, begun, per_second)
            except (grpc.aio.AioRpcError, EOFError, asyncio.CancelledError, TimeoutError) as error:
                if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
                    raise
                self.breaks += 1
                await asyncio.sleep(0.1)
            waiting = deque(one for one in frames if one[0] not in self.acked)

    async def _stream(
        self,
        waiting: deque[tuple[UUID, bytes]],
        frames: Sequence[tuple[UUID, bytes]],
        order: dict[UUID, int],
        begun: float,
        per_second: float,
    ) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own: SO_REUSEPORT spreads those
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call = pb_grpc.IngestServiceStub(channel).Deliver()
            writing: asyncio.Task[None] | None = None
            try:
                hello = pb.Hello(source_id=self._source, bundle_digest=self._bundle.digest, software="test")
                await call.write(pb.DeliverRequest(hello=hello))
                window = asyncio.Semaphore((await self._read(call)).welcome.window)
                writing = asyncio.create_task(self._write(call, waiting, window, order, begun, per_second))
                while len(self.acked) < len(frames):
                    ack = (await self._read(call)).ack
                    window.release()
                    self.statuses[pb.AckStatus.Name(ack.status)] += 1
                    if ack.status == pb.ACK_STATUS_REJECTED:
                        raise RuntimeError(ack.reason)
                    self.acked.setdefault(UUID(bytes=ack.id), time.monotonic())
            finally:
                if writing is not None:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                call.cancel()

    async def _write(
        self,
        call: Any,
        waiting: deque[tuple[UUID, bytes]],
        window: asyncio.Semaphore,
        order: dict[UUID, int],
        begun: float,
        per_second: float,
    ) -> None:
        while waiting:
            id, data = waiting.popleft()
            if per_second and (early := begun + order[id] / per_second - time.monotonic()) > 0:
                await asyncio.sleep(early)
            await window.acquire()
            frame = pb.Frame(id=id.bytes, bitstream=data, crc32=zlib.crc32(data), captured_unix_ms=1)
            await call.write(pb.DeliverRequest(frame=frame))

    async def _read(self, call: Any) -> pb.DeliverResponse:
        async with asyncio.timeout(15):
            response = await call.read()
        if response is grpc.aio.EOF:
            raise EOFError
        return response
