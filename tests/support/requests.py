"""Requests for more of a picture: a box that takes them, a cloud that has been asked, and what tests send."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.http_api import schemas
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from cloud_decoder.store.requests import new_request_id
from cloud_decoder.store.store import (
    NewRequest,
    RequestKind,
)
from tests.support.cloud.cloud import IngestClient, running_cloud
from tests.support.frames import NOW, MakeFrame, new_frame

NOW_MS = int(NOW * 1000)


class Box(IngestClient):
    """A box that takes requests of up to ``request_max_bytes``, and sends originals of up to 50,000."""

    async def greet(self, bundle: Bundle, token: str = "", request_max_bytes: int = 4096, source: str = "box") -> None:
        hello = pb.Hello(
            source_id=source, bundle_digest=bundle.digest, token=token, request_max_bytes=request_max_bytes, window=8
        )
        hello.original_max_bytes = 50_000
        await self.raw(pb.DeliverRequest(hello=hello))
        self.welcome = (await self._read()).welcome
        assert self.welcome.sends_requests

    async def piece(self, id: bytes, file: bytes, offset: int = 0, count: int = 1 << 16, **changed: Any) -> pb.PieceAck:
        """Send a part of ``file``; the answer."""
        await self.raw(pb.DeliverRequest(piece=piece_of(id, file, offset, count, **changed)))
        while True:
            message = await self._read()
            if message.WhichOneof("message") == "piece":
                return message.piece

    async def request(self) -> pb.Request:
        """The next request; answers to frames are passed over."""
        while True:
            message = await self._read()
            if message.WhichOneof("message") == "request":
                return message.request

    async def nothing(self, seconds: float = 1.5) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.request()

    async def refuse(self, id: bytes, reason: Any) -> None:
        await self.raw(pb.DeliverRequest(refusal=pb.Refusal(request_id=id, reason=reason, detail="because\n")))


def piece_of(id: bytes, file: bytes, offset: int = 0, count: int = 1 << 16, **changed: Any) -> pb.Piece:
    values: dict[str, Any] = {
        "request_id": id,
        "total_bytes": len(file),
        "sha256": hashlib.sha256(file).digest(),
        "offset": offset,
        "data": file[offset : offset + count],
    }
    return pb.Piece(**values | changed)


@asynccontextmanager
async def asked(
    decoder: Decoder, make_frame: MakeFrame, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Cloud, httpx.AsyncClient, UUID]]:
    """A cloud with a frame of the source ``box/door``, which ``box`` has delivered, from an original of 640x480."""
    async with running_cloud(decoder, folder, **settings) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        sizes: dict[str, Any] = {"original_width": 640, "original_height": 480}
        new = new_frame(make_frame(1, 64, 64), source="box/door", box="box", **sizes)
        cloud.store.frames.add([new], time.time())
        yield cloud, http, new.id


async def ended(http: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    state = await http.get(answer.headers["location"], params={"wait": 20})
    schemas.RequestBody.model_validate_json(state.content)
    return cast(dict[str, Any], state.json())


def new_request(parent: UUID, **changed: Any) -> NewRequest:
    values: dict[str, Any] = {
        "tenant": "", "id": new_request_id(), "parent": parent, "source": "s", "box": "s", "kind": RequestKind.REGION,
        "region": [1, 2, 128, 96], "max_bytes": 9000, "created_ms": NOW_MS, "deadline_ms": NOW_MS + 1000,
    }  # fmt: skip
    return NewRequest(**values | changed)


def jpeg(number: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 40 + number).convert("RGB").save(out, "JPEG")
    return out.getvalue()
