"""Starts both services as child processes on free loopback ports, waits for them, stops them. Standard library only."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

START_SECONDS, STOP_SECONDS = 60.0, 30.0
# These services are on this machine: the proxy of the environment is not for them.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServiceFailed(Exception):
    """A service that did not start, or ended by itself. The message holds the end of its log."""


class Service:
    """One child process, ``python -m module``. When it is ready, it prints its addresses as one JSON line on stdout."""

    def __init__(
        self, module: str, log: Path, settings: dict[str, str], arguments: list[str] | None = None, port: int = 0
    ) -> None:
        """Start it. ``settings`` go into its environment; its stderr goes to ``log``; ``port`` 0 takes a free one."""
        self.module, self.log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *(arguments or [])]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,  # Ctrl-C reaches us alone; we then stop the two in order
            )
        self._lines: queue.Queue[bytes] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=_drain, args=(self.process.stdout, self._lines), daemon=True).start()
        self.addresses: dict[str, Any] = {}

    def wait_ready(self) -> Service:
        """Wait for the JSON line and then for /readyz. ``ServiceFailed`` after a minute or if the process ends."""
        deadline = time.monotonic() + START_SECONDS
        while not self.addresses:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                self._check(deadline)
                continue
            if line.startswith(b"{"):
                self.addresses = json.loads(line)
        while True:
            try:
                with _DIRECT.open(f"{self.http}/readyz", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                self._check(deadline)
                time.sleep(0.05)

    def _check(self, deadline: float) -> None:
        code = self.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = f"ended with code {code}" if code is not None else f"was not ready within {START_SECONDS:.0f} s"
            tail = self.log.read_text(errors="replace")[-3000:]
            raise ServiceFailed(f"{self.module} {what}; its log, {self.log}, ends:\n{tail}")

    @property
    def http(self) -> str:
        """Where it answers HTTP: ``http://127.0.0.1:PORT``."""
        return str(self.addresses["http"])

    def stop(self) -> int:
        """SIGTERM, which drains; after half a minute SIGKILL. The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Service:
        """Ready on entry."""
        try:
            return self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stopped on leaving."""
        self.stop()


def _drain(stream: BinaryIO, lines: queue.Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)


@dataclass(frozen=True)
class Pair:
    """An edge and the cloud it sends to."""

    edge: Service
    cloud: Service


def cloud(data: Path, logs: Path, bundle: Path | None = None, grpc_port: int = 0, **settings: str) -> Service:
    """A cloud that keeps its store in ``data``; not yet waited for. ``settings``: more of its environment."""
    settings = {"AEIC_CLOUD_DATA_DIR": str(data / "cloud")} | _bundle("CLOUD", bundle) | settings
    return Service("cloud_decoder", logs / "cloud.log", settings, ["--grpc-port", str(grpc_port)])


def edge(
    data: Path, logs: Path, cloud_address: str, bundle: Path | None = None, port: int = 0, **settings: str
) -> Service:
    """An edge that spools into ``data`` and sends to ``cloud_address``; not yet waited for."""
    known = {
        "AEIC_EDGE_DATA_DIR": str(data / "edge"),
        "AEIC_EDGE_CLOUD_ADDRESS": cloud_address,
        "AEIC_EDGE_BACKOFF_MAX_SECONDS": "2",  # a minute's wait for the next attempt would be pointless on loopback
    }
    return Service("edge_encoder", logs / "edge.log", known | _bundle("EDGE", bundle) | settings, port=port)


def _bundle(side: str, bundle: Path | None) -> dict[str, str]:
    return {} if bundle is None else {f"AEIC_{side}_BUNDLE": str(bundle)}


@contextmanager
def pair(data: Path, logs: Path, bundle: Path | None = None) -> Iterator[Pair]:
    """Both services, ready; the edge is stopped first, so that it can drain into the cloud.

    The cloud's page knows the edge, so the edge's port is chosen before either is there. The edge keeps originals, so
    that it can be asked for more of a picture.
    """
    ring = {"AEIC_EDGE_ORIGINALS_MAX_BYTES": os.environ.get("AEIC_EDGE_ORIGINALS_MAX_BYTES", "100000000")}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = int(listening.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    with (
        cloud(data, logs, bundle, AEIC_CLOUD_EDGE_URL=address) as receiver,
        edge(data, logs, receiver.addresses["grpc"], bundle, port, **ring) as sender,
    ):
        yield Pair(sender, receiver)
