"""Reading requests without trusting them: bodies with a cap and a clock, ids in one form, clients that go away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import TypeVar
from uuid import UUID

from fastapi import Request
from starlette.requests import ClientDisconnect

from cloud_decoder.errors import BadRequest, BodyTooLarge, ServiceError

T = TypeVar("T")
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")


class ClientGone(ServiceError):
    """Nobody is left to answer; the status is nginx's, and goes to the metrics only."""

    http_status = 499


class SlowBody(ServiceError):
    """The body did not arrive in time."""

    http_status = 408


def frame_id(text: str) -> UUID:
    """A frame id as it stands in a path: 8-4-4-4-12 hexadecimal digits and nothing else."""
    if not _ID.match(text):
        raise BadRequest("that is no frame id: it must be a UUID, like 0198c0de-0000-7000-8000-000000000000")
    return UUID(text)


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The raw body. ``BodyTooLarge`` as soon as that is known, ``SlowBody`` after ``seconds``."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limit:
        raise BodyTooLarge(f"{int(told)} bytes are over the limit of {limit}: this is no frame of ours")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyTooLarge(f"more than {limit} bytes: this is no frame of ours")
    except ClientDisconnect:
        raise ClientGone("the client went away in the middle of its body") from None
    except TimeoutError:
        raise SlowBody(f"the body did not arrive within {seconds:g} s: send it again") from None
    return bytes(body)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client closes the connection first. Read the body before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("the client has gone")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
