"""What a fleet's parts sustain on this machine, and what the simulator had said.

    aeic bench fleet [--fronts 1] [--workers 2] [--rounds 5] [--tiny] [--json FILE]

1. claims: threads claim and finish jobs of a filled queue, in batches; nothing is decoded.
2. ingest: cameras push frames over gRPC into front ends that share a port; group commits into PostgreSQL.
3. workers: a backlog for one worker process pinned to core 0, then one for two, each on a core of its own.
4. the simulator, told the seconds per frame of (3), predicts a run that is then measured: frames that arrive at twice
   the speed of one worker; queue age, and the time until everything is decoded. Rounds of 3 and 4 take turns, and the
   median of each round's own ratio counts.

PostgreSQL is Debian's, in a temporary folder, durable. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import signal
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
POLL_SECONDS = 0.05
STEP_SECONDS = 0.1
"""Frames of one step arrive together."""


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


class Crew:
    """Workers that stay up over many runs, one on each core; those that a run does not want are stopped meanwhile."""

    def __init__(self, settings: dict[str, object], folder: Path, store: Store, count: int) -> None:
        worker = {"role": "worker", "port": 0, "grpc_port": 0, "poll_seconds": POLL_SECONDS, "claim_frames": 2}
        cores = os.cpu_count() or 1
        self.members = [Member(f"worker-{n}", folder, n % cores, **settings | worker) for n in range(count)]
        self._store = store

    async def run(self, workers: int, data: list[bytes], rate: float = 0.0) -> dict[str, float]:
        """``data`` by so many workers: a backlog, or ``rate`` frames a second. Ends with the last one decoded."""
        for number, member in enumerate(self.members):  # nobody holds a lease between two runs
            assert member.process is not None
            member.process.send_signal(signal.SIGCONT if number < workers else signal.SIGSTOP)
        new = [stored(one) for one in data]
        step = max(1, int(rate * STEP_SECONDS)) if rate else len(new)
        begun = time.time()
        for start in range(0, len(new), step):
            if rate and (early := begun + start / rate - time.time()) > 0:
                await asyncio.sleep(early)
            await asyncio.to_thread(self._store.add, new[start : start + step], time.time())
        while (backlog := await asyncio.to_thread(self._store.waiting, time.time())).ready or backlog.leased:
            await asyncio.sleep(0.25)
        rows = await asyncio.to_thread(self._store.page, "", len(new))
        assert all(row.state is State.DONE for row in rows)
        ends = sorted((row.available_ms or 0) / 1000 for row in rows)
        first, last = (
            len(ends) // 10,
            len(ends) * 8 // 10,
        )  # without the start, and the end where some have no more work
        ages = sorted(((row.available_ms or 0) - row.received_ms) / 1000 for row in rows)
        stages = [row.timings or {} for row in rows]
        return {
            "frames_per_second": (last - first) / (ends[last] - ends[first]),
            "seconds": ends[-1] - begun,
            "age_p50": float(np.percentile(ages, 50)),
            "age_p95": float(np.percentile(ages, 95)),
            "entropy": statistics.mean(one.get("entropy", 0.0) for one in stages),
            "synthesis": statistics.mean(one.get("synthesis", 0.0) for one in stages),
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
    """One worker, two workers, and the simulator beside a run, in turns: the machine is never quiet for long."""
    bundle = Bundle.load(write_tiny_bundle(folder / "tiny") if arguments.tiny else arguments.bundle)
    url = server.fresh()
    store = Store(url)
    crew = Crew(shared | {"bundle": bundle.path, "database_url": url}, folder, store, 2)
    await asyncio.gather(*(member.start() for member in crew.members))
    count = arguments.decode_frames
    data = make_frames(bundle, 2 * count)  # none twice in one run: equal bytes are decoded once
    await crew.run(2, data[: count // 2])
    scaling, errors, last = [], [], {}
    for number in range(arguments.rounds):
        one = await crew.run(1, data[:count])
        two = await crew.run(2, data)  # as much for each worker: starting and ending weigh the same
        rate = arguments.load * one["frames_per_second"]
        pool = Pool(workers=1, frame_seconds=1 / one["frames_per_second"], poll_seconds=POLL_SECONDS)
        said = simulate(pool, steady(rate, count, STEP_SECONDS))
        seen = await crew.run(1, data[:count], rate)
        scaling.append(two["frames_per_second"] / one["frames_per_second"])
        names = ("seconds", "age_p50", "age_p95")
        last = {name: [round(getattr(said, name), 3), round(seen[name], 3)] for name in names}
        errors.append({name: abs(getattr(said, name) / seen[name] - 1) for name in names})
        worst = max(errors[-1].values())
        print(
            f"round {number}: 1 worker {one['frames_per_second']:6.2f}/s, 2 workers {two['frames_per_second']:6.2f}/s,"
            f" {scaling[-1]:.2f} times; simulated {said.age_p50:.2f} s of age, seen {seen['age_p50']:.2f} s;"
            f" worst of all {100 * worst:.1f} % off",
            flush=True,
        )
    for member in crew.members:
        await member.stop()
    store.close()
    return {
        "bundle": bundle.name,
        "one_worker_frames_per_second": round(one["frames_per_second"], 2),
        "two_workers_frames_per_second": round(two["frames_per_second"], 2),
        "scaling": round(statistics.median(scaling), 3),
        "scaling_rounds": [round(one, 2) for one in scaling],
        "stage_seconds": {name: round(one[name], 5) for name in ("entropy", "synthesis")},
        "predicted_and_measured_last": last,
        "prediction_errors": {name: round(statistics.median(each[name] for each in errors), 3) for name in errors[0]},
        "prediction_error_worst_median": round(
            max(statistics.median(each[name] for each in errors) for name in errors[0]), 3
        ),
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
    parser.add_argument("--decode-frames", type=int, default=20, help="for each worker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=float, default=2.0, help="arrivals of the simulated run, in one worker's speeds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(arguments, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
