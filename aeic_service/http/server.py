"""uvicorn inside a service's own event loop, with the limits that uvicorn itself does not have.

A connection has a deadline for the headers of each request, for taking its answer, and for what is left of a body after
the answer. The number of connections is limited, to fewer than the process may open files: at the limit a new
connection takes the place of the oldest one with half a request, or else of the one that has been silent for longest:
without a request, or in the middle of an upload. If there is none, the new one is answered 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import json
import resource
import socket
import struct
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from aeic_service.http import problems

_IDLE_SECONDS = 30
_SEND_SECONDS = 30.0
_REST_SECONDS = 30.0
"""For the rest of a body whose answer was sent early, such as a 413: some clients write all of it before they read."""
_SILENT_SECONDS = 1.0
"""An upload that sends nothing for this long makes room for a new connection at the limit."""
_HEADER_BYTES = 16384
_BACKLOG = 1024
_OTHER_FILES = 128  # libraries, logs, the database and the model
_LEAST_CONNECTIONS = 16
_UPLOAD_GRACE = 0.8
"""Share of the grace time that a body may take to arrive while the server stops; the rest is for its answer."""


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
    """At once; fewer where the process may not open so many files, see :func:`connection_limit`."""
    reuse_port: bool = False
    """Several processes may listen on the same port."""


class HttpServer:
    """``bind()`` takes the port, ``await start()`` gives the address, ``await stop()`` ends it."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        self._settings = settings
        self.connections = Connections(connection_limit(settings.max_connections))
        config = uvicorn.Config(
            app,
            http=_connection_class(self.connections, settings.header_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=settings.grace_seconds,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            # asyncio tries so many accepts in a row, and without free files logs an error for each and sets as many
            # timers, each of which does the same a second later.
            backlog=1,
        )
        self._server = _Uvicorn(config)
        self._listener: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> str:
        """Take the port; the address as a URL. ``OSError`` where the port is not to be had."""
        settings = self._settings
        try:
            self._listener = listen(settings.host, settings.port, reuse_port=settings.reuse_port)
        except OSError as error:
            where = f"{address_text(settings.host, settings.port)} ({error.strerror})"
            raise OSError(
                f"HTTP cannot listen on {where}: choose another {settings.prefix}PORT or {settings.prefix}HOST"
            ) from error
        return f"http://{address_text(settings.host, self._listener.getsockname()[1])}"

    async def start(self) -> str:
        """Serve, on a port taken now where ``bind()`` has not; the address as a URL. ``OSError`` as ``bind()``."""
        if self._listener is None:
            self.bind()
        assert self._listener is not None
        self._serving = asyncio.create_task(self._server.serve([self._listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise OSError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        self._listener.listen(_BACKLOG)  # asyncio gave the kernel its own number
        return f"http://{address_text(self._settings.host, self._listener.getsockname()[1])}"

    async def ended(self) -> None:
        """Returns when the server has ended, for whatever reason."""
        if self._serving is not None:
            await asyncio.wait([self._serving])

    async def stop(self) -> None:
        """No new requests; those that run have ``grace_seconds``, and a little less for the rest of their bodies."""
        self._server.should_exit = True
        loop = asyncio.get_running_loop()
        loop.call_later(_UPLOAD_GRACE * self._settings.grace_seconds, self.connections.abort_uploads)
        if self._serving is not None:
            await self._serving
        elif self._listener is not None:
            self._listener.close()


def connection_limit(wanted: int) -> int:
    """``wanted`` connections, or what RLIMIT_NOFILE allows: half of the open files that the process does not need for
    itself."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(_LEAST_CONNECTIONS, (files - _OTHER_FILES) // 2))


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening socket for a name or an address, IPv4 or IPv6 (with or without brackets); ``::`` takes both families.
    ``OSError`` if it is not available."""
    bare = host.strip("[]")
    found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name with addresses of both families means IPv4: that is what its clients try when it is localhost.
    family, _, _, _, address = next((one for one in found if one[0] == socket.AF_INET), found[0])
    both = family == socket.AF_INET6 and bare == "::" and socket.has_dualstack_ipv6()
    server = socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=reuse_port, dualstack_ipv6=both)
    # Accepted sockets inherit it. asyncio sets it only where a socket names its protocol, which this one does not, and
    # an answer in two segments would then wait 40 ms for the client's delayed acknowledgement.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def address_text(host: str, port: int) -> str:
    """``host:port`` as URLs and gRPC write it: an IPv6 address in brackets."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


class Connections:
    """The open connections: at most ``limit``, and those among them that wait for a request."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[H11Protocol] = set()
        self._waiting: dict[H11Protocol, float] = {}  # monotonic time since when each waits, in order
        self._heard: dict[H11Protocol, float] = {}  # monotonic time of the last bytes of those that are busy, in order

    @property
    def held(self) -> int:
        """How many are open."""
        return len(self.open)

    def admit(self, connection: H11Protocol) -> bool:
        """Count a new connection, in the place of another one where there is no other. False where all are busy."""
        if len(self.open) >= self.limit:
            oldest = self._idle()
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.transport.abort()
        self.open.add(connection)
        self._waiting[connection] = time.monotonic()
        return True

    def waits(self, connection: H11Protocol) -> None:
        """Its answer is complete, and no further request has come."""
        if connection in self.open:
            self._waiting[connection] = time.monotonic()
            self._heard.pop(connection, None)

    def busy(self, connection: H11Protocol) -> None:
        """The headers of a request are complete, or a part of its body has come."""
        self._waiting.pop(connection, None)
        self._heard.pop(connection, None)  # the one heard of last is last
        self._heard[connection] = time.monotonic()

    def abort_uploads(self) -> None:
        """Close those whose request has not arrived as a whole: the route sees a client that has gone."""
        for connection in self.open.copy():
            if connection.conn.their_state is h11.SEND_BODY:
                connection.transport.abort()

    def forget(self, connection: H11Protocol) -> None:
        """It is closed."""
        self.open.discard(connection)
        self._waiting.pop(connection, None)
        self._heard.pop(connection, None)

    def _idle(self) -> H11Protocol | None:
        """The connection that makes room for a new one. Not one whose bytes have arrived and are not read yet, because
        this process was busy.

        Clients send the headers of a request at once. One that is new and has sent nothing stays longer than uploads
        that have stopped."""
        partial = (one for one in self._waiting if one.conn.trailing_data[0])
        return next((one for one in chain(partial, self._silent()) if not _unread(one)), None)

    def _silent(self) -> Iterator[H11Protocol]:
        """Those that wait for a request, and the uploads that are silent: the longest silence first."""
        now = time.monotonic()
        uploads = (
            (heard, one)
            for one, heard in self._heard.items()
            if heard < now - _SILENT_SECONDS and one.conn.their_state is h11.SEND_BODY
        )
        waiting = ((since, one) for one, since in self._waiting.items())
        return (one for _, one in heapq.merge(waiting, uploads, key=itemgetter(0)))


def _unread(connection: H11Protocol) -> bool:
    """Whether the kernel holds bytes of this connection."""
    try:
        descriptor = connection.transport.get_extra_info("socket").fileno()
        (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    except (OSError, ValueError):  # it is closed
        return False
    return bool(count)


class _Uvicorn(uvicorn.Server):
    """Without its own signal handlers, which would end the process by the signal and not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _connection_class(connections: Connections, header_seconds: float) -> type[asyncio.Protocol]:
    """The class for uvicorn's ``http`` option; httptools, its default where installed, knows no limit on headers."""

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _unsent: asyncio.TimerHandle | None = None
        _refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn types it wider
            if not connections.admit(self):
                self._refused = True
                transport.write(_answer(503, f"{connections.limit} connections are open; try again in 1 s"))
                transport.close()
                return
            super().connection_made(transport)
            self._deadline = self.loop.call_later(header_seconds, self._expire)

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            if self._answered_early():
                return  # its deadline runs
            if self.conn.their_state is not h11.IDLE:
                connections.busy(self)
                self._disarm()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(header_seconds, self._expire)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._answered_early():
                connections.waits(self)
                self._disarm()
                self._deadline = self.loop.call_later(_REST_SECONDS, self.transport.abort)
            elif self.conn.their_state is h11.IDLE:
                connections.waits(self)

        def _answered_early(self) -> bool:
            """Whether the answer is complete and the body of its request is not."""
            return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

        def connection_lost(self, exc: Exception | None) -> None:
            if self._refused:
                return
            connections.forget(self)
            self._disarm()
            super().connection_lost(exc)
            self.resume_writing()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unsent is None:
                self._unsent = self.loop.call_later(_SEND_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            if self._unsent is not None:
                self._unsent.cancel()
                self._unsent = None
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            self.transport.write(_answer(400, "this is not a readable HTTP/1.1 request"))
            self.transport.close()

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _expire(self) -> None:
            self._deadline = None
            if self.conn.their_state is h11.IDLE:
                self.transport.write(
                    _answer(408, f"the headers were not complete within {header_seconds:g} s")
                    if self.conn.trailing_data[0]
                    else b""
                )
                self.transport.close()

    return cast(type[asyncio.Protocol], Connection)


def _answer(status: int, detail: str) -> bytes:
    """A whole answer, for when there is no request that the app could answer."""
    body = json.dumps(problems.body(status, detail)).encode()
    head = (
        f"HTTP/1.1 {status} {problems.title(status)}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    )
    return (head + ("Retry-After: 1\r\n" if status == 503 else "") + "\r\n").encode() + body
