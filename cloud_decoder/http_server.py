"""The HTTP side of the cloud: uvicorn inside the service's own event loop, with limits of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from cloud_decoder.settings import Settings


class HttpServer:
    """``await start()`` gives the address, ``await stop()`` ends it."""

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        self._settings = settings
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            http="h11",  # httptools, taken where it is installed, knows no limit on headers
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=16384,
            server_header=False,
        )
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen and serve; the address as a URL. ``OSError`` where the port is not to be had."""
        settings = self._settings
        address = (settings.host, settings.port)
        try:
            listening = socket.create_server(address, backlog=1024, reuse_port=settings.reuse_port)
        except OSError as error:
            where = f"{settings.host}:{settings.port} ({error.strerror})"
            raise OSError(f"HTTP cannot listen on {where}: choose another AEIC_CLOUD_PORT") from error
        self._serving = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError("the HTTP server did not start")
            await asyncio.sleep(0.01)
        return f"http://{settings.host}:{listening.getsockname()[1]}"

    async def stop(self) -> None:
        """No new requests; those that run have five seconds."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Uvicorn(uvicorn.Server):
    """Without its own signal handlers: the service has one for both servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
