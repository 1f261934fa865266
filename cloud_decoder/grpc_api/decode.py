"""Decoding for programs: bitstream in, image out, one call each or many over a stream. Nothing is stored."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from aeic.errors import AeicError
from aeic.v1 import decode_pb2 as many
from aeic.v1 import decode_pb2_grpc as many_grpc
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from aeic_service.errors import InvalidParameter, ServiceError
from cloud_decoder.admission import Admission
from cloud_decoder.auth import Tokens
from cloud_decoder.decode_backend import DecodeBackend
from cloud_decoder.grpc_api.calls import Calls
from cloud_decoder.grpc_api.status import grpc_status
from cloud_decoder.images import formats

Context = grpc.aio.ServicerContext[Any, Any]

WINDOW = 64
"""Frames of one stream in progress; the next one is read when one of them is answered."""
WIDTHS = range(16, 8193)


@dataclass(frozen=True)
class Gate:
    """Who may call, how many calls are open, and whose pictures are decoded."""

    tokens: Tokens
    calls: Calls
    admission: Admission

    def authenticate(self, context: Context) -> str:
        """The tenant of the token in the call's ``authorization`` metadata; ``NotAllowed`` without a known one."""
        metadata = dict(context.invocation_metadata() or ())
        return self.tokens.tenant_of_header(str(metadata.get("authorization", "")))


class Decode(pb_grpc.DecodeServiceServicer):
    """One frame a call. Queueing, its limits and batching are the backend's."""

    def __init__(self, backend: DecodeBackend, gate: Gate, max_seconds: float) -> None:
        self._backend, self._gate, self._max_seconds = backend, gate, max_seconds

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        """Decode within the caller's deadline. A caller that leaves takes its work out of the queue."""
        try:
            tenant = self._gate.authenticate(context)
            format = request.format or formats.MASTER
            formats.media_type(format)
            left = context.time_remaining()
            timeout = self._max_seconds if left is None else min(left, self._max_seconds)
            frame = self._backend.check(request.bitstream)
            with self._gate.calls.admitted(tenant), await self._gate.admission.enter(tenant, frame, timeout) as place:
                decoded = await self._backend.decode(request.bitstream, timeout=place.seconds_left)
                image = await self._backend.encode(decoded.picture, format)
        except AeicError as error:
            await context.abort(grpc_status(error), str(error))
        height, width, _ = decoded.picture.shape
        return pb.DecodeResponse(image=image, width=width, height=height)


class DecodeStream(many_grpc.DecodeStreamServiceServicer):
    """Many frames over one stream, answered in the order in which they finish."""

    def __init__(self, backend: DecodeBackend, gate: Gate, max_seconds: float) -> None:
        self._backend, self._gate, self._max_seconds = backend, gate, max_seconds

    async def DecodeMany(
        self, requests: AsyncIterator[many.DecodeManyRequest], context: Context
    ) -> AsyncIterator[many.DecodeManyResponse]:
        """Decode the frames of a stream. A client that leaves takes all its work out of the queue."""
        try:
            tenant = self._gate.authenticate(context)
            with self._gate.calls.admitted(tenant):
                async with contextlib.aclosing(self._answers(requests, tenant)) as answers:
                    async for answer in answers:
                        yield answer
        except AeicError as error:
            await context.abort(grpc_status(error), str(error))

    async def _answers(
        self, requests: AsyncIterator[many.DecodeManyRequest], tenant: str
    ) -> AsyncGenerator[many.DecodeManyResponse, None]:
        answers: asyncio.Queue[many.DecodeManyResponse | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, answers, tenant))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[many.DecodeManyRequest],
        answers: asyncio.Queue[many.DecodeManyResponse | None],
        tenant: str,
    ) -> None:
        room = asyncio.Semaphore(WINDOW)

        async def answer(request: many.DecodeManyRequest) -> None:
            try:
                answers.put_nowait(await self._answer(request, tenant))
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await room.acquire()
                    group.create_task(answer(request))
        finally:
            answers.put_nowait(None)

    async def _answer(self, request: many.DecodeManyRequest, tenant: str) -> many.DecodeManyResponse:
        try:
            format = request.format or formats.MASTER
            formats.media_type(format)
            if request.width and request.width not in WIDTHS:
                raise InvalidParameter(f"width {request.width}: it must be {WIDTHS.start} to {WIDTHS.stop - 1}, or 0")
            timeout = min(request.timeout_ms / 1000 or math.inf, self._max_seconds)
            frame = self._backend.check(request.bitstream)
            with await self._gate.admission.enter(tenant, frame, timeout) as place:
                decoded = await self._backend.decode(request.bitstream, timeout=place.seconds_left)
                image = await self._backend.encode(decoded.picture, format, request.width or None)
        except AeicError as error:
            after = error.retry_after if isinstance(error, ServiceError) else None
            failure = many.DecodeFailure(
                code=grpc_status(error).value[0], reason=str(error), retry_after_ms=math.ceil(1000 * (after or 0.0))
            )
            return many.DecodeManyResponse(tag=request.tag, failure=failure)
        height, width, _ = decoded.picture.shape
        picture = many.DecodedPicture(image=image, width=width, height=height, latents_digest=decoded.latents_digest)
        return many.DecodeManyResponse(tag=request.tag, picture=picture)
