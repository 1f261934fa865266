"""Brings open requests to the streams of the boxes that they are for, and ends those that get no answer.

The store is the queue: a request is open until it is answered or refused, and every box gets its open requests when it
connects. A box recognises a request by its id, so one that is sent again does no harm. Requests go out in turns:
those of one source and kind that get no answer delay no others. HTTP and gRPC may run in different processes; each
process looks into the store once in POLL_SECONDS, and at once when a request arrives here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import OpenRequest, RefusalReason, RequestState, Store, StoredRequest

log = logging.getLogger(__name__)
audit = logging.getLogger("aeic.cloud.audit")

POLL_SECONDS = 1.0
AGAIN_SECONDS = 30.0
"""A request that was sent and is still open is sent again after this long: the box may have failed at it. After twice
as long the next time, and so on: the box pays for what it receives, too."""
MOST_DOUBLED = 4
"""How often the time is doubled."""
OUTBOX = 256
"""Requests on their way to one stream; the others wait in the store."""
AT_ONCE = 64
"""Requests of one source and kind that are sent within AGAIN_SECONDS and are open: what a box works on at once."""


class Outbox:
    """The requests for one stream. ``max_bytes``: the most that its box answers with; 0: it takes no requests.
    ``original_max_bytes``: the most bytes of a file that it sends; 0: it sends none."""

    def __init__(self, tenant: str, box: str, max_bytes: int, original_max_bytes: int = 0) -> None:
        self.tenant, self.box, self.max_bytes, self.original_max_bytes = tenant, box, max_bytes, original_max_bytes
        self._queue: asyncio.Queue[StoredRequest] = asyncio.Queue(OUTBOX)
        self._sent: dict[int, float] = {}  # open requests by their seq, and when they were sent
        self._repeats: dict[int, int] = {}  # how often each was sent after the first time

    def turn(self, waiting: Sequence[OpenRequest]) -> list[int]:
        """Which of the open requests of the box, the oldest first, are to be sent now: their ``seq``.

        Those that were never sent on this stream come first, then those that were sent the longest ago.
        """
        now = time.monotonic()
        oldest = now - AGAIN_SECONDS
        self._sent = {one.seq: self._sent[one.seq] for one in waiting if one.seq in self._sent}
        self._repeats = {seq: self._repeats.get(seq, 0) for seq in self._sent}
        lately = Counter((one.source, one.kind) for one in waiting if self._sent.get(one.seq, oldest) > oldest)
        room, chosen = OUTBOX - self._queue.qsize(), list[int]()
        for one in sorted(waiting, key=lambda one: self._sent.get(one.seq, 0.0)):
            lane = one.source, one.kind
            pause = AGAIN_SECONDS * 2 ** min(self._repeats.get(one.seq, 0), MOST_DOUBLED)
            due = one.seq not in self._sent or self._sent[one.seq] + pause <= now
            if due and lately[lane] < AT_ONCE and len(chosen) < room:
                lately[lane] += 1
                chosen.append(one.seq)
        return chosen

    def send(self, request: StoredRequest) -> None:
        """Send a request of this turn. Where there is no room any more, it has another turn."""
        if not self._queue.full():
            if request.seq in self._sent:
                self._repeats[request.seq] = self._repeats.get(request.seq, 0) + 1
            self._sent[request.seq] = time.monotonic()
            self._queue.put_nowait(request)

    async def next(self) -> StoredRequest:
        """The next request to send."""
        return await self._queue.get()


class RequestDispatch:
    """``run`` until cancelled; ``wake`` when a request was stored. Call from the event loop only."""

    def __init__(self, store: Store, event_bus: EventBus, metrics: Metrics) -> None:
        self._store, self._event_bus, self._metrics = store, event_bus, metrics
        self._outboxes: dict[tuple[str, str], list[Outbox]] = {}  # the latest stream last
        self._wake = asyncio.Event()
        self._answered: list[tuple[str, UUID]] = []

    @contextlib.contextmanager
    def stream(self, tenant: str, box: str, max_bytes: int, original_max_bytes: int = 0) -> Iterator[Outbox]:
        """The outbox of a stream for as long as the block runs."""
        outbox = Outbox(tenant, box, max_bytes, original_max_bytes)
        self._outboxes.setdefault((tenant, box), []).append(outbox)
        self.wake()
        try:
            yield outbox
        finally:
            self._outboxes[tenant, box].remove(outbox)
            if not self._outboxes[tenant, box]:
                del self._outboxes[tenant, box]

    def limits(self, tenant: str, box: str) -> tuple[int, int] | None:
        """The most bytes of a frame and of a file that a box answers with; 0: it sends none, or takes no requests.

        None: it is not connected here.
        """
        outboxes = self._outboxes.get((tenant, box))
        return (outboxes[-1].max_bytes, outboxes[-1].original_max_bytes) if outboxes else None

    def wake(self) -> None:
        """Look into the store now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            self._wake.clear()
            try:
                await self._round()
            except StoreUnavailable as error:
                log.warning("requests wait: %s", error)
                await asyncio.sleep(POLL_SECONDS)

    async def refused(self, tenant: str, box: str, id: UUID, reason: RefusalReason, detail: str) -> None:
        """Record the refusal of a box. Only an open request of that box is ended."""
        detail = "".join(character if character.isprintable() else " " for character in detail)
        refuse = self._store.requests.refuse
        ended = await asyncio.to_thread(refuse, tenant, box, id, reason, detail, self._now_ms())
        if ended is not None:
            self.ended(ended)

    def answered(self, tenant: str, id: UUID) -> None:
        """The answer to a request was stored just now: publish it."""
        self._answered.append((tenant, id))
        self.wake()

    async def _round(self) -> None:
        while self._answered:
            request = await asyncio.to_thread(self._store.requests.get, *self._answered[0])
            del self._answered[0]
            if request is not None and request.state is RequestState.ANSWERED:
                self.ended(request)
        for request in await asyncio.to_thread(self._store.requests.expire, self._now_ms()):
            self.ended(request)
        waiting: dict[tuple[str, str], list[OpenRequest]] = {}
        for one in await asyncio.to_thread(self._store.requests.open, set(self._outboxes)):
            waiting.setdefault((one.tenant, one.box), []).append(one)
        for box, mine in waiting.items():
            if box not in self._outboxes:
                continue
            outbox = self._outboxes[box][-1]
            turn = outbox.turn(mine)
            if not turn:
                continue
            for request in await asyncio.to_thread(self._store.requests.by_seq, turn):
                if request.state is not RequestState.OPEN:
                    continue
                if outbox.max_bytes:
                    outbox.send(request)
                else:
                    detail = (
                        "the box takes no requests: it keeps no originals (its AEIC_EDGE_ORIGINALS_MAX_BYTES is 0),"
                        " its AEIC_EDGE_REQUEST_MAX_BYTES is 0, or it is of an earlier release"
                    )
                    await self.refused(request.tenant, request.box, request.id, RefusalReason.UNSUPPORTED, detail)

    def now(self) -> float:
        """The clock of deadlines, in seconds since 1970."""
        return self._store.trusted_clock.now()

    def _now_ms(self) -> int:
        return int(self.now() * 1000)

    def ended(self, request: StoredRequest) -> None:
        """Count and publish a request that has ended."""
        reason = request.reason.value if request.reason else "answered"
        self._metrics.picture_requests.labels(reason).inc()
        audit.info(
            "request %s of tenant %r for frame %s ended: %s, %d bytes",
            request.id, request.tenant, request.parent, reason, request.bytes,
        )  # fmt: skip
        self._event_bus.publish(request.tenant, ended_event(request))


def ended_event(request: StoredRequest) -> dict[str, Any]:
    """The event of a request that has ended."""
    return {"event": "request", "request_id": str(request.id)}
