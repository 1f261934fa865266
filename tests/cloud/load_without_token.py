"""Clients without a token load both services: ``make test-unauthenticated``, that is
``python -m tests.cloud.load_without_token``.

A cloud and an edge run as processes of their own, with the limits of their units. Each attack runs alone, then all at
once. Meanwhile an honest edge delivers frames, an honest client asks for pictures, and an honest camera posts to the
edge. Prints, for each attack, the longest time that each of them had to wait and the memory of both services; then how
long SIGTERM takes during all attacks. The last line is one JSON object; exits 1 if a limit was exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import least_payload_bytes
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from tests.support.clients import http2
from tests.support.cloud.cloud import IngestClient, cloud_process
from tests.support.edge.process import EdgeProcess
from tests.support.frames import frame_maker
from tests.support.pictures import picture
from tests.support.roots import ROOT

LIMITS = {"frame": 5.0, "picture": 10.0, "camera": 10.0}
"""Seconds for an honest edge's frame, an honest client's picture and an honest camera's post."""
MEMORY_MIB = {"cloud": 4096, "edge": 1024}
"""MemoryMax of the units."""
LOG_BYTES = 1 << 20
STOP_SECONDS = {"cloud": 60.0, "edge": 30.0}
"""TimeoutStopSec of the units."""
EDGE_PIXELS = (int(0.95 * (1 << 30)) - (500 << 20)) // 12
"""The largest picture that the edge takes under its MemoryMax."""
PAUSE_SECONDS = 0.2
ACME, OTHER = ({"Authorization": f"Bearer token-of-{name}"} for name in ("acme", "other"))
SETTINGS = {
    "cloud": {
        "AEIC_CLOUD_TOKENS": "acme:token-of-acme,other:token-of-other",
        "AEIC_CLOUD_MAX_PIXELS_AT_ONCE": str((4 << 30) // 2 // 24),  # as under MemoryMax=4G
        "AEIC_CLOUD_DEVICE": "onnx",
        "MALLOC_ARENA_MAX": "2",
    },
    "edge": {
        "AEIC_EDGE_CLOUD_ADDRESS": "",
        "AEIC_EDGE_MAX_PIXELS_AT_ONCE": str((1 << 30) // 2 // 12),  # as under MemoryMax=1G
        "AEIC_EDGE_MAX_PIXELS": str(EDGE_PIXELS),
        "AEIC_EDGE_SPOOL_FULL_POLICY": "drop-oldest",
        "MALLOC_ARENA_MAX": "2",
    },
}

Attack = Callable[["Target"], Awaitable[None]]


class Target:
    """The addresses of both services, and what the attacks send them."""

    def __init__(self, bundle: Bundle, addresses: dict[str, str], side: int) -> None:
        self.http, self.grpc, self.edge = addresses["http"], addresses["grpc"], addresses["edge"]
        chance = np.random.default_rng(1)
        frames = []
        for number in range(24):
            frame = Frame(side, side, number % len(bundle.rates), bundle.fingerprint, b"")
            size = 11 if number % 4 == 0 else least_payload_bytes(bundle, frame) + number
            payload = chance.bytes(size)[:-1] + b"\1"
            frames.append(Frame(side, side, frame.rate, bundle.fingerprint, payload).to_bytes())
        self.huge_frames = frames
        file = io.BytesIO()
        side = min(side, math.isqrt(EDGE_PIXELS))
        Image.new("L", (side, side)).save(file, "PNG", compress_level=1)
        self.huge_picture = file.getvalue()


async def calls(target: Target) -> None:
    """Health watches and ingest streams without a token, a hundred on each connection."""

    async with contextlib.AsyncExitStack() as stack:
        held: list[Any] = []
        for number in range(12):
            channel = grpc.aio.insecure_channel(target.grpc, [("grpc.use_local_subchannel_pool", 1)])
            await stack.enter_async_context(channel)
            for _ in range(100):
                if number % 2:
                    stub: Any = pb_grpc.IngestServiceStub(channel)  # whose types are those without asyncio
                    held.append(stub.Deliver())
                else:
                    held.append(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        await asyncio.Event().wait()


async def headers(target: Target) -> None:
    """HTTP/2 headers without end, on four connections."""

    def flood(block: bytes, stop: list[bool]) -> None:
        with contextlib.suppress(OSError), http2.connect(target.grpc) as line:
            line.sendall(http2.frame(http2.HEADERS, 0, 1, http2.call(b"/aeic.v1.IngestService/Deliver")))
            while not stop:
                line.sendall(http2.frame(http2.CONTINUATION, 0, 1, block))
                time.sleep(0.01)

    stop: list[bool] = []
    blocks = (b"\x90" * http2.MAX_FRAME, http2.field(b"x", b"v" * 16000))
    try:
        await asyncio.gather(*(asyncio.to_thread(flood, block, stop) for block in blocks * 2))
    finally:
        stop.append(True)


def half_requests(address: Callable[[Target], str], request: bytes) -> Attack:
    """Six hundred connections with a request that does not go on."""

    async def attack(target: Target) -> None:
        host, port = address(target).removeprefix("http://").split(":")
        lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            while True:
                for _ in range(600 - len(lines)):
                    with contextlib.suppress(OSError):
                        reader, writer = await asyncio.open_connection(host, int(port))
                        writer.write(request)
                        lines.append((reader, writer))
                await asyncio.sleep(0.5)
                lines = [line for line in lines if not line[0].at_eof() and not line[1].is_closing()]
        finally:
            for _, writer in lines:
                writer.close()

    return attack


async def _posts(url: str, bodies: Iterator[bytes], at_once: int, sent: dict[str, str]) -> None:
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as http:

        async def post() -> None:
            for body in bodies:
                with contextlib.suppress(httpx.HTTPError):
                    await http.post(url, content=body, headers=sent)
                await asyncio.sleep(PAUSE_SECONDS)

        await asyncio.gather(*(post() for _ in range(at_once)))


async def frames(target: Target) -> None:
    """Small frames that claim to be huge pictures."""
    await _posts(f"{target.http}/v1/decode", itertools.cycle(target.huge_frames), 24, OTHER)


async def pictures(target: Target) -> None:
    """Small files of the largest pictures that the edge takes."""
    await _posts(f"{target.edge}/v1/frames", itertools.repeat(target.huge_picture), 4, {})


async def events(target: Target) -> None:
    """Streams of events of one tenant."""

    async def listen(http: httpx.AsyncClient) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                async with http.stream("GET", f"{target.http}/v1/events", headers=OTHER) as answer:
                    async for _ in answer.aiter_bytes():
                        pass
            await asyncio.sleep(0.5)

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(*(listen(http) for _ in range(420)))


_POST = b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-other\r\nContent-Length: 1000000\r\n\r\nabc"
ATTACKS: dict[str, Attack] = {
    "calls": calls,
    "headers": headers,
    "half requests, cloud": half_requests(lambda target: target.http, b"GET / HTTP/1.1\r\nHost: x\r\nX-"),
    "half requests, edge": half_requests(lambda target: target.edge, b"GET / HTTP/1.1\r\nHost: x\r\nX-"),
    "idle uploads, cloud": half_requests(lambda target: target.http, _POST % b"/v1/decode"),
    "idle uploads, edge": half_requests(lambda target: target.edge, _POST % b"/v1/frames?wait=received"),
    "frames": frames,
    "pictures": pictures,
    "events": events,
}


class Honest:
    """An edge, a client and a camera that want their service, and how long each waited at the longest."""

    def __init__(self, target: Target, bundle: Bundle) -> None:
        self._target, self._bundle = target, bundle
        self._make = frame_maker(bundle)
        self._numbers = itertools.count()
        self.longest: dict[str, float] = {}

    async def run(self, seconds: float) -> None:
        """All three, one request after another, for so long; each at least once."""
        self.longest = {}
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._repeat(kind, end) for kind in (self.frame, self.picture, self.camera)))

    async def _repeat(self, work: Callable[[], Awaitable[None]], end: float) -> None:
        name = work.__name__
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(120):
                    await work()
                took = time.monotonic() - began
            except Exception as error:
                print(f"WRONG {name}: {error!r}")
                took = float("inf")
            self.longest[name] = max(self.longest.get(name, 0.0), took)
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0.2)

    async def frame(self) -> None:
        """A new stream delivers a frame."""
        async with IngestClient(self._target.grpc) as edge:
            await edge.hello(self._bundle, token="token-of-acme")
            await edge.send(self._make(next(self._numbers), 256, 192), uuid4())
            assert (await edge.ack()).status == pb.ACK_STATUS_STORED

    async def picture(self) -> None:
        """A new connection asks for a picture."""
        await self._post(f"{self._target.http}/v1/decode", self._make(next(self._numbers), 256, 192), ACME, 200)

    async def camera(self) -> None:
        """A new connection posts a photograph to the edge."""
        await self._post(f"{self._target.edge}/v1/frames", picture(256, 192), {}, 202)

    async def _post(self, url: str, body: bytes, sent: dict[str, str], expected: int) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            while (answer := await http.post(url, content=body, headers=sent)).status_code == 429:
                await asyncio.sleep(0.1)
            assert answer.status_code == expected, answer.text


