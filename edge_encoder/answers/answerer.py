"""Answers the requests of the cloud for more of a picture.

    better, region -> original in the ring -> crop -> encode within its bytes -> spool
    now            -> camera, at once ----------------> encode within its bytes -> spool
    original       -> original in the ring -> the file itself, or a JPEG within its bytes -> stream, in pieces

What is spooled is a frame with the request's id. It is delivered as every other one, exactly once and through restarts,
because a request that comes again finds its id in the spool. A file is not spooled: the cloud stores it once, and asks
again for what did not arrive.

The box decides: its settings limit the bytes of an answer, and of a source's answers within an hour. An
answer goes ahead of the frames that wait, so it delays them by its own bytes and no more; it never takes the place of
one. A file goes behind them (uplink/stream.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
import zlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MIN_SIDE
from aeic.errors import InputError, RateError
from aeic.pixels import load_picture, picture_size, save_picture
from aeic_service.errors import Overloaded
from edge_encoder.answers.jpeg import jpeg_within
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.encoding.encoder import Encoded, Encoder
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.originals.ring import CAMERA_QUALITY, Kept, OriginalRing
from edge_encoder.spool.record import CLOCK_IS_SET_MS, CapturedFrom, Record, State
from edge_encoder.spool.spool import Spool

PRIORITY = 255
_HOUR_SECONDS = 3600.0
_PAUSE_SECONDS = 0.5
_AT_ONCE = 2
"""Originals whose files are held in memory at once for answers."""

T = TypeVar("T")
TakePicture = Callable[[], Awaitable[NDArray[np.uint8]]]
"""Takes a picture of a camera at once: (H, W, 3) RGB."""


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
    """A request about the frame `frame_id`, of the source `source_id`; empty means the box itself. `region`: x, y,
    width, height in pixels of the original; all of it where width and height are 0. The answer has at most `max_bytes`;
    after `seconds` it is worth nothing."""

    id: uuid.UUID
    frame_id: uuid.UUID
    kind: Kind
    region: tuple[int, int, int, int]
    max_bytes: int
    seconds: float
    source_id: str = ""


@dataclass(slots=True)
class File:
    """A picture file that answers a request. Its sender adds up in `sent` the bytes that it has given to the link."""

    data: bytes
    sent: int = 0


Send = Callable[[File], Awaitable[None]]
"""Sends a file. Returns once the cloud has it, or does not want it any more; Interrupted if it may ask again."""


@dataclass(slots=True)
class _Charge:
    """`bytes` of a source's hour, of which `sent` stay charged when the answer is finished, or when it fails."""

    at: float  # monotonic seconds
    bytes: int
    sent: int = 0


