"""The services that benchmarks/cloud/serve.py measures: ours, LitServe and Ray Serve, each a process of its own.

The client is as thin as possible, because it shares the cores with the service: a full HTTP library takes more time
than serving.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil

from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
LOOK_SECONDS = 0.2
"""Time between two queries for the number of finished frames. Each query takes the service some milliseconds."""


class Service:
    """A service under test: its address, and the form in which it takes a frame."""

    path = "/v1/decode"

    def __init__(self, address: str, pid: int, grpc_address: str = "") -> None:
        self.address, self.grpc, self._process = address, grpc_address, psutil.Process(pid)

    def body(self, frame: bytes) -> bytes:
        """The frame as a request body."""
        return frame

    async def run(self, frames: list[bytes], clients: int, when_sent: Callable[[], None] = lambda: None) -> float:
        """Seconds that ``clients`` callers need for all frames, each on its own connection.

        ``when_sent`` is called when the last frame has been sent. Until then every caller was busy.
        """
        host, port = self.address.removeprefix("http://").split(":")
        waiting = list(frames)
        started = time.perf_counter()

        async def client() -> None:
            reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
            while waiting:
                body = self.body(waiting.pop())
                kind = "application/json" if body.startswith(b"{") else "application/octet-stream"
                head = f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                if not waiting:
                    when_sent()
                answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                image = await reader.readexactly(int(answer.split("content-length: ")[1].split("\r\n")[0]))
                if " 200 " not in answer.split("\r\n")[0] or not image.startswith(b"\x89PNG"):
                    raise RuntimeError(f"{self.address} answered {answer[:80]!r} {image[:200]!r}")
            writer.close()

        await asyncio.gather(*(client() for _ in range(min(clients, len(frames)))))
        return time.perf_counter() - started

    async def store(self, frames: list[bytes], bundle_digest: bytes) -> float:
        """Seconds from sending the first of these frames over gRPC until the last picture is in the cache.

        Only our cloud has this. The store must hold none of the frames yet.
        """

        def done() -> int:
            with urllib.request.urlopen(f"{self.address}/v1/status", timeout=10) as answer:
                return int(json.load(answer)["frames"]["done"])

        async def acknowledged() -> None:
            while await call.read() is not grpc.aio.EOF:
                pass

        before = done()
        async with grpc.aio.insecure_channel(self.grpc) as channel:
            call = ingest_pb2_grpc.IngestServiceStub(channel).Deliver()
            hello = pb.Hello(source_id="bench", bundle_digest=bundle_digest, software="bench")
            await call.write(pb.DeliverRequest(hello=hello))
            started, reader = time.perf_counter(), asyncio.create_task(acknowledged())
            for data in frames:
                frame = pb.Frame(id=uuid.uuid4().bytes, bitstream=data, crc32=zlib.crc32(data))
                await call.write(pb.DeliverRequest(frame=frame))
            await call.done_writing()
            await reader
        while done() < before + len(frames):
            await asyncio.sleep(LOOK_SECONDS)
        return time.perf_counter() - started

    def cpu_seconds(self) -> float:
        """CPU seconds that all processes of the service have used so far."""
        total = 0.0
        for one in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = one.cpu_times()
                total += used.user + used.system
        return total

    def counted(self, name: str) -> float:
        """The value of one metric of ``/metrics``."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            found = re.search(rf"^aeic_cloud_{name} (\S+)$", answer.read().decode(), re.M)
        return float(found.group(1)) if found else 0.0


class LitServe(Service):
    """LitServe, which takes only JSON and forms."""

    path = "/predict"

    def body(self, frame: bytes) -> bytes:
        """The frame in base64."""
        return json.dumps({"frame": base64.b64encode(frame).decode()}).encode()


class RayServe(Service):
    """Ray Serve."""

    path = "/"


@contextlib.contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a service in its own process group, which is ended afterwards."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("AEIC_BENCH_VERBOSE") else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


@contextlib.contextmanager
def our_cloud(bundle: Path, device: str, max_batch: int) -> Iterator[Service]:
    """Run our cloud with the default settings and an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"BUNDLE": str(bundle), "DEVICE": device, "MAX_BATCH": str(max_batch), "DATA_DIR": folder}
        settings["MAX_WAIT_SECONDS"] = "600"
        environment = {f"AEIC_CLOUD_{name}": value for name, value in settings.items()}
        with process(["-m", "cloud_decoder", "--port", "0"], **environment) as running:
            assert running.stdout is not None
            addresses = json.loads(running.stdout.readline())
            yield Service(addresses["http"], running.pid, addresses["grpc"])


@contextlib.contextmanager
def peer_service(name: str, bundle: Path, max_batch: int) -> Iterator[Service]:
    """Run LitServe or Ray Serve with the same decoder."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = ["-m", f"benchmarks.peers.{name}", str(port), str(max_batch)]
    with process(command, AEIC_BUNDLE=str(bundle)) as running:
        service = {"litserve": LitServe, "ray": RayServe}[name](f"http://127.0.0.1:{port}", running.pid)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                path = "/health" if name == "litserve" else "/-/healthz"
                with urllib.request.urlopen(service.address + path, timeout=5):
                    break
            except OSError:
                if running.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{name} did not start: AEIC_BENCH_VERBOSE=1 shows why") from None
                time.sleep(0.5)
        yield service
