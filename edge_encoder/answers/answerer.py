"""Answers the requests of the cloud for more of a picture.

    request -> original in the ring -> crop -> encode within its bytes -> spool, as a frame with the request's id

The frame is delivered as every other one, exactly once and through restarts, because a request that comes again finds
its id in the spool. The box has the last word: its settings limit the bytes of an answer, and of a source's answers
within an hour. An answer goes ahead of the frames that wait, so it delays them by its own bytes and no more; it never
takes the place of one.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MIN_SIDE
from aeic.errors import InputError, RateError
from aeic.pixels import load_picture, picture_size
from aeic_service.errors import Overloaded
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.encoding.encoder import Encoded, Encoder
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.originals.ring import Kept, OriginalRing
from edge_encoder.spool.record import CapturedFrom, Record, State
from edge_encoder.spool.spool import Spool

PRIORITY = 255
_HOUR_SECONDS = 3600.0
_PAUSE_SECONDS = 0.5
_AT_ONCE = 2
"""Originals whose files are held in memory at once for answers."""


class Kind(StrEnum):
    """What is asked for. What this release does not know is UNKNOWN."""

    BETTER = "better"
    REGION = "region"
    ORIGINAL = "original"
    NOW = "now"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why there is no answer."""

    GONE = "gone"
    FORBIDDEN = "forbidden"
    OVER_BUDGET = "over-budget"
    EXPIRED = "expired"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request about the frame `frame_id`. `region`: x, y, width, height in pixels of the original. The answer has at
    most `max_bytes`; after `seconds` it is worth nothing."""

    id: uuid.UUID
    frame_id: uuid.UUID
    kind: Kind
    region: tuple[int, int, int, int]
    max_bytes: int
    seconds: float


@dataclass(slots=True)
class _Charge:
    at: float  # monotonic seconds
    bytes: int


class Refused(Exception):
    """There is no answer; the message is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Answerer:
    """Used in one asyncio loop. `max_bytes` of one answer, `hour_bytes` of those of one source within an hour, counted
    since the start of the process."""

    def __init__(
        self,
        ring: OriginalRing,
        encoder: Encoder,
        queue: EncodeQueue,
        spool: Spool,
        metrics: Metrics,
        *,
        max_bytes: int,
        hour_bytes: int,
    ) -> None:
        self._ring, self._encoder, self._queue, self._spool, self._metrics = ring, encoder, queue, spool, metrics
        self._max_bytes, self._hour_bytes = max_bytes, hour_bytes
        self._charges: defaultdict[str, deque[_Charge]] = defaultdict(deque)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, ask: Ask) -> None:
        """Returns once the answer is durably spooled, now or before. Refused with the reason if there is none.
        SpoolError while the spool cannot be read: ask again."""
        known = await asyncio.to_thread(self._spool.get, ask.id)
        if known is not None and known.state is not State.DROPPED:
            return
        try:
            await self._answer(ask, time.monotonic() + ask.seconds)
        except Refused as refused:
            self._metrics.requests.labels(refused.reason).inc()
            raise
        self._metrics.requests.labels("answered").inc()

    async def _answer(self, ask: Ask, end: float) -> None:
        if not self._max_bytes:
            raise Refused(Reason.FORBIDDEN, "the settings of the box forbid it: AEIC_EDGE_REQUEST_MAX_BYTES is 0")
        if ask.kind not in (Kind.BETTER, Kind.REGION):
            raise Refused(Reason.UNSUPPORTED, f"this release does not answer requests of the kind {ask.kind.value}")
        if ask.max_bytes > self._max_bytes:
            raise Refused(Reason.OVER_BUDGET, f"the box answers with at most {self._max_bytes} bytes")
        charge: _Charge | None = None
        try:
            async with asyncio.timeout(end - time.monotonic()), self._turns:
                kept = await asyncio.to_thread(self._ring.read, ask.frame_id)
                if kept is None:
                    raise Refused(Reason.GONE, "the box does not have the original any more")
                charge = self._charge(kept.source_id, ask.max_bytes)
                record = _record(ask, kept, await self._encoded(ask, kept))
            await self._put(record, end)
            charge.bytes = len(record.data)
        except BaseException as error:
            if charge is not None:
                charge.bytes = 0
            if isinstance(error, TimeoutError):
                raise Refused(Reason.EXPIRED, "the box did not finish before the deadline") from None
            raise

    async def _put(self, record: Record, end: float) -> None:
        """Spools the answer. A commit that has begun is waited for, so that it cannot be refused as well."""
        while True:
            try:
                await asyncio.wrap_future(self._spool.put(record, drops=False))
                return
            except SpoolError:  # full: acknowledgements make room
                if time.monotonic() > end:
                    raise TimeoutError from None
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _encoded(self, ask: Ask, kept: Kept) -> Encoded:
        """The whole original is decoded, so all its pixels count, however small the region is."""
        try:
            width, height = await asyncio.to_thread(picture_size, kept.picture, max_pixels=self._encoder.max_pixels)
            job = functools.partial(self._encode, ask, kept)
            while True:
                try:
                    return await self._queue.run(job, pixels=width * height)
                except Overloaded:
                    await asyncio.sleep(_PAUSE_SECONDS)
        except RateError as error:
            raise Refused(Reason.OVER_BUDGET, str(error)) from None
        except InputError as error:
            raise Refused(Reason.GONE, f"the original cannot be read: {error}") from None

    def _encode(self, ask: Ask, kept: Kept) -> Encoded:
        return self._encoder.encode(self._part(ask, kept), max_bytes=ask.max_bytes)

    def _part(self, ask: Ask, kept: Kept) -> NDArray[np.uint8]:
        rgb = load_picture(kept.picture, max_pixels=self._encoder.max_pixels)
        if ask.kind is Kind.BETTER:
            return rgb
        x, y, width, height = ask.region
        tall, wide, _ = rgb.shape
        if min(width, height) < MIN_SIDE or x + width > wide or y + height > tall:
            raise Refused(Reason.UNSUPPORTED, f"the region is not inside the original of {wide}x{tall} pixels")
        return np.ascontiguousarray(rgb[y : y + height, x : x + width])

    def _charge(self, source_id: str, size: int) -> _Charge:
        """Takes `size` bytes of the source's hour; Refused where they are not left."""
        charges, now = self._charges[source_id], time.monotonic()
        while charges and charges[0].at < now - _HOUR_SECONDS:
            charges.popleft()
        left = self._hour_bytes - sum(charge.bytes for charge in charges)
        if size > left:
            raise Refused(Reason.OVER_BUDGET, f"of the {self._hour_bytes} bytes for an hour, {left} are left")
        charges.append(_Charge(now, size))
        return charges[-1]


def _record(ask: Ask, kept: Kept, encoded: Encoded) -> Record:
    source = kept.captured_from if kept.captured_from in list(CapturedFrom) else 0
    return Record(
        id=ask.id,
        data=encoded.data,
        width=encoded.width,
        height=encoded.height,
        rate=encoded.rate,
        priority=PRIORITY,
        created_ms=int(time.time() * 1000),
        captured_ms=kept.captured_ms,
        picture_crc=zlib.crc32(ask.id.bytes),  # the same whenever it is asked again
        source_id=kept.source_id,
        original_width=encoded.original_width,
        original_height=encoded.original_height,
        captured_from=CapturedFrom(source),
    )
