"""Middleware that measures every HTTP request, for the metrics of each service."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Observe = Callable[[Scope, int, float], None]


class RequestTiming:
    """Calls ``observe(scope, status, seconds)`` at the end of every request, refused ones too.

    ``status`` is 500 where the request ended without an answer of its own. ``scope["route"]`` is the route, if one
    matched.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._observe(scope, status, time.monotonic() - started)
