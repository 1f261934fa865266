"""The acknowledgements of one stream, in the order of its frames. Consecutive stored frames share one message.

An acknowledgement is ready once the store has committed the frame, for which ingest.py asks group_commit.py. Here it is
sent.

    STORED STORED STORED REJECTED STORED ...   ->   {stored: 3} {ack: rejected} {stored: 1} ...

A message costs an HTTP/2 header and window updates, some 60 bytes in all, which is far more than the acknowledgement
itself. At most one message is therefore sent in GATHER_SECONDS, unless half the edge's window waits for it or a caller
waits for a frame (Frame.prompt). A frame that arrives after a quiet time is acknowledged at once. An edge that names no
window in its Hello knows only Ack and gets one for each frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from aeic.v1 import ingest_pb2 as pb

GATHER_SECONDS = 1.0

Result = TypeVar("Result")


class AckBatcher(Generic[Result]):
    """``resolve(id, result)`` waits for the result of a frame and returns its Ack; ``window`` is the edge's, or 0."""

    def __init__(self, window: int, resolve: Callable[[bytes, Result], Awaitable[pb.Ack]]) -> None:
        self._half = window // 2
        self._gathers = window > 0
        self._resolve = resolve
        self._queue: asyncio.Queue[tuple[bytes, Result, bool] | None] = asyncio.Queue()

    def add(self, id: bytes, result: Result, prompt: bool = False) -> None:
        """Add the next frame of the stream. With ``prompt`` its acknowledgement is sent at once."""
        self._queue.put_nowait((id, result, prompt))

    def end(self) -> None:
        """No more frames follow."""
        self._queue.put_nowait(None)

    async def messages(self) -> AsyncGenerator[tuple[int, pb.DeliverResponse], None]:
        """The messages to send, each with the number of frames it acknowledges, up to the last one before ``end``."""
        run, sent, urgent = 0, 0.0, False
        coming = asyncio.ensure_future(self._next())
        try:
            while True:
                wait = max(0.0, sent + GATHER_SECONDS - time.monotonic()) if run else None
                await asyncio.wait((coming,), timeout=wait)
                other: pb.Ack | None = None
                found = coming.result() if (ready := coming.done()) else None
                if found is not None:
                    ack, prompt = found
                    if self._gathers and ack.status == pb.ACK_STATUS_STORED:
                        run, urgent = run + 1, urgent or prompt
                    else:
                        other = ack
                    coming = asyncio.ensure_future(self._next())
                ended = ready and found is None
                if run and (not ready or ended or other or urgent or run >= self._half):
                    yield run, pb.DeliverResponse(stored=run)
                    run, sent, urgent = 0, time.monotonic(), False
                if other is not None:
                    yield 1, pb.DeliverResponse(ack=other)
                if ended:
                    return
        finally:
            coming.cancel()

    async def _next(self) -> tuple[pb.Ack, bool] | None:
        item = await self._queue.get()
        if item is None:
            return None
        id, result, prompt = item
        return await self._resolve(id, result), prompt
