"""`python -m edge_encoder`: the edge service. Settings: AEIC_EDGE_* (docs/edge.md); the flags go before them.

When it is ready, one JSON line on stdout names the address. SIGTERM and SIGINT drain and end with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from pydantic import ValidationError

from aeic.errors import AeicError
from aeic_service import logs
from edge_encoder import systemd
from edge_encoder.connection import connection_class
from edge_encoder.http_api.routes import create_app
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings, unknown_variables
from edge_encoder.sources.camera import Camera
from edge_encoder.sources.watched_folder import WatchedFolder

_GRACE_SECONDS = 10
_CONNECTIONS = 1024
# How long the entropy coder's Python may keep the loop from answering, five times less than by default.
_SWITCH_SECONDS = 0.001
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_RESTART = 75  # EX_TEMPFAIL: start me again


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process by the signal and not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: EdgeSettings) -> int:
    """Runs until SIGTERM or SIGINT, then drains; the exit code."""
    listener = socket.create_server((settings.host, settings.port), backlog=256, reuse_port=False)
    service = EdgeService(settings)
    server = _Server(
        uvicorn.Config(
            create_app(service),
            http=connection_class(settings.read_timeout_seconds),
            limit_concurrency=_CONNECTIONS,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        service.stopping.set()  # whoever waits for delivery is answered now
        server.should_exit = True

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    await service.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    restarting = asyncio.create_task(service.restart.wait())
    restarting.add_done_callback(lambda task: None if task.cancelled() else stop())
    sources = [asyncio.create_task(source.run()) for source in _sources(service, settings)]
    systemd.notify("READY=1")
    host, port = listener.getsockname()[:2]
    print(json.dumps({"service": "edge", "http": f"http://{host}:{port}"}), flush=True)
    try:
        await serving
    finally:
        for source in sources:
            source.cancel()
        await asyncio.gather(*sources, return_exceptions=True)
        restarting.cancel()
        systemd.notify("STOPPING=1")
        await service.stop()
    return _RESTART if service.restart.is_set() else 0


def _sources(service: EdgeService, settings: EdgeSettings) -> Iterator[WatchedFolder | Camera]:
    if settings.watch_dir is not None:
        yield WatchedFolder(service, settings.watch_dir, settings.watch_seconds, settings.watch_keep)
    if settings.camera_url is not None:
        yield Camera(service, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a drain, 75 to be started again with another bundle, 2 for wrong settings, 5 for a bundle that
    cannot be used, 1 for other failures."""
    parser = argparse.ArgumentParser(prog="python -m edge_encoder", description="The AEIC edge service.")
    parser.add_argument("--host", help="address to listen on [env: AEIC_EDGE_HOST]")
    parser.add_argument("--port", type=int, help="port; 0 takes a free one [env: AEIC_EDGE_PORT]")
    parser.add_argument("--bundle", help="folder of the model bundle [env: AEIC_EDGE_BUNDLE]")
    parser.add_argument("--data-dir", help="folder of the spool [env: AEIC_EDGE_DATA_DIR]")
    parser.add_argument("--cloud-address", help="host:port of the cloud's gRPC [env: AEIC_EDGE_CLOUD_ADDRESS]")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        unknown = unknown_variables(os.environ)
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)}; docs/edge.md lists those that exist")
        settings = EdgeSettings(**given)
    except (ValidationError, ValueError, OSError) as error:
        print(f"edge: wrong settings: {_readable(error)}", file=sys.stderr)
        return 2
    logs.set_up(settings.log_level, settings.log_format)
    sys.setswitchinterval(_SWITCH_SECONDS)
    _give_large_blocks_back()
    try:
        return asyncio.run(serve(settings))
    except AeicError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"edge: {error}", file=sys.stderr)
        return 1


def _give_large_blocks_back() -> None:
    """Blocks as large as a picture go back to the system when they are freed. By default glibc learns to keep them, so
    that one large picture would leave the service large for good."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: it has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)


def _readable(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    # Never the input: it may be a secret.
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())


if __name__ == "__main__":
    sys.exit(main())
