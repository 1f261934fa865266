"""What a fleet's parts sustain on this machine, and what the simulator had said.

    aeic bench fleet [--seconds 6] [--fronts 1] [--workers 2] [--tiny] [--json FILE]

1. claims: threads claim and finish jobs of a filled queue, in batches; nothing is decoded.
2. ingest: cameras push frames over gRPC into front ends that share a port; group commits into PostgreSQL.
3. workers: one worker process pinned to core 0, then one on each of cores 0 and 1, on a backlog of the same frames.
4. the simulator, fed with stage times of (1), (2) and the one worker, predicts a run with a mixed load that is then
   measured: frames arriving at a steady rate, queue age, and the time until everything is decoded.

PostgreSQL is Debian's, in a temporary folder, durable. The last line is one JSON object.
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
from pathlib import Path
from uuid import uuid4

import numpy as np
import sqlalchemy as sa

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from benchmarks.fleet_simulator import Pool, simulate, steady
from cloud_decoder.records import Finished, NewFrame, State
from cloud_decoder.store import Store
from tests.cloud.postgres import Postgres
from tests.fleet.camera import Camera
from tests.fleet.members import Member, reserved_port
from tests.tiny_bundle import write_tiny_bundle

FRAME_BYTES = 1500


def measure_claims(store: Store, jobs: int, batch: int, threads: int) -> dict[str, float]:
    """Claimed and finished jobs a second, and seconds of one claim and one finish."""
    _fill(store, jobs)
    claims: list[float] = []
    finishes: list[float] = []

    def work(name: str) -> None:
        while True:
            started = time.perf_counter()
            got = store.claim(name, "abcdef", batch, store.clock(), 60, 3, alike=True)
            middle = time.perf_counter()
            if not got:
                return
            timings = {"entropy": 0.1, "synthesis": 0.2}
            store.finish([Finished(one.row.seq, "d" * 64, timings) for one in got], time.time())
            claims.append(middle - started)
            finishes.append(time.perf_counter() - middle)

    pool = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(threads)]
    begun = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    seconds = time.perf_counter() - begun
    return {
        "jobs_per_second": jobs / seconds,
        "claim_seconds": statistics.median(claims),
        "finish_seconds": statistics.median(finishes),
    }


def _log_bytes(store: Store) -> int:
    with store.database.read() as connection:
        return int(connection.scalar(sa.text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")))


def _stored_bytes(store: Store) -> int:
    with store.database.read() as connection:
        return int(connection.scalar(sa.text("SELECT pg_total_relation_size('frames')")))


def _fill(store: Store, jobs: int) -> None:
    data = [os.urandom(FRAME_BYTES) for _ in range(64)]
    for start in range(0, jobs, 512):
        new = [_new(data[number % 64], number) for number in range(start, min(jobs, start + 512))]
        store.add(new, time.time())


def _new(data: bytes, number: int) -> NewFrame:
    digest = hashlib.sha256(data).hexdigest()
    return NewFrame("", uuid4(), f"box-{number % 64}", 1, number % 3, 768, 512, 1, "abcdef", digest, data)


async def measure_ingest(settings: dict[str, object], folder: Path, fronts: int, frames: int, bundle: Bundle) -> float:
    """Frames a second over gRPC, acknowledged."""
    with reserved_port() as http, reserved_port() as grpc:
        front = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc, "ingest_window": 256}
        members = [Member(f"front-{n}", folder, **settings | front) for n in range(fronts)]
        await asyncio.gather(*(member.start() for member in members))
        data = make_frames(bundle, 32, small=True)
        cameras = 8
        loads = [[(uuid4(), data[n % 32]) for n in range(frames // cameras)] for _ in range(cameras)]
        address = f"127.0.0.1:{grpc}"
        begun = time.perf_counter()
        await asyncio.gather(
            *(Camera(address, bundle, f"box-{number}").send(load) for number, load in enumerate(loads))
        )
        seconds = time.perf_counter() - begun
        for member in members:
            await member.stop()
    return frames // cameras * cameras / seconds


def make_frames(bundle: Bundle, count: int, small: bool = False) -> list[bytes]:
    """Frames of one size and different contents."""
    codec, chance = LatentCodec(bundle, 1), np.random.default_rng(0)
    width, height = (128, 96) if small else (512, 384)
    size = Frame(width, height, 0, bundle.fingerprint, b"").latent_size
    spread = 20 if small else 3
    made = []
    for _ in range(count):
        y = chance.normal(0, spread, (bundle.channels, *size)).astype(np.float32)
        made.append(codec.encode(y, 0, width, height))
    return made


async def measure_workers(
    settings: dict[str, object], folder: Path, url: str, counts: int, frames: int, data: list[bytes], rate: float = 0.0
) -> dict[str, float]:
    """``counts`` workers, each on a core of its own, on a backlog, or on ``rate`` frames a second arriving.

    Waits until all are ready before the first frame comes; ends with the last frame decoded.
    """
    store = Store(url)
    worker = {"role": "worker", "port": 0, "grpc_port": 0, "poll_seconds": 0.05, "database_url": url}
    members = [Member(f"worker-{n}", folder, n % (os.cpu_count() or 1), **settings | worker) for n in range(counts)]
    await asyncio.gather(*(member.start() for member in members))
    new = [stored(data[n % len(data)]) for n in range(frames)]
    begun = time.time()
    if rate:
        step = max(1, int(rate * 0.1))
        for start in range(0, frames, step):
            if (early := begun + start / rate - time.time()) > 0:
                await asyncio.sleep(early)
            await asyncio.to_thread(store.add, new[start : start + step], time.time())
    else:
        await asyncio.to_thread(store.add, new, time.time())
        begun = time.time()
    while await asyncio.to_thread(_open, store):
        await asyncio.sleep(0.1)
    rows = [row for row in await asyncio.to_thread(store.page, "", frames) if row.state is State.DONE]
    seconds = max(row.available_ms or 0 for row in rows) / 1000 - begun
    ages = sorted(((row.available_ms or 0) - row.received_ms) / 1000 for row in rows)
    stages = [row.timings or {} for row in rows]
    for member in members:
        await member.stop()
    store.close()
    return {
        "frames_per_second": frames / seconds,
        "seconds": seconds,
        "age_p50": ages[len(ages) // 2],
        "age_p95": ages[int(len(ages) * 0.95)],
        "entropy_seconds": statistics.mean(one.get("entropy", 0.0) for one in stages),
        "synthesis_seconds": statistics.mean(one.get("synthesis", 0.0) for one in stages),
    }


def stored(data: bytes) -> NewFrame:
    """What ingest makes of it, under a new id; the contents differ, so nothing is decoded together."""
    frame = Frame.parse(data)
    digest = hashlib.sha256(data).hexdigest()
    return NewFrame("", uuid4(), "box", 1, 0, frame.width, frame.height, frame.rate, frame.fingerprint, digest, data)


def _open(store: Store) -> int:
    counts = store.counts()
    return counts["received"] + counts["decoding"]


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Everything, as the last line tells it."""
    server = Postgres(durable=True).start()
    try:
        bundle_path = write_tiny_bundle(folder / "tiny")
        tiny = Bundle.load(bundle_path)
        shared: dict[str, object] = {"device": "onnx", "cache_url": f"file://{folder}/pictures", "lease_seconds": 30}
        store = Store(server.fresh())
        before, log = server.cpu_seconds(), _log_bytes(store)
        claims = {size: measure_claims(store, arguments.jobs, size, arguments.threads) for size in (8, 16, 64)}
        total = arguments.jobs * len(claims)
        database = {
            "database_cpu_seconds": round((server.cpu_seconds() - before) / total, 7),
            "log_bytes": round((_log_bytes(store) - log) / total),
            "stored_bytes": round(_stored_bytes(store) / total),
        }
        store.close()
        for size, one in claims.items():
            print(f"claim and finish in batches of {size:3}: {one['jobs_per_second']:8.0f} jobs/s")
        settings = shared | {"bundle": bundle_path, "database_url": server.fresh()}
        ingest = await measure_ingest(settings, folder, arguments.fronts, arguments.ingest_frames, tiny)
        print(f"ingest, {arguments.fronts} front end(s): {ingest:8.0f} frames/s")
        result: dict[str, object] = {
            "benchmark": "fleet",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_average": round(os.getloadavg()[0], 2),
            "claimed_jobs_per_second": {str(size): round(one["jobs_per_second"]) for size, one in claims.items()},
            "ingested_frames_per_second": round(ingest),
            "fronts": arguments.fronts,
            "database": database,
        }
        if arguments.workers:
            result |= await measure_scaling(arguments, folder, server, shared)
        return result
    finally:
        server.stop()