class Log:
    """Reads what a service logs, for a pipe that is full would hold it up. ``bytes``: how much there was."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.bytes = 0
        assert process.stderr is not None
        self._lines = process.stderr
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self._lines:
            self.bytes += len(line)


class Memory:
    """The most memory that a service and its children have had, in MiB; read ten times a second."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self.most = dict.fromkeys(processes, 0)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            for name, process in self._processes.items():
                with contextlib.suppress(psutil.Error):
                    family = [process, *process.children(recursive=True)]
                    # Shared pages count once: what a child has of its own.
                    held = family[0].memory_info().rss + sum(
                        one.memory_info().rss - one.memory_info().shared for one in family[1:]
                    )
                    self.most[name] = max(self.most[name], held >> 20)
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def attackers(names: list[str], bundle: Bundle, target: Target, side: int) -> Iterator[None]:
    """The attacks in a process of their own, so that the honest clients do not wait for them in this one."""
    addresses = {"http": target.http, "grpc": target.grpc, "edge": target.edge}
    job = json.dumps({"names": names, "bundle": str(bundle.path), "side": side, "addresses": addresses})
    command = [sys.executable, "-m", "tests.cloud.load_without_token", "--job", job]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


async def _attack(job: dict[str, Any]) -> None:
    target = Target(Bundle.load(job["bundle"]), job["addresses"], job["side"])
    print("ready", flush=True)
    await asyncio.gather(*(ATTACKS[name](target) for name in job["names"]))


