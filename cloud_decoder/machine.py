"""DecodeService: bitstream in, image out, for machine clients; nothing is stored."""

from __future__ import annotations

from typing import Any

import grpc

from aeic.errors import AeicError
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder import pictures
from cloud_decoder.auth import Tokens
from cloud_decoder.gallery import Gallery
from cloud_decoder.problems import grpc_status
from cloud_decoder.worker import Worker


class Decode(pb_grpc.DecodeServiceServicer):
    """The servicer; the queue, its limits and its batches are the worker's."""

    def __init__(self, worker: Worker, gallery: Gallery, tokens: Tokens, max_seconds: float) -> None:
        self._worker, self._gallery, self._tokens, self._max_seconds = worker, gallery, tokens, max_seconds

    async def Decode(self, request: pb.DecodeRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.DecodeResponse:
        """One frame. A caller's deadline is the decode's; a caller that leaves takes his work out of the queue."""
        try:
            metadata = dict(context.invocation_metadata() or ())
            self._tokens.tenant_of_header(str(metadata.get("authorization", "")))
            format = request.format or pictures.MASTER
            pictures.media_type(format)
            left = context.time_remaining()
            timeout = self._max_seconds if left is None else min(left, self._max_seconds)
            decoded = await self._worker.decode(request.bitstream, timeout=timeout)
            image = await self._worker.encode(decoded.picture, format)
        except AeicError as error:
            await context.abort(grpc_status(error), str(error))
        height, width, _ = decoded.picture.shape
        return pb.DecodeResponse(image=image, width=width, height=height)
