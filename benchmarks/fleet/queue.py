"""Measures the database of a fleet: the claims of many workers, and frames that pass through a front end."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from aeic.bundle import Bundle
from benchmarks.fleet.frames import make_frames
from cloud_decoder.store.records import DecodeResult, NewFrame
from cloud_decoder.store.store import Store
from tests.fleet.chaos.camera import Camera
from tests.fleet.chaos.members import Member, reserved_port
from tests.support.cloud.postgres import Postgres

FRAME_BYTES = 1500
CAMERAS = 8
_gate: Any = None


def measure_claims(server: Postgres, jobs: int, batches: list[int], workers: int) -> dict[str, object]:
    """By batch size: the jobs a second that several processes claim and finish, and the database time of a job."""
    store = Store(server.fresh())
    spawn = multiprocessing.get_context("spawn")  # a fork would share the server's connections
    begun, log = server.cpu_seconds(), _log_bytes(store)
    rates, seconds = {}, {}
    for batch in batches:
        _fill(store, jobs)
        gate = spawn.Barrier(workers)
        with ProcessPoolExecutor(workers, spawn, initializer=_meet, initargs=(gate,)) as pool:
            address = store.url.render_as_string(hide_password=False)
            done = list(pool.map(_claim_all, [address] * workers, range(workers), [batch] * workers))
        rates[str(batch)] = round(jobs / (max(one["ended"] for one in done) - min(one["began"] for one in done)))
        seconds[str(batch)] = {
            what: round(statistics.median(one[what] for one in done), 5) for what in ("claim", "finish")
        }
        print(f"claim and finish in batches of {batch:3}: {rates[str(batch)]:6} jobs/s", flush=True)
    total = jobs * len(batches)
    costs = {
        "database_cpu_seconds": round((server.cpu_seconds() - begun) / total, 7),
        "log_bytes": round((_log_bytes(store) - log) / total),
        "stored_bytes": round(_stored_bytes(store) / total),
    }
    store.close()
    return {"claimed_jobs_per_second": rates, "claim_and_finish_seconds": seconds, "database": costs}


def _meet(gate: Any) -> None:
    global _gate
    _gate = gate


def _claim_all(url: str, number: int, batch: int) -> dict[str, float]:
    """Claim and finish jobs until none is left. Runs in a process of its own, as a worker does."""
    store, claims, finishes = Store(url), [], []
    store.clock()
    timings = {"entropy": 0.1, "synthesis": 0.2}
    try:
        _gate.wait(60)  # all of them are up
    except BrokenBarrierError as error:
        raise RuntimeError("another claimer did not start") from error
    began = time.time()
    while True:
        started = time.perf_counter()
        got = store.queue.claim(f"w{number}", "abcdef", batch, store.clock(), 60, 3, alike=True)
        middle = time.perf_counter()
        if not got:
            break
        store.queue.finish([DecodeResult(one.lease, "d" * 64, timings) for one in got], time.time())
        claims.append(middle - started)
        finishes.append(time.perf_counter() - middle)
    ended = time.time()
    store.close()
    times = {"claim": claims, "finish": finishes}
    return {"began": began, "ended": ended} | {what: statistics.median(all) for what, all in times.items()}


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
        store.frames.add(new, time.time())


def _new(data: bytes, number: int) -> NewFrame:
    digest = hashlib.sha256(data).hexdigest()
    return NewFrame("", uuid4(), f"box-{number % 64}", 1, number % 3, 768, 512, 1, "abcdef", digest, data)


async def measure_ingest(settings: dict[str, Any], folder: Path, fronts: int, frames: int, bundle: Bundle) -> float:
    """Acknowledged frames a second over gRPC, sent by cameras in this process."""
    with reserved_port() as http, reserved_port() as grpc:
        front = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc, "ingest_window": 256}
        members = [Member(f"front-{n}", folder, **settings | front) for n in range(fronts)]
        await asyncio.gather(*(member.start() for member in members))
        data = make_frames(bundle, 32, width=128, height=96, spread=20)
        loads = [[(uuid4(), data[n % 32]) for n in range(frames // CAMERAS)] for _ in range(CAMERAS)]
        cameras = [Camera(f"127.0.0.1:{grpc}", bundle, f"box-{number}") for number in range(CAMERAS)]
        begun = time.perf_counter()
        await asyncio.gather(*(camera.send(load) for camera, load in zip(cameras, loads, strict=True)))
        seconds = time.perf_counter() - begun
        for member in members:
            await member.stop()
    return frames // CAMERAS * CAMERAS / seconds