async def measure_scaling(
    arguments: argparse.Namespace, folder: Path, server: Postgres, shared: dict[str, object]
) -> dict[str, object]:
    """One worker against two, then the simulator against a run."""
    bundle = Bundle.load(write_tiny_bundle(folder / "tiny") if arguments.tiny else arguments.bundle)
    settings = shared | {"bundle": bundle.path}
    data = make_frames(bundle, 2 * arguments.decode_frames)  # none twice: equal bytes are decoded once
    rounds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for count in (1, 2):
            url = server.fresh()
            (folder / "pictures").mkdir(exist_ok=True)
            frames = arguments.decode_frames * count  # as much for each worker: starting and ending weigh the same
            rounds[count].append(await measure_workers(settings, folder, url, count, frames, data))
            print(f"{count} worker(s): {rounds[count][-1]['frames_per_second']:8.2f} frames/s")
    one, two = (statistics.median(run["frames_per_second"] for run in rounds[count]) for count in (1, 2))
    rate = arguments.load * one
    frames = min(len(data), max(20, int(rate * arguments.seconds)))
    pool = Pool(workers=1, frame_seconds=1 / one, poll_seconds=0.05)
    predicted = simulate(pool, steady(rate, frames, step_seconds=0.1))
    measured = await measure_workers(settings, folder, server.fresh(), 1, frames, data, rate)
    report = {
        name: [round(getattr(predicted, name), 3), round(measured[name], 3)]
        for name in ("seconds", "frames_per_second", "age_p50", "age_p95")
    }
    for name, (said, seen) in report.items():
        print(f"{name:20} predicted {said:8.3f}   measured {seen:8.3f}   off by {100 * abs(said / seen - 1):5.1f} %")
    return {
        "bundle": bundle.name,
        "one_worker_frames_per_second": round(one, 2),
        "two_workers_frames_per_second": round(two, 2),
        "scaling": round(two / one, 3),
        "stage_seconds": {name: round(rounds[1][-1][f"{name}_seconds"], 5) for name in ("entropy", "synthesis")},
        "predicted_and_measured": report,
        "worst_error": round(max(abs(said / seen - 1) for said, seen in report.values()), 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="of the workers; empty takes the shipped one")
    parser.add_argument("--tiny", action="store_true", help="workers decode the tests' tiny bundle")
    parser.add_argument("--jobs", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=2, help="workers that claim at once")
    parser.add_argument("--fronts", type=int, default=1)
    parser.add_argument("--ingest-frames", type=int, default=12000)
    parser.add_argument("--workers", type=int, default=2, help="0 leaves the decoding out")
    parser.add_argument("--decode-frames", type=int, default=40, help="for each worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=2.0, help="arrivals of the simulated run, in one worker's speeds")
    parser.add_argument("--seconds", type=float, default=8.0, help="of arrivals in the simulated run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(arguments, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