class Refused(Exception):
    """There is no answer; the message is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Interrupted(Exception):
    """The answer did not get through. The cloud asks again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most bytes of a frame that answers, of a file that does, and of the answers about one source within an hour,
    counted since the start of the process. `pictures_now`: cameras may be asked for a picture at once."""

    max_bytes: int
    original_max_bytes: int
    hour_bytes: int
    pictures_now: bool


class Answerer:
    """Used in one asyncio loop. `cameras` take a picture at once, by their source; the box itself is called `box`."""

    def __init__(
        self,
        ring: OriginalRing,
        encoder: Encoder,
        queue: EncodeQueue,
        spool: Spool,
        metrics: Metrics,
        limits: Limits,
        *,
        box: str,
        cameras: Mapping[str, TakePicture],
    ) -> None:
        self._ring, self._encoder, self._queue, self._spool, self._metrics = ring, encoder, queue, spool, metrics
        self._limits, self._box, self._cameras = limits, box, cameras
        self._charges: defaultdict[str, deque[_Charge]] = defaultdict(deque)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._camera_turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._file_turn = asyncio.Lock()

    async def answer(self, ask: Ask, send: Send | None = None) -> None:
        """Returns once the answer is durably spooled, now or before, or is sent. Refused with the reason if there is
        none. SpoolError while the spool cannot be read, and Interrupted: ask again. Without `send` no files go out."""
        known = await asyncio.to_thread(self._spool.get, ask.id)
        if known is not None and known.state is not State.DROPPED:
            return
        try:
            self._check(ask)
            end = time.monotonic() + ask.seconds
            try:
                if ask.kind is Kind.ORIGINAL:
                    await self._file(ask, end, send)
                elif ask.kind is Kind.NOW:
                    await self._picture_now(ask, end)
                else:
                    await self._frame(ask, end)
            except TimeoutError:
                raise Refused(Reason.EXPIRED, "the box did not finish before the deadline") from None
        except Refused as refused:
            self._metrics.requests.labels(refused.reason).inc()
            raise
        self._metrics.requests.labels("answered").inc()

    def _check(self, ask: Ask) -> None:
        if not self._limits.max_bytes:
            raise Refused(Reason.FORBIDDEN, "the settings of the box forbid it: AEIC_EDGE_REQUEST_MAX_BYTES is 0")
        if ask.kind is Kind.UNKNOWN:
            raise Refused(Reason.UNSUPPORTED, "this release does not know requests of that kind")
        most = self._limits.max_bytes
        if ask.kind is Kind.ORIGINAL:
            most = self._limits.original_max_bytes
            if not most:
                raise Refused(
                    Reason.FORBIDDEN, "the box sends no originals: its AEIC_EDGE_REQUEST_ORIGINAL_MAX_BYTES is 0"
                )
        if ask.kind is Kind.NOW and not self._limits.pictures_now:
            raise Refused(Reason.FORBIDDEN, "the settings of the box forbid it: AEIC_EDGE_REQUEST_NOW is false")
        if ask.max_bytes > most:
            raise Refused(Reason.OVER_BUDGET, f"the box answers with at most {most} bytes")

    async def _frame(self, ask: Ask, end: float) -> None:
        """The original, or a region of it, as a frame."""
        with contextlib.ExitStack() as stack:
            async with asyncio.timeout(end - time.monotonic()), self._turns:
                kept = await self._kept(ask)
                charge = stack.enter_context(self._charged(kept.source_id, ask.max_bytes))
                record = _record(ask, kept, await self._encoded(ask, kept.picture))
            await self._put(record, end)
            charge.sent = len(record.data)

    async def _picture_now(self, ask: Ask, end: float) -> None:
        """A new picture as a frame. One at a time of each camera, so that pictures do not pile up in memory; a camera
        that is down is waited for."""
        source_id = ask.source_id or self._box
        take = self._cameras.get(source_id)
        if take is None:
            raise Refused(Reason.UNSUPPORTED, "the source of that frame is not a live camera of this box")
        with self._charged(source_id, ask.max_bytes) as charge:
            async with asyncio.timeout(end - time.monotonic()), self._camera_turns[source_id]:
                rgb = await take()
                now_ms = int(time.time() * 1000)
                captured = (now_ms, CapturedFrom.CLOCK) if now_ms >= CLOCK_IS_SET_MS else (0, CapturedFrom.UNKNOWN)
                encoded = await self._encoded(ask, rgb)
                kept = Kept(ask.id, source_id, b"", *captured)
                if self._ring.takes(source_id):
                    await asyncio.to_thread(self._keep, kept, rgb)
            record = _record(ask, kept, encoded)
            await self._put(record, end)
            charge.sent = len(record.data)

    def _keep(self, kept: Kept, rgb: NDArray[np.uint8]) -> None:
        """Keeps a new picture, so that more of it can be asked for."""
        picture = save_picture(rgb, "jpeg", CAMERA_QUALITY)
        self._ring.keep(Kept(kept.id, kept.source_id, picture, kept.captured_ms, kept.captured_from))

    async def _file(self, ask: Ask, end: float, send: Send | None) -> None:
        """The original, or a region of it, as a picture file. One at a time: the link carries one as fast as two."""
        if send is None:
            raise Refused(Reason.UNSUPPORTED, "the cloud does not take picture files")
        with contextlib.ExitStack() as stack:
            async with asyncio.timeout(end - time.monotonic()), self._file_turn:
                async with self._turns:
                    kept = await self._kept(ask)
                    charge = stack.enter_context(self._charged(kept.source_id, ask.max_bytes))
                    file = File(await self._file_of(ask, kept))
                try:
                    await send(file)
                finally:
                    charge.sent = file.sent

    async def _file_of(self, ask: Ask, kept: Kept) -> bytes:
        """The kept file itself where it fits; else a JPEG."""
        if not any(ask.region[2:]) and len(kept.picture) <= ask.max_bytes:
            return kept.picture
        return await self._worked(kept.picture, lambda: jpeg_within(self._part(ask, kept.picture), ask.max_bytes))

    async def _kept(self, ask: Ask) -> Kept:
        kept = await asyncio.to_thread(self._ring.read, ask.frame_id)
        if kept is None:
            raise Refused(Reason.GONE, "the box does not have the original any more")
        return kept

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

    async def _encoded(self, ask: Ask, picture: bytes | NDArray[np.uint8]) -> Encoded:
        return await self._worked(picture, functools.partial(self._encode, ask, picture))

    async def _worked(self, picture: bytes | NDArray[np.uint8], job: Callable[[], T]) -> T:
        """The result of a job of the encode queue. The whole original is decoded, so all its pixels count, however
        small the region is."""
        try:
            if isinstance(picture, bytes):
                size = functools.partial(picture_size, picture, max_pixels=self._encoder.max_pixels)
                width, height = await asyncio.to_thread(size)
            else:
                height, width, _ = picture.shape
            while True:
                try:
                    return await self._queue.run(job, pixels=width * height)
                except Overloaded:
                    await asyncio.sleep(_PAUSE_SECONDS)
        except RateError as error:
            raise Refused(Reason.OVER_BUDGET, str(error)) from None
        except InputError as error:
            raise Refused(Reason.GONE, f"the original cannot be read: {error}") from None

    def _encode(self, ask: Ask, picture: bytes | NDArray[np.uint8]) -> Encoded:
        rgb = self._part(ask, picture) if isinstance(picture, bytes) else picture
        return self._encoder.encode(rgb, max_bytes=ask.max_bytes)

    def _part(self, ask: Ask, picture: bytes) -> NDArray[np.uint8]:
        rgb = load_picture(picture, max_pixels=self._encoder.max_pixels)
        x, y, width, height = ask.region
        if ask.kind is Kind.BETTER or (ask.kind is Kind.ORIGINAL and not width and not height):
            return rgb
        tall, wide, _ = rgb.shape
        if min(width, height) < MIN_SIDE or x + width > wide or y + height > tall:
            raise Refused(Reason.UNSUPPORTED, f"the region is not inside the original of {wide}x{tall} pixels")
        return np.ascontiguousarray(rgb[y : y + height, x : x + width])

    @contextlib.contextmanager
    def _charged(self, source_id: str, size: int) -> Iterator[_Charge]:
        """Takes `size` bytes of the source's hour for as long as the block runs; Refused where they are not left."""
        charges, now = self._charges[source_id], time.monotonic()
        while charges and charges[0].at < now - _HOUR_SECONDS:
            charges.popleft()
        left = self._limits.hour_bytes - sum(charge.bytes for charge in charges)
        if size > left:
            raise Refused(Reason.OVER_BUDGET, f"of the {self._limits.hour_bytes} bytes for an hour, {left} are left")
        charge = _Charge(now, size)
        charges.append(charge)
        try:
            yield charge
        finally:
            charge.bytes = charge.sent


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
