"""Measures a large store: every route of the cloud that reads it, and retention against ingest.

    aeic bench store [--frames 1000000] [--databases sqlite postgresql] [--folder DIR] [--seconds 5] [--json FILE]

It fills a store with synthetic frames of 1.5 kB from 100 sources (nine in ten decoded, one in a hundred in quarantine,
the others waiting), runs a cloud on it in this process, and prints the median and the worst time of each route over
HTTP on loopback. ``/healthz`` reads nothing and shows what HTTP itself costs here. Then it measures the frames a second
that are stored, that retention marks and removes, and both at the same time. Retention keeps up if it is at least as
fast as ingest while both run. For SQLite, the size of the file shows what a frame takes on disk.

PostgreSQL is Debian's, in a temporary folder with durable settings; without it, only SQLite is measured. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa

from aeic.bundle import Bundle
from benchmarks.others import Others
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.onnx_backend import OnnxGenerator
from cloud_decoder.store.records import NewFrame
from cloud_decoder.store.schema import frames, jobs, sources
from cloud_decoder.store.store import Store
from tests.support.cloud.cloud import running_cloud
from tests.support.cloud.postgres import Postgres, missing
from tests.support.models.tiny_bundle import write_tiny_bundle

FRAME_BYTES = 1500
SOURCES = 100
CHUNK = 5000
REPEATS = 15
FINGERPRINT = "abcdef"
"""Of no bundle of the cloud that is measured: nothing is decoded meanwhile."""
STEP_MS = 250
"""Time between two frames."""


def fill(store: Store, many: int) -> None:
    """Put ``many`` frames into an empty store. The last one arrives now."""
    now_ms = int(time.time() * 1000)
    random = os.urandom(FRAME_BYTES)
    for start in range(0, many, CHUNK):
        rows, waiting = [], []
        for number in range(start, min(many, start + CHUNK)):
            data = number.to_bytes(8, "big") + random[8:]
            digest = hashlib.sha256(data).digest()
            state = "done" if number % 10 else "failed" if number % 100 == 0 else "received"
            received = now_ms - (many - number) * STEP_MS
            rows.append(
                {
                    "seq": number + 1,
                    "tenant": "",
                    "id": UUID(bytes=digest[:16]),
                    "source": f"camera-{number % SOURCES}",
                    "captured_ms": received - 1000,
                    "received_ms": received,
                    "available_ms": received + 500 if state == "done" else None,
                    "priority": 0,
                    "width": 512,
                    "height": 512,
                    "rate": number % 4,
                    "fingerprint": FINGERPRINT,
                    "bytes": FRAME_BYTES,
                    "digest": digest.hex(),
                    "bitstream": data,
                    "state": state,
                    "wanted": True,
                    "reason": "a reason" if state == "failed" else None,
                    "latents_digest": digest.hex() if state == "done" else None,
                    "timings": {"queue": 0.1, "entropy": 0.05, "synthesis": 0.3} if state == "done" else None,
                }
            )
            if state == "received":
                waiting.append(
                    {
                        "seq": number + 1,
                        "fingerprint": FINGERPRINT,
                        "bucket": "16x16",
                        "turn": received // 2000,
                        "deadline_ms": 2**62,
                        "queued_ms": received,
                        "wanted": True,
                        "attempts": 0,
                    }
                )
        with store.database.write(durable=False) as connection:
            connection.execute(sa.insert(frames), rows)
            connection.execute(sa.insert(jobs), waiting)
        if start % (20 * CHUNK) == 0:
            print(f"\rfilled {start:9,}", end="", flush=True)
    with store.database.write() as connection:
        connection.execute(
            sa.insert(sources),
            [
                {
                    "tenant": "",
                    "source": f"camera-{number}",
                    "first_seen_ms": now_ms - many * STEP_MS,
                    "last_seen_ms": now_ms,
                    "frames": many // SOURCES,
                    "bytes": many // SOURCES * FRAME_BYTES,
                }
                for number in range(SOURCES)
            ],
        )
        if not store.database.sqlite:
            connection.exec_driver_sql("SELECT setval(pg_get_serial_sequence('frames', 'seq'), max(seq)) FROM frames")
    if not store.database.sqlite:
        with store.database.read() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE frames")  # as autovacuum does within a minute or two
            connection.exec_driver_sql("VACUUM ANALYZE jobs")
    print(f"\rfilled {many:9,} frames", flush=True)


def routes(many: int, row: Any) -> list[str]:
    """All routes that read the store, lists with every filter and with filters that nothing passes."""

    def ago(number: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - number * STEP_MS / 1000))

    lists = [
        "limit=50",
        "limit=200",
        f"cursor={many // 2}",
        "source=camera-7",
        "source=unknown",
        "state=received",
        "state=decoding",
        "state=done",
        "state=failed",
        "state=pruned",
        "source=camera-7&state=failed",
        "source=camera-10&state=received",
        "rate=2",
        "rate=9",
        f"since={ago(100)}",
        f"until={ago(many // 2)}",
        f"since={ago(many // 2 + 100)}&until={ago(many // 2)}",
        f"source=camera-7&state=done&rate=3&since={ago(many // 2)}&until={ago(many // 4)}",
    ]
    return [
        *(f"/v1/frames?{one}" for one in lists),
        f"/v1/frames/{row.id}",
        f"/v1/frames/{row.id}/bitstream",
        "/v1/sources",
        "/v1/status",
        "/metrics",
        "/readyz",
        "/healthz",
    ]


async def measure_routes(url: str, folder: Path, many: int) -> dict[str, float]:
    """Milliseconds by route, the median of :data:`REPEATS`."""
    bundle = Bundle.load(write_tiny_bundle(folder / "tiny"))
    decoder = Decoder(bundle, OnnxGenerator(bundle.path, 1), settings=DecoderSettings(threads=1))
    found: dict[str, float] = {}
    async with (
        running_cloud(decoder, folder / "cloud", database_url=url, instance="bench") as cloud,
        httpx.AsyncClient(base_url=cloud.http, timeout=60) as http,
    ):
        while cloud.maintenance._checked is None and cloud.store.database.sqlite:  # its check reads the whole file
            await asyncio.sleep(0.1)
        (row,) = (await asyncio.to_thread(cloud.store.frames.page, "", 1, many // 3)).rows
        for route in routes(many, row):
            times = []
            for _ in range(REPEATS + 1):
                started = time.perf_counter()
                answer = await http.get(route)
                times.append(1000 * (time.perf_counter() - started))
                assert answer.status_code == 200, (route, answer.text)
            found[route] = round(statistics.median(times[1:]), 1)
            print(f"{route[:96]:96} {found[route]:8.1f} ms  (worst {max(times[1:]):.1f}, first {times[0]:.1f})")
    return found


class Ingest:
    """Stores frames in commits of 256 on a thread, as a front end does, until :meth:`stop`."""

    def __init__(self, store: Store) -> None:
        self._store, self._stop, self.stored = store, threading.Event(), 0
        self._salt = os.urandom(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End after the commit in progress."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            new = [self._frame(self.stored + number) for number in range(256)]
            self._store.frames.add(new, time.time())
            self.stored += len(new)

    def _frame(self, number: int) -> NewFrame:
        data = self._salt + number.to_bytes(8, "big") + bytes(FRAME_BYTES - 16)
        digest = hashlib.sha256(data).digest()
        return NewFrame(
            tenant="",
            id=UUID(bytes=digest[:16]),
            source=f"camera-{number % SOURCES}",
            captured_ms=0,
            priority=0,
            digest=digest.hex(),
            bitstream=data,
            width=512,
            height=512,
            rate=number % 4,
            fingerprint=FINGERPRINT,
        )


def retain(store: Store, end: float) -> int:
    """Mark and remove the oldest frames until ``end`` (monotonic); frames removed."""
    removed = 0
    while time.monotonic() < end:
        now_ms = int(time.time() * 1000)
        store.retention.mark(now_ms, older_than_ms=now_ms)
        removed += store.retention.remove(before_ms=now_ms + 1).frames
    return removed


def measure_retention(url: str, seconds: float) -> dict[str, int]:
    """Frames a second: stored, removed by retention, and each of them while both run."""
    store = Store(url)

    def rate(count: Callable[[], int]) -> int:
        started = time.monotonic()
        return round(count() / (time.monotonic() - started))

    def ingest() -> int:
        frames_in = Ingest(store)
        time.sleep(seconds)
        frames_in.stop()
        return frames_in.stored

    result = {"stored": rate(ingest), "removed": rate(lambda: retain(store, time.monotonic() + seconds))}
    both = Ingest(store)
    result["removed_beside_ingest"] = rate(lambda: retain(store, time.monotonic() + 2 * seconds))
    result["stored_beside_retention"] = round(both.stored / (2 * seconds))
    both.stop()
    print(
        f"stored {result['stored']}/s alone, {result['stored_beside_retention']}/s beside retention;"
        f" removed {result['removed']}/s alone, {result['removed_beside_ingest']}/s beside ingest",
        flush=True,
    )
    store.close()
    return result


def measure(url: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Fill the store at ``url`` and measure it."""
    store = Store(url)
    started = time.monotonic()
    fill(store, arguments.frames)
    filled = round(time.monotonic() - started)
    store.close()
    size = sum(path.stat().st_size for path in folder.glob("store.db*"))  # 0 for PostgreSQL
    others = Others()
    times = asyncio.run(measure_routes(url, folder, arguments.frames))
    result: dict[str, object] = {"fill_seconds": filled, "median_ms": times, "slowest_ms": max(times.values())}
    result["frames_per_second"] = measure_retention(url, arguments.seconds)
    if size:
        result["bytes_per_frame"] = round(size / arguments.frames)
        print(f"{result['bytes_per_frame']} bytes on disk for each frame of {FRAME_BYTES}", flush=True)
    return result | {"beside_others": round(others.share(), 3)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are written; a temporary folder")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement of retention")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "benchmark": "store",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "frames": arguments.frames,
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if "sqlite" in arguments.databases:
            print("SQLite", flush=True)
            (folder / "cloud").mkdir()
            result["sqlite"] = measure(f"sqlite:///{folder / 'store.db'}", folder, arguments)
        if "postgresql" in arguments.databases:
            if why_not := missing():
                print(f"PostgreSQL: not measured, {why_not}")
            else:
                print("PostgreSQL", flush=True)
                server = Postgres(durable=True).start()
                try:
                    result["postgresql"] = measure(server.fresh(), folder, arguments)
                finally:
                    server.stop()
    text = json.dumps(result)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
