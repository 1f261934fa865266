"""uvicorn inside a service's own event loop, with a deadline for headers, which uvicorn itself does not have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_IDLE_SECONDS = 30
_HEADER_BYTES = 16384


@dataclass(frozen=True)
class ServerSettings:
    """Where an HTTP server listens, and what it bears."""

    host: str
    port: int
    """0 takes a free one."""
    prefix: str
    """Of the service's variables, named in errors: ``AEIC_EDGE_``."""
    header_seconds: float
    """Headers must be complete within this time of their first byte; of the connection, for the first request."""
    grace_seconds: int
    """Time for running requests when the server stops."""
    max_connections: int = 1024
    reuse_port: bool = False
    """Several processes may listen on the same port."""


class HttpServer:
    """``bind()`` takes the port, ``await start()`` gives the address, ``await stop()`` ends it."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        self._settings = settings
        config = uvicorn.Config(
            app,
            http=connection_class(settings.header_seconds),  # httptools knows no limit on headers
            limit_concurrency=settings.max_connections,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=settings.grace_seconds,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        self._server = _Uvicorn(config)
        self._listener: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> str:
        """Take the port; the address as a URL. ``OSError`` where the port is not to be had."""
        settings = self._settings
        try:
            self._listener = socket.create_server(
                (settings.host, settings.port), backlog=1024, reuse_port=settings.reuse_port
            )
        except OSError as error:
            where = f"{settings.host}:{settings.port} ({error.strerror})"
            raise OSError(f"HTTP cannot listen on {where}: choose another {settings.prefix}PORT") from error
        return f"http://{settings.host}:{self._listener.getsockname()[1]}"

    async def start(self) -> str:
        """Serve, on a port taken now where ``bind()`` has not; the address as a URL. ``OSError`` as ``bind()``."""
        url = self.bind() if self._listener is None else ""
        assert self._listener is not None
        self._serving = asyncio.create_task(self._server.serve([self._listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        return url or f"http://{self._settings.host}:{self._listener.getsockname()[1]}"

    async def ended(self) -> None:
        """Returns when the server has ended, for whatever reason."""
        if self._serving is not None:
            await asyncio.wait([self._serving])

    async def stop(self) -> None:
        """No new requests; those that run have ``grace_seconds``."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        elif self._listener is not None:
            self._listener.close()


class _Uvicorn(uvicorn.Server):
    """Without its own signal handlers, which would end the process by the signal and not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
