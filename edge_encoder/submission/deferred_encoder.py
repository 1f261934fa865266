"""The originals that wait in the spool for the encoder: how many may, and the work on them, most urgent first.

    place() -> receive -> spool -> next_original() -> encode -> put, or FAILED with the reason

They go through the same encode queue as the pictures of clients that wait, a few at a time, so that neither starves the
other. After a crash what was in work is begun again, alone; an original that was begun TRIES times without an end is
given up, so that one that kills the process cannot do so for ever. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from aeic.errors import InputError, RateError
from edge_encoder.encoding.encode_queue import Busy, EncodeQueue
from edge_encoder.spool.original import Original
from edge_encoder.spool.record import SpoolError, State
from edge_encoder.spool.spool import Spool
from edge_encoder.submission.submitter import EncodedFrame, Submitter

log = logging.getLogger("aeic.edge.backlog")

TRIES = 5
_PAUSE_SECONDS = 1.0


class DeferredEncoder:
    """Construct, `start()`, `stop()`; all in one asyncio loop. `place()` bounds what is received."""

    def __init__(
        self, spool: Spool, queue: EncodeQueue, submitter: Submitter, *, max_originals: int, max_bytes: int
    ) -> None:
        self._spool = spool
        self._queue = queue
        self._submitter = submitter
        self._max_originals = max_originals
        self._max_bytes = max_bytes
        self._arriving = self._arriving_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._turn = asyncio.Lock()  # of whoever looks for the next original, or encodes a suspect
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Holds a place for an original of up to `size` bytes while it arrives; Busy when there is none."""
        waiting = self._spool.originals + self._arriving
        # However large, one alone has its place.
        full = waiting and self._spool.original_bytes + self._arriving_bytes + size > self._max_bytes
        if full or waiting >= self._max_originals:
            seconds = self._queue.seconds(waiting)
            raise Busy(
                f"{waiting} originals wait to be encoded; come again in {seconds} s, or raise"
                f" {'AEIC_EDGE_RECEIVED_MAX_BYTES' if full else 'AEIC_EDGE_RECEIVED_MAX_FRAMES'}",
                seconds,
            )
        self._arriving += 1
        self._arriving_bytes += size
        try:
            yield
        finally:
            self._arriving -= 1
            self._arriving_bytes -= size

    def wake(self) -> None:
        """There is a new original."""
        self._wake.set()

    def start(self) -> None:
        """Begins to encode; one more at a time than there are workers, so that each finds its next one in line."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._queue.workers + 1)]

    async def stop(self) -> None:
        """Finishes what is in work; the rest stays in the spool."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    async def _work(self) -> None:
        while not self._stopping:
            try:
                if not await self._next() and not self._stopping:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), self._spool.next_original_seconds())
            except Exception as error:  # a spool that cannot be read now, or a fault of ours: the work must go on
                log.log(
                    logging.WARNING if isinstance(error, SpoolError) else logging.ERROR,
                    "the originals must wait: %s", error, exc_info=not isinstance(error, SpoolError),
                )  # fmt: skip
                await self._pause()

    async def _next(self) -> bool:
        """Encodes the next original; False when there is none."""
        async with self._turn:
            self._wake.clear()
            found = await asyncio.to_thread(self._spool.next_original)
            if found is None:
                return False
            self._wake.set()  # the others look too
            original, tries = found
            if tries > 1:  # it may have ended the last process: alone, so that no other is suspected with it
                await self._encode(original, tries)
                return True
        await self._encode(original, tries)
        return True

    async def _encode(self, original: Original, tries: int) -> None:
        try:
            if tries > TRIES:
                await self._fail(original, f"it was begun {TRIES} times and never done; the log has the errors")
                return
            made = await self._submitter.encode(original)
        except (InputError, RateError) as error:
            await self._fail(original, str(error))
            return
        except Exception:
            log.exception("original %s could not be encoded, try %d of %d", original.id, tries, TRIES)
            self._spool.release_original(original.id, _PAUSE_SECONDS)
            return
        try:
            await self._submitter.put(made)
        except SpoolError as error:
            log.warning("the frame of original %s must wait: %s", original.id, error)
            with contextlib.suppress(SpoolError):
                await asyncio.wrap_future(self._spool.absolve_original(original.id))
            await self._put_late(made)

    async def _put_late(self, made: EncodedFrame) -> None:
        while not self._stopping:
            await self._pause()
            with contextlib.suppress(SpoolError):
                await self._submitter.put(made)
                return
        self._spool.release_original(made.record.id)

    async def _fail(self, original: Original, reason: str) -> None:
        try:
            await asyncio.wrap_future(self._spool.finish(original.id, State.FAILED, reason))
        except SpoolError:
            self._spool.release_original(original.id, _PAUSE_SECONDS)
            raise

    async def _pause(self) -> None:
        """A while, or until the service stops."""
        for _ in range(10):
            if not self._stopping:
                await asyncio.sleep(_PAUSE_SECONDS / 10)
