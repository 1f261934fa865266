"""Answers the requests of the cloud for more of a picture.

    better, region -> original in the ring -> crop -> encode within its bytes -> spool
    now            -> camera, at once ----------------> encode within its bytes -> spool
    original       -> original in the ring -> the file itself, or a JPEG within its bytes -> stream, in pieces

What is spooled is a frame with the request's id. It is delivered as every other one, exactly once and through restarts,
because a request that comes again finds its id in the spool. A file is not spooled: the cloud stores it once, and asks
again for what did not arrive.

A request names its `max_bytes`, which the client of the cloud has chosen. The box decides: AEIC_EDGE_REQUEST_MAX_BYTES
(for files AEIC_EDGE_REQUEST_ORIGINAL_MAX_BYTES) limits them, and AEIC_EDGE_REQUEST_BYTES_PER_HOUR limits what all
answers about one source take within an hour (hourly_budget.py). Bytes are reserved before a picture is encoded, and
charged as sent. Every request costs something, however it ends. Refusals that no source pays for have a budget of their
own, and once that is spent they are not sent: the request expires at the cloud.

An answer goes ahead of the frames that wait, so it delays them by its own bytes and no more; it never takes the place
of one. A file goes behind them. uplink/stream.py calls `answer` for each request that its stream receives, sends
refusals, and sends files.
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
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import HEADER_BYTES, MIN_SIDE
from aeic.errors import InputError, RateError
from aeic.pixels import save_picture
from aeic_service.errors import Overloaded
from edge_encoder.answers.hourly_budget import PIECE_HEAD_BYTES, REQUEST_BYTES, Charge, HourlyBudgets, bytes_in_pieces
from edge_encoder.answers.jpeg import LEAST_BYTES, jpeg_within
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.encoding.encoder import Encoded, Encoder
from edge_encoder.encoding.picture_reader import ReadingCost
from edge_encoder.errors import SpoolError
from edge_encoder.metrics import Metrics
from edge_encoder.originals.ring import CAMERA_QUALITY, Kept, OriginalRing
from edge_encoder.spool.record import CLOCK_IS_SET_MS, CapturedFrom, Record, State
from edge_encoder.spool.spool import Spool

PRIORITY = 255
_PAUSE_SECONDS = 0.5
_KEEP_POLL_SECONDS = 0.05
_AT_ONCE = 2
"""Originals whose files are held in memory at once for answers."""
_REFUSALS = 64
"""Refusals that no source pays for, within an hour: as many fit into any budget of an hour."""
_SAME_REFUSALS = 2
_SAME_SECONDS = 60.0
"""A request is refused this often within so many seconds, since a refusal may be lost with its stream; then it is
ignored."""

_GONE = "the box does not have the original any more"

T = TypeVar("T")
TakePicture = Callable[[], Awaitable[NDArray[np.uint8]]]
"""Takes a picture of a camera at once: (H, W, 3) RGB."""


class RequestKind(StrEnum):
    """What is asked for. What this release does not know is UNKNOWN."""

    BETTER = "better"
    REGION = "region"
    ORIGINAL = "original"
    NOW = "now"
    UNKNOWN = "unknown"


class RefusalReason(StrEnum):
    """Why there is no answer."""

    GONE = "gone"
    FORBIDDEN = "forbidden"
    OVER_BUDGET = "over-budget"
    EXPIRED = "expired"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """A request about the frame `frame_id`, of the source `source_id`; empty means the box itself. `region`: x, y,
    width, height in pixels of the original; all of it where width and height are 0. The answer has at most `max_bytes`;
    after `seconds` it is of no use."""

    id: uuid.UUID
    frame_id: uuid.UUID
    kind: RequestKind
    region: tuple[int, int, int, int]
    max_bytes: int
    seconds: float
    source_id: str = ""


@dataclass(slots=True)
class File:
    """A picture file that answers a request. Its sender calls `spend` before it gives bytes to the link, with
    PIECE_HEAD_BYTES for each piece. They add up in `sent`, to at most `limit`: what the file costs if it is sent once,
    or less where the hour has no more. `charge(bytes)` is called with each number of bytes."""

    data: bytes
    sent: int = 0
    limit: int = -1
    charge: Callable[[int], None] = lambda size: None

    def __post_init__(self) -> None:
        if self.limit < 0:
            self.limit = bytes_in_pieces(len(self.data))

    def spend(self, size: int) -> None:
        """So many bytes are about to be given to the link."""
        self.sent += size
        self.charge(size)


Send = Callable[[File], Awaitable[None]]
"""Sends a file. Returns once the cloud has it, or does not want it any more; Interrupted if it may ask again, Refused
if what is left of the hour is too little for the rest of it."""


class Refused(Exception):
    """There is no answer; the message is for people."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Interrupted(Exception):
    """The answer did not get through. The cloud asks again."""


