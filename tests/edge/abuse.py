"""Hostile requests to an edge in a process of its own: it answers each, never with a 5xx, and its memory does not grow.

    python -m tests.edge.abuse --mutations 1000

Requests made up from the OpenAPI description (schemathesis), decompression bombs, clients that send a byte a second,
bodies cut short, and random mutations of a sample of every picture format. The last line of output is one JSON object;
the exit code is 0 only without a 5xx and with the resident memory within 10 % of what it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from tests.support.edge.process import EdgeProcess
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.pictures import picture
from tests.support.roots import ROOT

SAMPLES = {
    "jpeg": picture(160, 120),
    "progressive": picture(160, 120, progressive=True),
    "png": picture(160, 120, form="PNG"),
    "palette": picture(160, 120, form="PNG", mode="P"),
    "webp": picture(160, 120, form="WEBP"),
    "lossless": picture(160, 120, form="WEBP", lossless=True),
}


def bombs(side: int) -> dict[str, bytes]:
    """A few kilobytes each that are, or say they are, huge; `side` is what may still be taken."""
    found = {}
    for size in ((side, side), (12_000, 12_000), (9000, 20)):
        out = io.BytesIO()
        Image.new("1", size).save(out, "PNG")
        found[f"png {size}"] = out.getvalue()
    out = io.BytesIO()
    Image.new("L", (side, side), 128).save(out, "JPEG", quality=1)
    return {**found, "jpeg": out.getvalue(), "jpeg cut": out.getvalue()[: len(out.getvalue()) // 2]}


def mutated(sample: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, runs removed, doubled or overwritten, the end cut off."""
    data = bytearray(sample)
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(data)), rng.randint(1, 40)
        match rng.randrange(5):
            case 0 | 1:
                data[at] = rng.randrange(256)
            case 2:
                data[at : at + length] = rng.randbytes(length)
            case 3:
                data[at:at] = data[at : at + length]
            case 4 if len(data) > 100:
                del data[at : at + length]
    if rng.random() < 0.2:
        del data[rng.randrange(1, len(data)) :]
    return bytes(data)


class Abuse:
    """One edge process and what it answered."""

    def __init__(self, edge: EdgeProcess, seed: int) -> None:
        self.edge = edge
        self.rng = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.worst: list[str] = []
        self._process = psutil.Process(edge.process.pid)

    def resident_mb(self) -> float:
        return float(self._process.memory_info().rss / 2**20)

    async def post(self, client: httpx.AsyncClient, content: bytes, description: str) -> None:
        while True:
            wait = self.rng.choice(("spooled", "received"))
            response = await client.post("/v1/frames", params={"wait": wait}, content=content)
            self.statuses[response.status_code] += 1
            if response.status_code != 429:
                break
            await asyncio.sleep(0.02)
        if response.status_code >= 500:
            self.worst.append(f"{description}: {response.status_code} {response.text[:200]}")

    async def pictures(self, each: int) -> None:
        """`each` mutations of each sample, four at a time."""
        jobs = iter([(name, mutated(data, self.rng)) for name, data in SAMPLES.items() for _ in range(each)])
        async with httpx.AsyncClient(base_url=self.edge.url, timeout=60) as client:

            async def work() -> None:
                for name, data in jobs:
                    await self.post(client, data, name)

            await asyncio.gather(*(work() for _ in range(4)))

    async def bombs(self, side: int) -> None:
        async with httpx.AsyncClient(base_url=self.edge.url, timeout=120) as client:
            for name, data in bombs(side).items():
                await self.post(client, data, name)

    async def slow(self, clients: int) -> None:
        """One byte a second, in the headers or in the body, until each is cut off; meanwhile others are served."""
        host, port = self.edge.url.removeprefix("http://").split(":")
        head = b"POST /v1/frames HTTP/1.1\r\nHost: edge\r\nContent-Length: 5000\r\n\r\n"

        async def trickle(number: int) -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            start = len(head) if number % 2 else 5
            writer.write(head[:start])
            answer = asyncio.create_task(reader.read(65536))
            with contextlib.suppress(OSError):
                for byte in (head + bytes(5000))[start:]:
                    if (await asyncio.wait((answer,), timeout=1.0))[0]:
                        break
                    writer.write(bytes([byte]))
                    await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                return await answer
            return b""

        async with httpx.AsyncClient(base_url=self.edge.url, timeout=60) as client:
            trickling = [asyncio.create_task(trickle(number)) for number in range(clients)]
            await asyncio.sleep(0.5)
            await self.post(client, SAMPLES["jpeg"], "beside slow clients")
            answers = await asyncio.gather(*trickling)
        for answer in answers:
            status = int(answer[9:12]) if answer else 0  # 0: closed without a word, as for headers that never end
            self.statuses[status] += 1
            if status >= 500:
                self.worst.append(f"slow client: {answer[:200]!r}")


def schema(url: str, examples: int) -> str:
    """Runs schemathesis; empty when it found nothing, else the end of what it said."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "not_a_server_error",
        "--max-examples", str(examples), "--seed", "1", "--generation-database", "none", "--request-timeout", "20",
        "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--exclude-path", "/metrics",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=1200)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def run(mutations: int, examples: int, slow: int, seed: int, folder: Path, bomb_side: int = 8192) -> dict[str, Any]:
    """All of it, once; see the module's docstring."""
    bundle = write_tiny_bundle(folder / "bundle")
    edge = EdgeProcess(
        AEIC_BUNDLE=str(bundle),
        AEIC_EDGE_DATA_DIR=str(folder / "spool"),
        AEIC_EDGE_CLOUD_ADDRESS="",
        AEIC_EDGE_READ_TIMEOUT_SECONDS="2",
        AEIC_EDGE_SPOOL_FULL_POLICY="drop-oldest",
        AEIC_EDGE_SPOOL_MAX_BYTES="1000000",
        AEIC_EDGE_LOG_LEVEL="error",
        MALLOC_ARENA_MAX="2",
    )
    begin = time.monotonic()
    try:
        abuse = Abuse(edge, seed)
        asyncio.run(abuse.pictures(10))
        asyncio.run(abuse.bombs(bomb_side))
        httpx.get(f"{edge.url}/openapi.json").raise_for_status()  # everything has been used once
        before = abuse.resident_mb()
        found = schema(edge.url, examples)
        asyncio.run(abuse.slow(slow))
        asyncio.run(abuse.pictures(mutations))
        asyncio.run(abuse.bombs(bomb_side))
        asyncio.run(abuse.pictures(10))
        after = abuse.resident_mb()
    finally:
        code, log = edge.stop(signal.SIGTERM)
    print(found or "schemathesis: no server error", *abuse.worst, log[-2000:], sep="\n")
    return {
        "mutations": mutations * len(SAMPLES),
        "statuses": {str(status): count for status, count in sorted(abuse.statuses.items())},
        "server_errors": len(abuse.worst),
        "schemathesis_clean": not found,
        "resident_mb_before": round(before, 1),
        "resident_mb_after": round(after, 1),
        "exit": code,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000, help="of each sample picture")
    parser.add_argument("--examples", type=int, default=100, help="made-up requests per operation")
    parser.add_argument("--slow", type=int, default=40, help="slow clients at once")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.mutations, options.examples, options.slow, options.seed, Path(folder))
    print(json.dumps(result))
    grown = result["resident_mb_after"] / result["resident_mb_before"] - 1
    return int(bool(result["server_errors"] or not result["schemathesis_clean"] or result["exit"] or grown > 0.1))


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
