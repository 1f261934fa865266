"""The edge under ten times the load it can take: how fast it says no, and how long those wait whom it took.

    python benchmarks/edge_overload.py [--times 10] [--seconds 10] [--width 768 --height 512] [--bundle DIR]

First its capacity is measured with `places` clients. Then requests come at `times` that rate, whether or not earlier
ones were answered, each on a connection of its own that is there already; the time counts from the first byte sent to
the answer. The generator shares the cores with the service. Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.edge import synthetic  # noqa: E402


class Client:
    """Connections that are opened beforehand and used again; as little work per request as can be."""

    def __init__(self, url: str, body: bytes) -> None:
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        head = f"POST /v1/frames HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self, count: int) -> None:
        self._idle += [await asyncio.open_connection(self.host, self.port) for _ in range(count)]

    async def post(self) -> tuple[int, float]:
        """Status and seconds."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self.host, self.port)
        begin = time.perf_counter()
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        seconds = time.perf_counter() - begin
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        self._idle.append((reader, writer))
        return int(head[9:12]), seconds


async def load(url: str, body: bytes, times: float, seconds: float, places: int) -> dict[str, object]:
    """Capacity, then overload; what was answered and how fast."""
    client = Client(url, body)
    await client.open(100)
    await asyncio.gather(*(client.post() for _ in range(places)))
    begin, done = time.perf_counter(), 0

    async def steady() -> None:
        nonlocal done
        while time.perf_counter() - begin < min(4.0, seconds):
            status, _ = await client.post()
            done += status == 202

    await asyncio.gather(*(steady() for _ in range(places)))
    capacity = done / (time.perf_counter() - begin)
    rate = times * capacity
    posts: list[asyncio.Task[tuple[int, float]]] = []
    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        while len(posts) < now * rate:
            posts.append(asyncio.create_task(client.post()))
        await asyncio.sleep(0.002)
    answers = await asyncio.gather(*posts)
    taken = sorted(1000 * s for status, s in answers if status == 202)
    refused = sorted(1000 * s for status, s in answers if status == 429)
    statuses = Counter(status for status, _ in answers)
    return {
        "capacity_per_second": round(capacity, 1),
        "offered_per_second": round(len(answers) / seconds, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "taken_per_second": round(len(taken) / seconds, 1),
        "refused_ms_median": round(statistics.median(refused), 1) if refused else None,
        "refused_ms_p99": round(refused[int(0.99 * len(refused))], 1) if refused else None,
        "refused_ms_max": round(refused[-1], 1) if refused else None,
        "refused_within_50_ms": round(sum(ms <= 50 for ms in refused) / len(refused), 4) if refused else None,
        "taken_ms_median": round(statistics.median(taken), 1) if taken else None,
        "taken_ms_max": round(taken[-1], 1) if taken else None,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
    }


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
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
        print(f"{name:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
