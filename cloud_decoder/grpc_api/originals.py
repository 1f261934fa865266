"""Picture files that answer requests for originals: put together from the pieces of a stream, checked and stored.

What has arrived is kept in memory until the file is whole, also while its box connects again, so that the box goes on
where it was. A file is stored like a frame, in the transaction that ends its request. A box is hostile here: only a
file that was asked of it is taken, up to the bytes that were asked for, and only if its head is that of a picture.
ingest.py passes the pieces on and sends the answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, field
from uuid import UUID

from aeic.errors import InputError
from aeic.v1 import ingest_pb2 as pb
from aeic_service.budgets import Budget
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.grpc_api.group_commit import GroupCommit
from cloud_decoder.images import files
from cloud_decoder.request_dispatch import RequestDispatch
from cloud_decoder.store.frames import fits
from cloud_decoder.store.store import NewFrame, RefusalReason, RequestKind, RequestState, Store, StoredRequest

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 16
HELD_BYTES = 64 << 20
"""Bytes that have arrived of files that are not whole, in all; tenants share them fairly."""
ENTRY_BYTES = 1024
"""What each file counts besides its bytes: one of which nothing has come takes memory too."""
IDLE_SECONDS = 60.0
"""A file of which nothing new has come for so long gives way to another one."""
CHECK_SECONDS = 2.0
"""How often a file that arrives looks whether its request is still open: a deleted frame or another process may have
ended it, and the box pays for every byte that it goes on to send."""


@dataclass
class _Arriving:
    request: StoredRequest
    size: int
    digest: bytes
    data: bytearray = field(default_factory=bytearray)
    progress: float = field(default_factory=time.monotonic)
    """When its last bytes came, in monotonic seconds."""
    checked: float = field(default_factory=time.monotonic)
    """When its request was last seen open, in monotonic seconds."""
    storing: asyncio.Task[None] | None = None


class OriginalAssembler:
    """The files that arrive on all streams of this process. Files over ``max_bytes`` are not taken, nor those of more
    than ``max_pixels``. ``shared``: there are several tenants. Call from the event loop only."""

    def __init__(
        self,
        store: Store,
        commits: GroupCommit,
        dispatch: RequestDispatch,
        *,
        max_bytes: int,
        max_pixels: int,
        shared: bool,
    ) -> None:
        self.max_bytes = max_bytes
        self._store, self._commits, self._dispatch, self._max_pixels = store, commits, dispatch, max_pixels
        self._arriving: dict[tuple[str, UUID], _Arriving] = {}
        self._held = Budget(HELD_BYTES, shared=shared)

    async def close(self) -> None:
        """Store what is whole."""
        tasks = [one.storing for one in self._arriving.values() if one.storing is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self, tenant: str, box: str, piece: pb.Piece) -> pb.PieceAck | None:
        """The answer to a piece. None where the box is to ask later: the store or the memory has no room now."""
        ack = pb.PieceAck(request_id=piece.request_id[:16])
        if len(piece.request_id) != 16 or len(piece.sha256) != 32 or len(piece.data) > PIECE_BYTES:
            ack.unwanted = True
            return ack
        key = tenant, UUID(bytes=piece.request_id)
        one = self._arriving.get(key)
        if one is not None and one.request.box != box:
            ack.unwanted = True
            return ack
        if one is None or (one.size, one.digest) != (piece.total_bytes, piece.sha256):
            try:
                request = await self._wanted(key, box, piece.total_bytes)
            except StoreUnavailable as error:
                log.warning("original for request %s waits: %s", key[1], error)
                return None
            if request is None:
                ack.unwanted = True
                return ack
            if one is not None and self._arriving.get(key) is one and one.storing is None:
                self._drop(key)
            if key in self._arriving or not self._room(ENTRY_BYTES + len(piece.data), tenant):
                return None
            one = self._arriving[key] = _Arriving(request, piece.total_bytes, piece.sha256)
            self._held.take(ENTRY_BYTES, tenant)
        if await self._has_ended(key, one):
            if self._arriving.get(key) is one and one.storing is None:
                self._drop(key)
            ack.unwanted = True
            return ack
        if self._arriving.get(key) is not one:  # it has given way to another file meanwhile
            return None
        if piece.data and piece.offset == len(one.data) and len(one.data) + len(piece.data) <= one.size:
            one.progress = time.monotonic()  # now, so that it does not give way to itself
            if not self._room(len(piece.data), tenant):
                return None
            self._held.take(len(piece.data), tenant)
            one.data += piece.data
        if len(one.data) == one.size and one.storing is None:
            one.storing = asyncio.create_task(self._store_whole(key, one))
        ack.received_bytes = len(one.data)
        return ack

    async def _has_ended(self, key: tuple[str, UUID], one: _Arriving) -> bool:
        """Whether the request of a file that is not whole has ended; looks into the store once in CHECK_SECONDS."""
        if one.storing is not None:
            return False
        if one.request.deadline_ms <= self._dispatch.now() * 1000:
            return True
        if time.monotonic() - one.checked < CHECK_SECONDS:
            return False
        one.checked = time.monotonic()
        try:
            request = await asyncio.to_thread(self._store.requests.get, *key)
        except StoreUnavailable:  # it is asked again; until then the request is as it was
            return False
        return request is None or request.state is not RequestState.OPEN

    async def _wanted(self, key: tuple[str, UUID], box: str, size: int) -> StoredRequest | None:
        """The open request that a file of that size from that box answers. A file that is too large ends it."""
        request = await asyncio.to_thread(self._store.requests.get, *key)
        if request is None or request.box != box or request.kind is not RequestKind.ORIGINAL:
            return None
        if request.state is not RequestState.OPEN:
            return None
        if not 0 < size <= min(request.max_bytes, self.max_bytes):
            await self._refuse(request, f"the box sent a file of {size} bytes, which is more than was asked for")
            return None
        return request

    def _room(self, size: int, tenant: str) -> bool:
        """Whether so many bytes of a tenant may be held, after files that are idle have given way to them."""
        oldest = time.monotonic() - IDLE_SECONDS
        for key, one in list(self._arriving.items()):
            if self._held.fits(size, tenant):
                break
            if one.progress < oldest and one.storing is None:
                self._drop(key)
        return self._held.fits(size, tenant)

    def _drop(self, key: tuple[str, UUID]) -> None:
        self._held.give_back(ENTRY_BYTES + len(self._arriving.pop(key).data), key[0])

    async def _store_whole(self, key: tuple[str, UUID], one: _Arriving) -> None:
        """Store a file; refuse its request if it is no picture. If the store cannot, the next piece tries it again."""
        data, request = bytes(one.data), one.request
        try:
            if await asyncio.to_thread(_digest, data) != one.digest:
                log.warning("original for request %s is damaged: the box sends it again", request.id)
            else:
                try:
                    described = await asyncio.to_thread(files.describe, data, max_pixels=self._max_pixels)
                except InputError as error:
                    await self._refuse(request, f"the box sent a file that is not taken: {error}")
                else:
                    frame = await asyncio.to_thread(self._frame, one, data, *described)
                    if fits(frame, request.kind, request.region, request.max_bytes):
                        await self._commits.add(frame)
                    else:
                        size = f"{frame.width}x{frame.height} pixels"
                        await self._refuse(request, f"the box sent a file of {size}, which is larger than the region")
        except StoreUnavailable as error:
            log.warning("original for request %s is not stored: %s", request.id, error)
            one.storing = None
            return
        except Exception:
            log.exception("original for request %s could not be stored", request.id)
        self._drop(key)

    def _frame(self, one: _Arriving, data: bytes, media_type: str, width: int, height: int) -> NewFrame:
        request = one.request
        parent = self._store.frames.get(request.tenant, request.parent)
        whole = None if parent is None else (parent.original_width, parent.original_height)
        part = None if request.region is None else (request.region[2], request.region[3])
        original = part or whole or (None, None)
        return NewFrame(
            tenant=request.tenant,
            id=request.id,
            source=request.source,
            captured_ms=0 if parent is None else parent.captured_ms,
            priority=0,
            width=width,
            height=height,
            rate=0,
            fingerprint="",
            digest=one.digest.hex(),
            bitstream=data,
            wanted=False,
            original_width=original[0],
            original_height=original[1],
            captured_from=None if parent is None else parent.captured_from,
            box=None if request.box == request.source else request.box,
            media_type=media_type,
        )

    async def _refuse(self, request: StoredRequest, detail: str) -> None:
        reason = RefusalReason.UNSUPPORTED
        await self._dispatch.refused(request.tenant, request.box, request.id, reason, detail)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
