"""Reading requests: frame ids, and clients that disconnect."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import TypeVar
from uuid import UUID

from fastapi import Request

from aeic_service.errors import ClientGone, InvalidParameter

T = TypeVar("T")
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


def frame_id(text: str) -> UUID:
    """A frame id in a path: 8-4-4-4-12 hexadecimal digits and no other form of a UUID."""
    if not _ID.match(text):
        raise InvalidParameter("that is no frame id: it must be a UUID, like 0198c0de-0000-7000-8000-000000000000")
    return UUID(text)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, cancelled when the client disconnects (``ClientGone``). Read the body before."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client has disconnected")
    finally:
        for one in (task, disconnected):
            one.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
