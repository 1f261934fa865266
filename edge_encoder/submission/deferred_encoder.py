"""Encodes the received pictures that wait in the spool, most urgent first, and limits how many may wait.

    place() -> receive -> spool -> next_received() -> encode -> put, or FAILED with the reason

Received pictures share the encode queue with pictures whose clients wait for the result, a few at a time, so that
neither starves the other. After a crash, a received picture that was being encoded is tried again on its own; after
TRIES attempts it is marked FAILED, so that a picture that crashes the process cannot do so indefinitely. A fault of the
machine, such as too little memory, is no attempt: the received picture waits. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterator

from aeic.errors import InputError, RateError
from aeic_service.errors import Overloaded
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.errors import SpoolError, is_of_the_machine
from edge_encoder.spool.record import ReceivedPicture, State
from edge_encoder.spool.spool import Spool
from edge_encoder.submission.submitter import EncodedFrame, Submitter

log = logging.getLogger("aeic.edge.deferred_encoder")

TRIES = 5
PROBLEM_SECONDS = 120.0
"""How long a fault of the machine is shown after it was seen last. Two attempts are about a minute apart at most."""
_PAUSE_SECONDS = 1.0


class DeferredEncoder:
    """Construct, `run()`, `stop()`; all in one asyncio loop. `check()` and `place()` bound what is received."""

    def __init__(
        self, spool: Spool, queue: EncodeQueue, submitter: Submitter, *, max_received: int, max_bytes: int
    ) -> None:
        self._spool = spool
        self._queue = queue
        self._submitter = submitter
        self._max_received = max_received
        self._max_bytes = max_bytes
        self._arriving = self._arriving_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._encoding: set[uuid.UUID] = set()
        self._turn = asyncio.Lock()  # held to look for the next received picture, or to encode a suspect alone
        self._problem = ("", 0.0)
        self._ended = asyncio.Event()  # while run() does not run
        self._ended.set()

    @property
    def problem(self) -> str:
        """Why the machine cannot encode received pictures now; empty where it can."""
        text, seen = self._problem
        return text if time.monotonic() - seen < PROBLEM_SECONDS else ""

    def check(self, size: int) -> None:
        """Raises Overloaded when there is no room for a received picture of `size` bytes. Reserves nothing: what a
        client announces need not come."""
        waiting = self._spool.received_pictures + self._arriving
        # A single received picture is accepted whatever its size.
        full = waiting and self._spool.received_bytes + self._arriving_bytes + size > self._max_bytes
        if full or waiting >= self._max_received:
            seconds = self._queue.seconds(waiting)
            raise Overloaded(
                f"{waiting} received pictures wait to be encoded; try again in {seconds} s, or raise"
                f" {'AEIC_EDGE_RECEIVED_MAX_BYTES' if full else 'AEIC_EDGE_RECEIVED_MAX_FRAMES'}",
                retry_after=seconds,
            )

    @contextlib.contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Reserves room for a received picture of `size` bytes while it is stored; Overloaded when there is none."""
        self.check(size)
        self._arriving += 1
        self._arriving_bytes += size
        try:
            yield
        finally:
            self._arriving -= 1
            self._arriving_bytes -= size

    def wake(self) -> None:
        """Call when a received picture was added."""
        self._wake.set()

    async def run(self) -> None:
        """Encodes until stop(), one received picture more at a time than there are workers, so that no worker idles in
        between."""
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._queue.workers + 1):
                    group.create_task(self._work())
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Finishes the received pictures being encoded; the others stay in the spool."""
        self._stopping = True
        self._wake.set()
        await self._ended.wait()

    async def abandon(self) -> None:
        """The service stops while received pictures are being encoded: that is no attempt, or a few stops in the middle
        of a long one would use up all of them."""
        for ident in list(self._encoding):
            with contextlib.suppress(SpoolError):
                await asyncio.wrap_future(self._spool.reset_attempts(ident))

    async def _work(self) -> None:
        while not self._stopping:
            try:
                if not await self._next() and not self._stopping:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), self._spool.next_received_seconds())
            except Exception as error:  # an unreadable spool or a programming error must not end the task
                log.log(
                    logging.WARNING if isinstance(error, SpoolError) else logging.ERROR,
                    "received pictures are not encoded for now: %s", error, exc_info=not isinstance(error, SpoolError),
                )  # fmt: skip
                await self._pause()

    async def _next(self) -> bool:
        """Encodes the next received picture; False when there is none."""
        async with self._turn:
            self._wake.clear()
            found = await asyncio.to_thread(self._spool.next_received)
            if found is None:
                return False
            self._wake.set()  # wakes the other tasks
            received, tries = found
            if tries > 1:  # it may have crashed the last process: encode it alone, so that no other is suspected
                await self._encode(received, tries)
                return True
        await self._encode(received, tries)
        return True

    async def _encode(self, received: ReceivedPicture, tries: int) -> None:
        try:
            if tries > TRIES:
                await self._fail(
                    received, f"encoding was attempted {TRIES} times without success; see the log for the errors"
                )
                return
            self._encoding.add(received.id)
            try:
                made = await self._submitter.encode(received)
            finally:
                self._encoding.discard(received.id)
        except (InputError, RateError) as error:
            await self._fail(received, str(error))
            return
        except Exception as error:
            if is_of_the_machine(error):
                self._problem = (f"received pictures wait: {type(error).__name__}: {error}"[:300], time.monotonic())
                log.error(
                    "received picture %s waits: the machine cannot encode it now: %s", received.id, self._problem[0]
                )
                with contextlib.suppress(SpoolError):
                    await asyncio.wrap_future(self._spool.reset_attempts(received.id))
            else:
                log.exception("received picture %s could not be encoded, try %d of %d", received.id, tries, TRIES)
            self._spool.release_received(received.id, _PAUSE_SECONDS)
            return
        self._problem = ("", 0.0)
        try:
            await self._submitter.put(made)
        except SpoolError as error:
            log.warning("the frame of received picture %s cannot be spooled yet: %s", received.id, error)
            with contextlib.suppress(SpoolError):
                await asyncio.wrap_future(self._spool.reset_attempts(received.id))
            await self._put_late(made)

    async def _put_late(self, made: EncodedFrame) -> None:
        while not self._stopping:
            await self._pause()
            with contextlib.suppress(SpoolError):
                await self._submitter.put(made)
                return
        self._spool.release_received(made.record.id)

    async def _fail(self, received: ReceivedPicture, reason: str) -> None:
        try:
            await asyncio.wrap_future(self._spool.finish(received.id, State.FAILED, reason))
        except SpoolError:
            self._spool.release_received(received.id, _PAUSE_SECONDS)
            raise

    async def _pause(self) -> None:
        """Sleeps for _PAUSE_SECONDS, or until the service stops."""
        for _ in range(10):
            if not self._stopping:
                await asyncio.sleep(_PAUSE_SECONDS / 10)