async def _measured(honest: Honest, memory: Memory, seconds: float) -> dict[str, float]:
    memory.most = dict.fromkeys(memory.most, 0)
    watching = asyncio.create_task(memory.watch())
    await asyncio.sleep(min(5.0, 5 * seconds))  # the attacks begin
    await honest.run(seconds)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return {**honest.longest, **memory.most}


def run(
    bundle: Bundle, folder: Path, seconds: float, names: list[str], *, side: int = 8192, timed: bool = True
) -> dict[str, Any]:
    """Each of the attacks alone, then all of them; ``wrong`` lists the limits that were exceeded (those of time only if
    ``timed``). The huge pictures have ``side`` pixels a side."""
    wrong: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    edge = EdgeProcess(
        AEIC_BUNDLE=str(bundle.path), AEIC_EDGE_DATA_DIR=str(folder / "spool"), AEIC_EDGE_LOG_LEVEL="error",
        **SETTINGS["edge"],
    )  # fmt: skip
    stopping: dict[str, float] = {}
    with cloud_process(bundle, folder / "cloud", AEIC_CLOUD_LOG_LEVEL="error", **SETTINGS["cloud"]) as (running, told):
        target = Target(bundle, {**told, "edge": edge.url}, side)
        honest = Honest(target, bundle)
        memory = Memory({"cloud": running.pid, "edge": edge.process.pid})
        logs = {"cloud": Log(running), "edge": Log(edge.process)}
        for one in (*([name] for name in names), names):
            name = one[0] if len(one) == 1 else "all"
            with attackers(one, bundle, target, side):
                rows[name] = row = asyncio.run(_measured(honest, memory, seconds))
            times = f"{row['frame']:9.2f}{row['picture']:11.2f}{row['camera']:10.2f}"
            print(f"{name:22}{times}{row['cloud']:11.0f}{row['edge']:10.0f}", flush=True)
        with attackers(names, bundle, target, side):
            time.sleep(min(5.0, 5 * seconds))
            processes = {"cloud": running, "edge": edge.process}
            began = time.monotonic()
            for process in processes.values():
                process.send_signal(signal.SIGTERM)
            while len(stopping) < 2 and time.monotonic() - began < 120:
                for kind, process in processes.items():
                    if process.poll() is not None and kind not in stopping:
                        stopping[kind] = time.monotonic() - began
                time.sleep(0.05)
        for process in processes.values():
            process.kill()
        for log in logs.values():
            log.thread.join(10)
    for kind, log in logs.items():
        if log.bytes > LOG_BYTES:
            wrong.append(f"log: {kind} {log.bytes} bytes, the limit is {LOG_BYTES}")
    edge.process.communicate()
    for name, row in rows.items():
        for kind, limit in {**LIMITS, **MEMORY_MIB}.items():
            if row[kind] > limit and (timed or kind in MEMORY_MIB or row[kind] == float("inf")):
                wrong.append(f"{name}: {kind} {row[kind]:.1f}, the limit is {limit:g}")
    for kind, limit in STOP_SECONDS.items():
        if stopping.get(kind, float("inf")) > limit:
            wrong.append(f"SIGTERM: {kind} {stopping.get(kind, float('inf')):.1f} s, the limit is {limit:g}")
    log_bytes = {kind: log.bytes for kind, log in logs.items()}
    return {"test": "unauthenticated", "rows": rows, "stopping": stopping, "log_bytes": log_bytes, "wrong": wrong}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Load on both services by clients without a token.")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    arguments = parser.parse_args()
    if arguments.job:
        asyncio.run(_attack(json.loads(arguments.job)))
        return 0
    print(f"{'attack':22}{'frame s':>9}{'picture s':>11}{'camera s':>10}{'cloud MiB':>11}{'edge MiB':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Bundle.load(), Path(folder), arguments.seconds, arguments.attacks)
    for name, seconds in result["stopping"].items():
        print(f"SIGTERM during all of it: the {name} ends after {seconds:.1f} s")
    for wrong in result["wrong"]:
        print("WRONG", wrong)
    print(json.dumps(result | {"wrong": len(result["wrong"])}))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
