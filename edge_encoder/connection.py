"""One HTTP connection: uvicorn's, with a deadline for the headers, which uvicorn itself does not have.

Without it a client that sends a byte a second before its headers are complete holds a connection for ever. (The body
has its own deadline, body.py.)
"""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(seconds: float) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http` option; headers must be complete within `seconds` of their first byte
    (of the connection, for the first request)."""

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, self._expire)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._disarm()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._expire)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _expire(self) -> None:
            self._deadline = None
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return cast(type[asyncio.Protocol], Connection)
