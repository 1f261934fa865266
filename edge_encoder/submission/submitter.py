"""Submits pictures to the spool: encoded first (take), or stored as received and encoded later (receive, encode).

    take:     picture -> encode -> spool, 202
    receive:  picture -> check its header -> spool, 202 ... deferred_encoder.py ... encode -> the frame replaces it

A call returns after the spool's commit: http_api/routes.py then answers 202, and a watched folder moves its file.
deferred_encoder.py calls `encode` and `put`. Independent of HTTP and of delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aeic.identifiers import new_id
from aeic.picture_files import headers
from aeic.pixels import save_picture
from aeic_service import tracing
from edge_encoder.encoding.encode_queue import EncodeQueue
from edge_encoder.encoding.encoder import Encoded, Encoder
from edge_encoder.encoding.link_adaptation import LinkAdaptation
from edge_encoder.encoding.picture_reader import ReadingCost
from edge_encoder.errors import IdTaken
from edge_encoder.metrics import Metrics
from edge_encoder.originals.ring import CAMERA_QUALITY, Kept, OriginalRing
from edge_encoder.settings import EdgeSettings
from edge_encoder.spool.record import Entry, ReceivedPicture, Record, State
from edge_encoder.spool.spool import Spool
from edge_encoder.submission import capture_time
from edge_encoder.submission.delivery_waiters import DeliveryWaiters
from edge_encoder.submission.request import Accepted, EncodeRequest, SizeLimits


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame to be spooled, with its encoding result and timings, and the picture that it was made of. `stretch`:
    grey levels of 16 bits were spread."""

    record: Record
    encoded: Encoded
    picture: bytes | NDArray[np.uint8]
    stretch: bool = False