class Ignored(Exception):
    """Nothing is sent, not even a refusal."""


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Most bytes of a frame that answers, of a file that does, and of the answers about one source within an hour,
    which the file at `charges` counts. `pictures_now`: cameras may be asked for a picture at once."""

    max_bytes: int
    original_max_bytes: int
    hour_bytes: int
    pictures_now: bool
    charges: Path


@dataclass(frozen=True, slots=True)
class PictureSources:
    """Where the pictures of answers come from: originals from `ring`, new pictures from `cameras`, by their source. The
    source of the box itself is `box`."""

    ring: OriginalRing
    cameras: Mapping[str, TakePicture]
    box: str


class Answerer:
    """Used in one asyncio loop."""

    def __init__(
        self,
        sources: PictureSources,
        encoder: Encoder,
        queue: EncodeQueue,
        spool: Spool,
        metrics: Metrics,
        limits: AnswerLimits,
    ) -> None:
        self._ring, self._cameras, self._box = sources.ring, sources.cameras, sources.box
        self._encoder, self._queue, self._spool, self._metrics, self._limits = encoder, queue, spool, metrics, limits
        refusal_bytes = max(limits.hour_bytes, _REFUSALS * REQUEST_BYTES)
        self._hours = HourlyBudgets(limits.hour_bytes, refusal_bytes, limits.charges, spool.now_ms)
        self._refused: deque[tuple[float, uuid.UUID]] = deque()  # the latest: monotonic seconds and request
        self._working: set[uuid.UUID] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._camera_turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._file_turn = asyncio.Lock()

    def close(self) -> None:
        """Once there are no more requests."""
        self._hours.close()

    async def answer(self, ask: PictureRequest, send: Send | None = None) -> None:
        """Returns once the answer is durably spooled, now or before, or is sent. Refused with the reason if there is
        none; Ignored if there is not even a refusal. SpoolError while the spool cannot be read, and Interrupted: ask
        again. Without `send` no files go out."""
        try:
            if ask.id in self._working or self._refused_lately(ask.id):
                raise Ignored("it is being worked on, or was refused just now")
            self._working.add(ask.id)
            try:
                await self._answer(ask, send)
            finally:
                self._working.discard(ask.id)
        except Refused as refused:
            self._refused.append((time.monotonic(), ask.id))
            self._metrics.requests.labels(refused.reason).inc()
            raise
        except Ignored:
            self._metrics.requests.labels("ignored").inc()
            raise

    async def _answer(self, ask: PictureRequest, send: Send | None) -> None:
        end = time.monotonic() + ask.seconds
        known = await asyncio.to_thread(self._spool.get, ask.id)
        if known is not None and known.state is not State.DROPPED:
            return
        source_id = await self._source(ask, end)
        with self._charged(source_id, ask) as charge:
            self._check(ask)
            if source_id is None and ask.kind is RequestKind.NOW:
                raise Refused(RefusalReason.UNSUPPORTED, "the source of that frame is not a live camera of this box")
            if source_id is None:
                raise Refused(RefusalReason.GONE, _GONE)
            if charge is None:
                raise Refused(RefusalReason.OVER_BUDGET, f"the {self._limits.hour_bytes} bytes for an hour are spent")
            try:
                if ask.kind is RequestKind.ORIGINAL:
                    await self._file(ask, charge, end, send)
                elif ask.kind is RequestKind.NOW:
                    await self._picture_now(ask, source_id, charge, end)
                else:
                    await self._frame(ask, charge, end)
            except TimeoutError:
                raise Refused(RefusalReason.EXPIRED, "the box did not finish before the deadline") from None
        self._metrics.requests.labels("answered").inc()

    async def _source(self, ask: PictureRequest, end: float) -> str | None:
        """The source whose hour pays for a request; None where the box has nothing of it."""
        if ask.kind is RequestKind.NOW:
            source_id = ask.source_id or self._box
            return source_id if source_id in self._cameras else None
        # A frame may reach the cloud before its original is on the disk.
        while self._ring.expects(ask.frame_id) and time.monotonic() < end:
            await asyncio.sleep(_KEEP_POLL_SECONDS)
        return await asyncio.to_thread(self._ring.source, ask.frame_id)

    @contextlib.contextmanager
    def _charged(self, source_id: str | None, ask: PictureRequest) -> Iterator[Charge | None]:
        """The charge to the hour of the source. None where it pays no more, or there is no source: the hour of refusals
        pays for one. Ignored where that is spent too."""
        with contextlib.ExitStack() as stack:
            hour = None if source_id is None else self._hours.of(source_id)
            charge = None if hour is None else stack.enter_context(hour.attempt(ask.id))
            if charge is None and stack.enter_context(self._hours.refusals.attempt(ask.id)) is None:
                raise Ignored("the bytes for refusals within an hour are spent")
            yield charge

    def _refused_lately(self, request: uuid.UUID) -> bool:
        oldest = time.monotonic() - _SAME_SECONDS
        while self._refused and self._refused[0][0] < oldest:
            self._refused.popleft()
        return sum(other == request for _, other in self._refused) >= _SAME_REFUSALS

    def _check(self, ask: PictureRequest) -> None:
        if not self._limits.max_bytes:
            raise Refused(
                RefusalReason.FORBIDDEN, "the settings of the box forbid it: AEIC_EDGE_REQUEST_MAX_BYTES is 0"
            )
        if ask.kind is RequestKind.UNKNOWN:
            raise Refused(RefusalReason.UNSUPPORTED, "this release does not know requests of that kind")
        most = self._limits.max_bytes
        if ask.kind is RequestKind.ORIGINAL:
            most = self._limits.original_max_bytes
            if not most:
                raise Refused(
                    RefusalReason.FORBIDDEN, "the box sends no originals: its AEIC_EDGE_REQUEST_ORIGINAL_MAX_BYTES is 0"
                )
        if ask.kind is RequestKind.NOW and not self._limits.pictures_now:
            raise Refused(RefusalReason.FORBIDDEN, "the settings of the box forbid it: AEIC_EDGE_REQUEST_NOW is false")
        if ask.max_bytes > most:
            raise Refused(RefusalReason.OVER_BUDGET, f"the box answers with at most {most} bytes")
        if ask.kind is not RequestKind.ORIGINAL and ask.max_bytes <= HEADER_BYTES:
            raise _too_few(ask)

    async def _frame(self, ask: PictureRequest, charge: Charge, end: float) -> None:
        """The original, or a region of it, as a frame."""
        async with asyncio.timeout(end - time.monotonic()), self._turns:
            _reserve(charge, charge.sent + ask.max_bytes)
            kept = await self._kept(ask)
            first = await asyncio.to_thread(self._spool.get, ask.frame_id) if ask.kind is RequestKind.BETTER else None
            has = 0 if first is None else first.size
            if ask.max_bytes <= has:
                raise Refused(RefusalReason.OVER_BUDGET, f"the frame already has {has} bytes: ask for more bytes")
            encoded = await self._encoded(ask, kept.picture)
            if len(encoded.data) <= has:
                raise self._no_better(encoded, has, ask.max_bytes)
            record = _record(ask, kept, encoded)
        await self._put(record, charge, end)

    def _no_better(self, encoded: Encoded, has: int, max_bytes: int) -> Refused:
        """Why there is nothing better than a frame of `has` bytes."""
        whole = (encoded.width, encoded.height) == (encoded.original_width, encoded.original_height)
        if whole and encoded.rate == len(self._encoder.bundle.rates) - 1:
            return Refused(RefusalReason.UNSUPPORTED, "the frame is the best that this box can make of the picture")
        return Refused(
            RefusalReason.OVER_BUDGET, f"the frame has {has} bytes, and nothing better fits into {max_bytes}"
        )

    async def _picture_now(self, ask: PictureRequest, source_id: str, charge: Charge, end: float) -> None:
        """A new picture as a frame. One at a time of each camera, so that pictures do not pile up in memory; a camera
        that is down is waited for."""
        async with asyncio.timeout(end - time.monotonic()), self._camera_turns[source_id]:
            _reserve(charge, charge.sent + ask.max_bytes)
            rgb = await self._cameras[source_id]()
            now_ms = int(time.time() * 1000)
            captured = (now_ms, CapturedFrom.CLOCK) if now_ms >= CLOCK_IS_SET_MS else (0, CapturedFrom.UNKNOWN)
            encoded = await self._encoded(ask, rgb)
            kept = Kept(ask.id, source_id, b"", *captured)
            if self._ring.takes(source_id):
                await asyncio.to_thread(self._keep, kept, rgb)
        await self._put(_record(ask, kept, encoded), charge, end)

    def _keep(self, kept: Kept, rgb: NDArray[np.uint8]) -> None:
        """Keeps a new picture, so that more of it can be asked for."""
        picture = save_picture(rgb, "jpeg", CAMERA_QUALITY)
        self._ring.keep(Kept(kept.id, kept.source_id, picture, kept.captured_ms, kept.captured_from))

    async def _file(self, ask: PictureRequest, charge: Charge, end: float, send: Send | None) -> None:
        """The original, or a region of it, as a picture file. One at a time: the link carries one as fast as two.

        A file that was cut off takes what is left of its own charge. What is sent again comes on top, as far as the
        hour has it."""
        if send is None:
            raise Refused(RefusalReason.UNSUPPORTED, "the cloud does not take picture files")
        async with asyncio.timeout(end - time.monotonic()), self._file_turn:
            async with self._turns:
                _reserve(charge, max(charge.sent, bytes_in_pieces(ask.max_bytes)))
                data = await self._file_of(ask, await self._kept(ask))
            charge.reserve(charge.sent + bytes_in_pieces(len(data)))
            if charge.left <= PIECE_HEAD_BYTES:
                raise Refused(RefusalReason.OVER_BUDGET, f"the {charge.hour.limit} bytes for an hour are spent")
            await send(File(data, limit=charge.left, charge=charge.spend))

    async def _file_of(self, ask: PictureRequest, kept: Kept) -> bytes:
        """The kept file itself where it fits; else a JPEG."""
        if not any(ask.region[2:]) and len(kept.picture) <= ask.max_bytes:
            return kept.picture
        if ask.max_bytes < LEAST_BYTES:
            raise _too_few(ask)
        return await self._worked(kept.picture, lambda: jpeg_within(self._part(ask, kept.picture), ask.max_bytes))

    async def _kept(self, ask: PictureRequest) -> Kept:
        kept = await asyncio.to_thread(self._ring.read, ask.frame_id)
        if kept is None:
            raise Refused(RefusalReason.GONE, _GONE)
        return kept

    async def _put(self, record: Record, charge: Charge, end: float) -> None:
        """Spools the answer. A commit that has begun is waited for, so that it cannot be refused as well. It is charged
        before it begins: if the stream ends meanwhile, the frame may be delivered all the same."""
        while True:
            charge.spend(len(record.data))
            try:
                await asyncio.wrap_future(self._spool.put(record, drops=False))
                return
            except SpoolError:  # full: acknowledgements make room
                charge.spend(-len(record.data))
                if time.monotonic() > end:
                    raise TimeoutError from None
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _encoded(self, ask: PictureRequest, picture: bytes | NDArray[np.uint8]) -> Encoded:
        return await self._worked(picture, functools.partial(self._encode, ask, picture))

    async def _worked(self, picture: bytes | NDArray[np.uint8], job: Callable[[], T]) -> T:
        """The result of a job of the encode queue. The whole original is decoded, so all its pixels count, however
        small the region is."""
        try:
            if isinstance(picture, bytes):
                cost = await self._encoder.reader.cost_in_turn(picture, max_pixels=self._encoder.max_pixels)
            else:
                cost = ReadingCost(picture.shape[0] * picture.shape[1], apart=False)
            while True:
                try:
                    return await self._queue.run(job, pixels=cost.pixels, apart=cost.apart)
                except Overloaded:
                    await asyncio.sleep(_PAUSE_SECONDS)
        except RateError as error:
            raise Refused(RefusalReason.OVER_BUDGET, str(error)) from None
        except InputError as error:
            raise Refused(RefusalReason.GONE, f"the original cannot be read: {error}") from None

    def _encode(self, ask: PictureRequest, picture: bytes | NDArray[np.uint8]) -> Encoded:
        rgb = self._part(ask, picture) if isinstance(picture, bytes) else picture
        return self._encoder.encode(rgb, max_bytes=ask.max_bytes)

    def _part(self, ask: PictureRequest, picture: bytes) -> NDArray[np.uint8]:
        rgb = self._encoder.reader.load(picture, max_pixels=self._encoder.max_pixels)
        x, y, width, height = ask.region
        if ask.kind is RequestKind.BETTER or (ask.kind is RequestKind.ORIGINAL and not width and not height):
            return rgb
        tall, wide, _ = rgb.shape
        if min(width, height) < MIN_SIDE or x + width > wide or y + height > tall:
            raise Refused(RefusalReason.UNSUPPORTED, f"the region is not inside the original of {wide}x{tall} pixels")
        return np.ascontiguousarray(rgb[y : y + height, x : x + width])


def _reserve(charge: Charge, total: int) -> None:
    if not charge.reserve(total):
        detail = f"it may take {total} bytes; of the {charge.hour.limit} for an hour, {charge.left} are left"
        raise Refused(RefusalReason.OVER_BUDGET, detail)


def _too_few(ask: PictureRequest) -> Refused:
    return Refused(RefusalReason.OVER_BUDGET, f"no picture has {ask.max_bytes} bytes or less: ask for more bytes")


def _record(ask: PictureRequest, kept: Kept, encoded: Encoded) -> Record:
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
