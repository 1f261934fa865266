"""What serving costs: the cloud over loopback HTTP beside the bare decoder on the same frames, and beside its peers.

    aeic bench serve [--pictures 64] [--clients 64] [--rounds 3] [--max-batch 0] [--scale 1] [--rivals litserve,ray]

Saturation: `clients` callers keep POST /v1/decode busy with mixed sizes; the bare decoder gets the same frames as one
list. Both make pixels and PNG files. Low load: one caller at a time, bare and served taking turns. LitServe and Ray
Serve wrap the same decoder (extra `bench`). Every service is a process of its own, alive only while it is measured;
bare and served rounds alternate, and ratios within a round count, since a shared machine is never quiet. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder import pictures
from cloud_decoder.decoder import Decoder

SIZES = ((768, 512), (512, 768), (640, 480), (512, 512))
ROOT = Path(__file__).parent.parent
START_SECONDS = 120


def make_frames(bundle: Bundle, count: int, scale: float = 1.0) -> list[bytes]:
    """Frames of mixed sizes with different contents; smooth noise through the bundle's own analysis."""
    codec, chance = LatentCodec(bundle), np.random.default_rng(0)
    analysis = bundle.session("analysis")
    frames = []
    for number in range(count):
        width, height = (round(scale * side) for side in SIZES[number % len(SIZES)])
        frame = Frame(width, height, bundle.default_rate, bundle.fingerprint, b"")
        tall, wide = frame.padded_size
        coarse = chance.uniform(-0.8, 0.8, (1, 3, tall // 64, wide // 64)).astype(np.float32)
        (y,) = analysis.run(None, {"image": coarse.repeat(64, 2).repeat(64, 3)})
        frames.append(codec.encode(y[0], bundle.default_rate, width, height))
    return frames


def run_bare(decoder: Decoder, frames: list[bytes]) -> float:
    """Seconds for all frames through the decoder and into PNG files, as well as it can: PNGs beside the next batch."""
    started = time.perf_counter()
    size = 4 * decoder.max_batch
    with ThreadPoolExecutor(2) as threads:
        order = sorted(frames, key=lambda data: Frame.parse(data).latent_size)
        written = []
        for start in range(0, len(order), size):
            for picture in decoder.decode(order[start : start + size]):
                written.append(threads.submit(pictures.encode, picture, pictures.MASTER))
        for one in written:
            one.result()
    return time.perf_counter() - started


class Service:
    """A service under test: its address, and how it wants a frame."""

    path = "/v1/decode"

    def __init__(self, address: str) -> None:
        self.address = address

    def body(self, frame: bytes) -> bytes:
        """The frame as a request body."""
        return frame

    async def run(self, frames: list[bytes], clients: int, when_sent: Callable[[], None] = lambda: None) -> float:
        """Seconds for all frames with ``clients`` callers, each on a connection of its own.

        The client is this thin because it shares the cores with the service: a full HTTP library costs more than
        serving. ``when_sent`` is called when the last frame has gone out: until then every caller was busy.
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

    def counted(self, name: str) -> float:
        """A value of /metrics."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            found = re.search(rf"^aeic_cloud_{name} (\S+)$", answer.read().decode(), re.M)
        return float(found.group(1)) if found else 0.0


class LitServe(Service):
    """It takes JSON and forms only."""

    path = "/predict"

    def body(self, frame: bytes) -> bytes:
        """In base64."""
        return json.dumps({"frame": base64.b64encode(frame).decode()}).encode()


class RayServe(Service):
    """Ray Serve."""

    path = "/"


@contextlib.contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A service in its own process group, which is gone afterwards."""
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
    """The service as deployed, with an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"BUNDLE": str(bundle), "DEVICE": device, "MAX_BATCH": str(max_batch), "DATA_DIR": folder}
        settings["MAX_WAIT_SECONDS"] = "600"
        environment = {f"AEIC_CLOUD_{name}": value for name, value in settings.items()}
        with process(["-m", "cloud_decoder", "--port", "0"], **environment) as running:
            assert running.stdout is not None
            yield Service(json.loads(running.stdout.readline())["http"])


@contextlib.contextmanager
def rival(name: str, bundle: Path, max_batch: int) -> Iterator[Service]:
    """LitServe or Ray Serve with the same decoder."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    service = {"litserve": LitServe, "ray": RayServe}[name](f"http://127.0.0.1:{port}")
    command = ["-m", f"benchmarks.rival_{name}", str(port), str(max_batch)]
    with process(command, AEIC_BUNDLE=str(bundle)) as running:
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


def low_load(service: Service, decoder: Decoder, frames: list[bytes]) -> list[tuple[float, float]]:
    """(bare, served) seconds of each frame alone, taking turns."""
    times = []
    for data in frames:
        started = time.perf_counter()
        (picture,) = decoder.decode([data])
        pictures.encode(picture, pictures.MASTER)
        middle = time.perf_counter()
        asyncio.run(service.run([data], 1))
        times.append((middle - started, time.perf_counter() - middle))
    return times


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Everything, as the last line tells it."""
    decoder = Decoder.from_bundle(arguments.bundle, arguments.device, max_batch=arguments.max_batch)
    path, cap = decoder.bundle.path.resolve(), decoder.max_batch
    frames = make_frames(decoder.bundle, arguments.pictures, arguments.scale)
    lone = frames[: arguments.lone]
    pixels = sum(Frame.parse(data).width * Frame.parse(data).height for data in frames)
    run_bare(decoder, frames[: len(SIZES)])
    rounds: list[tuple[float, float]] = []
    counts = {"pieces": 0.0, "batches": 0.0}

    def saturate(service: Service, name: str) -> tuple[float, float]:
        bare = run_bare(decoder, frames)
        served = asyncio.run(service.run(frames, arguments.clients))
        print(
            f"{name:9}  bare {len(frames) / bare:6.2f}/s   served {len(frames) / served:6.2f}/s   {bare / served:.3f}"
        )
        return bare, served

    with our_cloud(path, arguments.device, cap) as service:
        asyncio.run(service.run(frames[: len(SIZES)], 1))
        alone = low_load(service, decoder, lone)
        for _ in range(arguments.rounds):
            before = service.counted("batch_pieces_sum"), service.counted("batch_pieces_count")
            rounds.append(saturate(service, "aeic"))
            counts["pieces"] += service.counted("batch_pieces_sum") - before[0]
            counts["batches"] += service.counted("batch_pieces_count") - before[1]
    result: dict[str, object] = {
        "benchmark": "serve",
        "bundle": decoder.bundle.name,
        "device": decoder.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 2),
        "pictures": len(frames),
        "scale": arguments.scale,
        "clients": arguments.clients,
        "bare_pictures_per_second": round(len(frames) / statistics.median(bare for bare, _ in rounds), 3),
        "served_pictures_per_second": round(len(frames) / statistics.median(served for _, served in rounds), 3),
        "served_megapixels_per_second": round(pixels / 1e6 / statistics.median(served for _, served in rounds), 3),
        "served_over_bare": round(statistics.median(bare / served for bare, served in rounds), 3),
        "served_over_bare_rounds": [round(bare / served, 3) for bare, served in rounds],
        "mean_batch": round(counts["pieces"] / counts["batches"], 3),
        "batch_cap": cap,
        "lone_overhead_ms": round(1000 * statistics.median(served - bare for bare, served in alone), 2),
        "lone_bare_ms": round(1000 * statistics.median(bare for bare, _ in alone), 2),
    }
    for name in filter(None, arguments.rivals.split(",")):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: pip install 'aeic[bench]'")
            continue
        with rival(name, path, cap) as service:
            asyncio.run(service.run(frames[: len(SIZES)], 1))
            alone = low_load(service, decoder, lone)
            rounds = [saturate(service, name) for _ in range(max(1, arguments.rounds // 2))]
        result[f"{name}_over_bare"] = round(statistics.median(bare / served for bare, served in rounds), 3)
        result[f"{name}_lone_overhead_ms"] = round(1000 * statistics.median(s - b for b, s in alone), 2)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Served throughput beside the bare decoder's, LitServe's and Ray's.")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-batch", type=int, default=0, help="0: what suits the device")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--scale", type=float, default=1.0, help="of the pictures' sides")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="the peers get half")
    parser.add_argument("--lone", type=int, default=12)
    parser.add_argument("--rivals", default="litserve,ray", help="which peers to run; empty for none")
    parser.add_argument("--json", type=Path, help="write the result there too")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
