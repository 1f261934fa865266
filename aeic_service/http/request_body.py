"""Reads a request's body with three limits: its size, the time it may take, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from aeic_service.budgets import Budget
from aeic_service.errors import BodyTooLarge, ClientGone, Overloaded, SlowBody, UnsupportedBody
from aeic_service.http.problems import STRIPPED

# An answer sent while the client still writes may be lost with the connection; so a refused body is first read and
# thrown away, up to this much and this long.
_DISCARD_BYTES = 8 << 20
_DISCARD_SECONDS = 0.5


@dataclass(frozen=True)
class BodyLimits:
    """Limits on one request body."""

    max_bytes: int
    seconds: float
    """From the first look at the body to its last byte."""
    setting: str = ""
    """The variable that raises ``max_bytes``, named to the client; empty if it would not help."""


def stated_size(request: Request, limits: BodyLimits) -> int:
    """Upper bound on the body's size in bytes: its Content-Length if given, else the limit.

    ``BodyTooLarge``, or ``UnsupportedBody`` if the headers say that it is multipart or compressed.
    """
    _refuse_wrapped(request)
    stated = request.headers.get("content-length", "")
    size = int(stated) if stated.isdecimal() and len(stated) < 20 else limits.max_bytes + bool(stated)
    if size > limits.max_bytes:
        raise _too_large(limits)
    return size


async def read_body(request: Request, limits: BodyLimits, budget: Budget | None = None, tenant: str = "") -> bytes:
    """The whole body.

    ``UnsupportedBody`` and ``BodyTooLarge`` as soon as that is known, ``SlowBody``, ``ClientGone``, or ``Overloaded``
    where ``budget`` has no room for this tenant. The budget counts the bytes that have arrived and not those announced:
    a client that announces a large body and sends none of it keeps no room from the others. It is released when the
    body is complete; from then on the route bounds what it holds.
    """
    held = 0
    try:
        stated_size(request, limits)
        received = bytearray()
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                if len(received) + len(chunk) > limits.max_bytes:
                    raise _too_large(limits)
                if budget is not None:
                    if not budget.fits(len(chunk), tenant):
                        raise Overloaded("too many bytes are being received at once; try again in 1 s", retry_after=1.0)
                    budget.take(len(chunk), tenant)
                    held += len(chunk)
                received += chunk
        request.scope[STRIPPED] = _looks_stripped(request, received)
        return bytes(received)
    except TimeoutError:
        raise SlowBody(f"the body did not arrive within {limits.seconds:g} s; send it faster or smaller") from None
    except ClientDisconnect:
        raise ClientGone("the client hung up before the body was complete") from None
    except (BodyTooLarge, Overloaded, UnsupportedBody):
        await discard(request)
        raise
    finally:
        if budget is not None:
            budget.give_back(held, tenant)


async def discard(request: Request) -> None:
    """Reads and forgets what the client is still sending, within bounds."""
    seen = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: read before
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > _DISCARD_BYTES:
                    return


def _refuse_wrapped(request: Request) -> None:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UnsupportedBody(
            "the body is a form: send the file itself as the body, `curl --data-binary @FILE` instead of `curl -F`"
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedBody(f"the body is compressed ({coding[:20]}): send the file as it is")


def _looks_stripped(request: Request, received: bytearray) -> bool:
    form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return form and len(received) > 0 and not any(byte in received for byte in b"\0\r\n")


def _too_large(limits: BodyLimits) -> BodyTooLarge:
    remedy = f"send a smaller file or raise {limits.setting}" if limits.setting else "send a smaller file"
    return BodyTooLarge(f"the body is over {limits.max_bytes} bytes; {remedy}")