class Submitter:
    """Used in one asyncio loop. Pictures that ask for no rate point get that of `link_adaptation`; without one, the
    bundle's default. With a `ring`, the originals of spooled frames are kept there."""

    def __init__(
        self,
        encoder: Encoder,
        queue: EncodeQueue,
        spool: Spool,
        waiting: DeliveryWaiters,
        metrics: Metrics,
        settings: EdgeSettings,
    ) -> None:
        self.link_adaptation: LinkAdaptation | None = None
        self.ring: OriginalRing | None = None
        self._encoder = encoder
        self._queue = queue
        self._spool = spool
        self._waiting = waiting
        self._metrics = metrics
        self._source_id = settings.source_id
        self._stretch = settings.stretch
        self._limits = SizeLimits.of(settings.preset, settings.max_bytes, settings.target_bytes, settings.max_side)

    async def take(self, picture: bytes | NDArray[np.uint8], encode_request: EncodeRequest) -> Accepted:
        """Encodes and spools one picture file, or (H, W, 3) RGB; returns once the spool's commit is synced to the disk.

        A picture whose id is known, with the same bytes, writes nothing unless it was dropped: the earlier entry is
        returned.

        Raises InputError, RateError, Overloaded, IdTaken, SpoolFull or SpoolError.
        """
        crc = zlib.crc32(picture if isinstance(picture, bytes) else picture.data.cast("B"))
        known = await self._known(encode_request, crc)
        if known is not None:
            return Accepted(known, known=True)
        made = await self._make(picture, encode_request, encode_request.id or new_id(), crc)
        tracing.keep_current(made.record.id)
        with self._waiting.expecting(made.record.id, encode_request.prompt):
            entry = await self.put(made)
        self._metrics.picture_bytes.inc(len(picture) if isinstance(picture, bytes) else picture.nbytes)
        return Accepted(entry, made.encoded)

    async def receive(self, picture: bytes, encode_request: EncodeRequest) -> Accepted:
        """Spools one picture file as received, after a check of its header; returns once the spool's commit is synced
        to the disk. It is encoded later; one that cannot be encoded ends as FAILED.

        Raises InputError, RateError, IdTaken, SpoolFull or SpoolError.
        """
        self._encoder.bundle.rate(encode_request.rate)
        width, height = await self._encoder.reader.size_in_turn(picture, max_pixels=self._encoder.max_pixels)
        received = await asyncio.to_thread(self._received, picture, encode_request, width, height)
        known = await self._known(encode_request, received.picture_crc)
        if known is not None:
            return Accepted(known, known=True)
        begin = time.perf_counter()
        tracing.keep_current(received.id)
        context = tracing.kept(received.id)
        entry = await asyncio.wrap_future(self._spool.receive(received))
        self._observe(context, {"receive": time.perf_counter() - begin})
        self._metrics.picture_bytes.inc(len(picture))
        return Accepted(entry)

    async def encode(self, received: ReceivedPicture) -> EncodedFrame:
        """Encodes a received picture. InputError or RateError when it can never be encoded."""
        encode_request = EncodeRequest(
            rate=received.rate,
            limits=SizeLimits(received.max_bytes, received.target_bytes, received.max_side),
            priority=received.priority,
            source_id=received.source_id,
            captured_ms=received.captured_ms,
        )
        waited = max(0.0, time.time() - received.created_ms / 1000)
        self._metrics.stage_seconds.labels("wait").observe(waited)
        return await self._make(
            received.picture,
            encode_request,
            received.id,
            received.picture_crc,
            created_ms=received.created_ms,
            unbounded=True,
        )

    async def put(self, made: EncodedFrame) -> Entry:
        """Spools a frame, in place of its received picture if there is one; SpoolFull, IdTaken or SpoolError."""
        begin = time.perf_counter()
        context = tracing.kept(
            made.record.id
        )  # before the frame can be sent, since a cloud in the same process keeps its own context
        ring = self.ring if self.ring is not None and self.ring.takes(made.record.source_id) else None
        # The frame may be sent, and asked about, before its original is kept: requests wait for that.
        with contextlib.nullcontext() if ring is None else ring.expecting(made.record.id):
            entry = await asyncio.wrap_future(self._spool.put(made.record))
            self._observe(context, {**made.encoded.timings, "spool": time.perf_counter() - begin})
            self._metrics.frame_bytes.labels(str(made.encoded.rate)).observe(len(made.encoded.data))
            if ring is not None:
                await asyncio.to_thread(self._keep, ring, made)
        return entry

    async def _known(self, encode_request: EncodeRequest, crc: int) -> Entry | None:
        """The entry of the client's id, when it is known for this very picture; IdTaken for another picture."""
        if encode_request.id is None:
            return None
        known = await asyncio.to_thread(self._spool.get, encode_request.id)
        if known is not None and known.picture_crc != crc:
            raise IdTaken(f"id {encode_request.id} belongs to another picture; use a fresh id for each picture")
        return None if known is None or known.state is State.DROPPED else known

    async def _make(
        self,
        picture: bytes | NDArray[np.uint8],
        encode_request: EncodeRequest,
        ident: uuid.UUID,
        crc: int,
        *,
        created_ms: int = 0,
        unbounded: bool = False,
    ) -> EncodedFrame:
        rate: str | int | None = encode_request.rate
        asked = encode_request.limits
        if rate is None and asked.max_bytes is None and asked.target_bytes is None and self.link_adaptation is not None:
            rate = self.link_adaptation.rate
        limits = asked.otherwise(self._limits)
        stretch = self._stretch if encode_request.stretch is None else encode_request.stretch
        cost = await self._cost(picture)
        encoded = await self._queue.run(
            pixels=cost.pixels,
            apart=cost.apart,
            job=functools.partial(
                self._encoder.encode,
                picture,
                rate=rate,
                max_bytes=limits.max_bytes,
                target_bytes=limits.target_bytes,
                max_side=limits.max_side,
                stretch=stretch,
            ),
            unbounded=unbounded,
        )
        arrived_ms = created_ms or int(time.time() * 1000)
        captured_ms, captured_from = await asyncio.to_thread(
            capture_time.captured,
            picture,
            encode_request.captured_ms,
            encode_request.captured_from,
            arrived_ms,
            self._encoder.reader.exif,
        )
        record = Record(
            id=ident,
            data=encoded.data,
            width=encoded.width,
            height=encoded.height,
            rate=encoded.rate,
            priority=encode_request.priority,
            created_ms=arrived_ms,
            captured_ms=captured_ms,
            picture_crc=crc,
            source_id=encode_request.source_id or self._source_id,
            original_width=encoded.original_width,
            original_height=encoded.original_height,
            captured_from=captured_from,
        )
        return EncodedFrame(record, encoded, picture, stretch)

    async def _cost(self, picture: bytes | NDArray[np.uint8]) -> ReadingCost:
        """What reading a picture costs, by its header; InputError where the picture cannot be taken."""
        if not isinstance(picture, bytes):
            return ReadingCost(picture.shape[0] * picture.shape[1], apart=False)
        return await self._encoder.reader.cost_in_turn(picture, max_pixels=self._encoder.max_pixels)

    def _received(self, picture: bytes, encode_request: EncodeRequest, width: int, height: int) -> ReceivedPicture:
        return ReceivedPicture(
            id=encode_request.id or new_id(),
            picture=picture,
            picture_crc=zlib.crc32(picture),
            width=width,
            height=height,
            priority=encode_request.priority,
            created_ms=int(time.time() * 1000),
            captured_ms=encode_request.captured_ms,
            source_id=encode_request.source_id or self._source_id,
            rate=encode_request.rate,
            max_bytes=encode_request.limits.max_bytes,
            target_bytes=encode_request.limits.target_bytes,
            max_side=encode_request.limits.max_side,
        )

    def _observe(self, context: bytes, timings: dict[str, float]) -> None:
        """Records the stages of a frame, the last of which has just ended, as metrics and spans under `context`."""
        ended = time.monotonic()
        for stage, seconds in reversed(timings.items()):
            self._metrics.stage_seconds.labels(stage).observe(seconds)
            tracing.span(f"edge.{stage}", seconds, ended=ended, under=context)
            ended -= seconds

    def _keep(self, ring: OriginalRing, made: EncodedFrame) -> None:
        """Keeps the original of a frame. What the cloud does not take as a file becomes a JPEG: the picture of a
        camera, AVIF, HEIF, and 16-bit grey whose levels were spread."""
        picture = made.picture
        if isinstance(picture, bytes):
            spread = made.stretch and headers.is_sixteen_bit_png(picture)
            if spread or headers.kind(picture) is not None:
                picture = self._encoder.reader.load(picture, max_pixels=self._encoder.max_pixels, stretch=made.stretch)
        if not isinstance(picture, bytes):
            picture = save_picture(picture, "jpeg", CAMERA_QUALITY)
        record = made.record
        ring.keep(Kept(record.id, record.source_id, picture, record.captured_ms, record.captured_from.value))
