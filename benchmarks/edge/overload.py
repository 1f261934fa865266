"""Measures the edge under ten times its load: how fast it refuses, and how long accepted pictures wait.

    python benchmarks/edge/overload.py [--times 10] [--seconds 10] [--width 768 --height 512] [--bundle DIR]

The capacity is measured first, with `places` clients. Then requests come at `times` that rate, whether or not earlier
ones were answered, each on its own connection that is already open: first with wait=spooled, where the 202 follows the
encode, then with wait=received, where it precedes the encode. Times run from the first byte sent to the answer.
`drained_seconds` is the time from the last request until the last original was encoded, which is the longest wait of an
accepted picture. The load generator shares the cores with the service. The program prints a table and, as the last
line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.edge.whole_path import synthetic  # noqa: E402


class Client:
    """Connections that are opened beforehand and reused, with as little work per request as possible."""

    def __init__(self, url: str, body: bytes) -> None:
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.body = body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self, count: int) -> None:
        self._idle += [await asyncio.open_connection(self.host, self.port) for _ in range(count)]

    async def post(self, wait: str) -> tuple[int, float]:
        """Send one picture; the status of the answer and the seconds it took."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self.host, self.port)
        head = f"POST /v1/frames?wait={wait} HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(self.body)}\r\n\r\n"
        begin = time.perf_counter()
        writer.write(head.encode() + self.body)
        answer = await reader.readuntil(b"\r\n\r\n")
        seconds = time.perf_counter() - begin
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        self._idle.append((reader, writer))
        return int(answer[9:12]), seconds


async def load(url: str, body: bytes, times: float, seconds: float, places: int) -> dict[str, Any]:
    """Measure the capacity, then the overload in both modes: the number of answers by status and their times."""
    client = Client(url, body)
    await client.open(100)
    await asyncio.gather(*(client.post("spooled") for _ in range(places)))
    begin, done = time.perf_counter(), 0

    async def steady() -> None:
        nonlocal done
        while time.perf_counter() - begin < min(4.0, seconds):
            status, _ = await client.post("spooled")
            done += status == 202

    await asyncio.gather(*(steady() for _ in range(places)))
    capacity = done / (time.perf_counter() - begin)
    return {
        "capacity_per_second": round(capacity, 1),
        "spooled": await _overload(client, "spooled", times * capacity, seconds),
        "received": await _overload(client, "received", times * capacity, seconds),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
    }


async def _overload(client: Client, wait: str, rate: float, seconds: float) -> dict[str, Any]:
    posts: list[asyncio.Task[tuple[int, float]]] = []
    before = await _status(client)
    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        while len(posts) < now * rate:
            posts.append(asyncio.create_task(client.post(wait)))
        await asyncio.sleep(0.002)
    answers = await asyncio.gather(*posts)
    waiting = [status := await _status(client)]
    while status["received"]["frames"]:  # accepted: each must become a frame
        await asyncio.sleep(0.1)
        waiting.append(status := await _status(client))
    frames = status["spool"]["frames"] - before["spool"]["frames"]
    drained = time.perf_counter() - begin
    taken = sorted(1000 * s for status, s in answers if status == 202)
    refused = sorted(1000 * s for status, s in answers if status == 429)
    return {
        "offered_per_second": round(len(answers) / seconds, 1),
        "statuses": {str(status): count for status, count in sorted(Counter(s for s, _ in answers).items())},
        "encoded_per_second": round(frames / drained, 1),
        "lost": len(taken) - frames,
        "waiting_frames_max": max(status["received"]["frames"] for status in waiting),
        "drained_seconds": round(drained - seconds, 2),
        "within_50_ms": round(sum(s <= 0.05 for _, s in answers) / len(answers), 4),
        **{f"taken_ms_{name}": value for name, value in _spread(taken).items()},
        **{f"refused_ms_{name}": value for name, value in _spread(refused).items()},
    }


def _spread(milliseconds: list[float]) -> dict[str, float | None]:
    """Median, 99th percentile and maximum of sorted times."""
    if not milliseconds:
        return {"p50": None, "p99": None, "max": None}
    last = len(milliseconds) - 1
    return {name: round(milliseconds[int(part * last)], 1) for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1))}


async def _status(client: Client) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_EDGE_")}
    if options.bundle:
        clean["AEIC_BUNDLE"] = str(options.bundle)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_encoder", "--port", "0", "--data-dir", str(folder), "--cloud-address", "",
        cwd=ROOT, env=clean, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise SystemExit("the edge did not start: run `aeic edge` to see why")
        url = json.loads(line)["http"]
        body = synthetic(options.width, options.height)
        return await load(url, body, options.times, options.seconds, options.places)
    finally:
        process.terminate()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="model bundle; by default the one that ships")
    parser.add_argument("--times", type=float, default=10, help="offered load, in capacities")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--places", type=int, default=4, help="clients while the capacity is measured")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = asyncio.run(measure(parser.parse_args(), folder))
    for name, value in result.items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{name + ' ' + key:28} {part}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
