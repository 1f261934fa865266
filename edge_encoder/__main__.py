"""`python -m edge_encoder`: the edge service. Settings: AEIC_EDGE_* (docs/reference/edge.md); the flags override them.

When it is ready, one JSON line on stdout names the address. SIGTERM and SIGINT drain and end with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

from aeic.errors import AeicError
from aeic_service import host_limits, logs, malloc
from aeic_service.http.server import HttpServer, ServerSettings
from aeic_service.settings import readable
from edge_encoder import systemd
from edge_encoder.http_api.routes import create_app
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from edge_encoder.sources.camera import Camera
from edge_encoder.sources.mqtt_topic import MqttTopic
from edge_encoder.sources.watched_folder import WatchedFolder

_GRACE_SECONDS = 10
# How long the entropy coder's Python code may hold the GIL while the loop waits; the default is 5 ms.
_SWITCH_SECONDS = 0.001
_RESTART = 75  # EX_TEMPFAIL: restart the service


def http_server(service: EdgeService) -> HttpServer:
    """The server of a service's API, not yet listening."""
    settings = service.settings
    server = HttpServer(
        create_app(service),
        ServerSettings(
            settings.host,
            settings.port,
            settings.prefix,
            header_seconds=settings.read_timeout_seconds,
            grace_seconds=_GRACE_SECONDS,
            max_connections=settings.max_connections,
        ),
    )
    service.budgets["connections"] = server.connections
    return server


async def serve(settings: EdgeSettings) -> int:
    """Runs until SIGTERM or SIGINT, then drains; the exit code."""
    service = EdgeService(settings)
    server = http_server(service)
    server.bind()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, service.stopping.set)
    await service.start()
    try:
        every = sources_of(service)
    except AeicError:
        await service.stop()
        raise
    url = await server.start()
    stopping = asyncio.create_task(service.stopping.wait())
    restarting = asyncio.create_task(service.restart.wait())
    ended = asyncio.create_task(server.ended())
    sources = [
        service.supervisor.start(source.name, functools.partial(_run, source), may_end=source.may_end)
        for source in every
    ]
    systemd.notify("READY=1")
    print(json.dumps({"service": "edge", "http": url}), flush=True)
    try:
        await asyncio.wait((stopping, restarting, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        service.stopping.set()  # ends the waits for delivery
        systemd.notify("STOPPING=1")
        try:
            await server.stop()
        finally:
            for task in (stopping, restarting, ended, *sources):
                task.cancel()
            await asyncio.gather(*sources, return_exceptions=True)
            await service.stop()
    code = _RESTART if service.restart.is_set() else 0
    if service.abandoned:  # its thread cannot be ended, and the interpreter would wait for it
        logging.shutdown()
        os._exit(code)
    return code


Source = WatchedFolder | Camera | MqttTopic


def sources_of(service: EdgeService) -> list[Source]:
    """The cameras, folders and topics of the settings, not yet running; the service shows the state of each.
    RateError for a rate point that the bundle does not have."""
    settings = service.settings
    for given in (*settings.all_cameras(), *settings.all_folders(), *settings.mqtt):
        service.encoder.bundle.rate(given.rate)  # an unknown one ends the start
    cameras = [Camera(service, camera) for camera in settings.all_cameras()]
    service.cameras.update({camera.source_id: camera.picture_now for camera in cameras if camera.live})
    sources: list[Source] = [*cameras]
    sources += [WatchedFolder(service, folder) for folder in settings.all_folders()]
    sources += [MqttTopic(service, topic) for topic in settings.mqtt]
    service.sources = [source.status for source in sources]
    return sources


async def _run(source: Source) -> None:
    try:
        await source.run()
    except Exception as error:  # the supervisor logs it and starts the source again
        source.status.set("down", f"unexpected error: {str(error) or type(error).__name__}")
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a drain, 75 to be restarted with another bundle, 2 for invalid settings, 5 for a bundle that
    cannot be used, 1 for other failures."""
    parser = argparse.ArgumentParser(prog="aeic edge", description="The AEIC edge service.")
    parser.add_argument("--host", help="address to listen on [env: AEIC_EDGE_HOST]")
    parser.add_argument("--port", type=int, help="port; 0 takes a free one [env: AEIC_EDGE_PORT]")
    parser.add_argument("--bundle", help="folder of the model bundle [env: AEIC_EDGE_BUNDLE]")
    parser.add_argument("--data-dir", help="folder of the spool [env: AEIC_EDGE_DATA_DIR]")
    parser.add_argument("--cloud-address", help="host:port of the cloud's gRPC [env: AEIC_EDGE_CLOUD_ADDRESS]")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        EdgeSettings.refuse_unknown(os.environ, "docs/reference/edge.md")
        settings = EdgeSettings(**given)
    except (ValueError, OSError, RecursionError) as error:
        print(f"edge: invalid settings: {readable(error, EdgeSettings.prefix)}", file=sys.stderr)
        return 2
    os.umask(0o077)  # pictures are for the owner of the service
    logs.set_up(settings.log_level, settings.log_format)
    sys.setswitchinterval(_SWITCH_SECONDS)
    malloc.give_large_blocks_back()
    host_limits.raise_open_files()
    try:
        return asyncio.run(serve(settings))
    except AeicError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:  # settings that name what is not there
        print(f"edge: invalid settings: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"edge: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
