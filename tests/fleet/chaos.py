"""A fleet under fire: workers, front ends and the database itself killed at random while frames arrive.

    python -m tests.fleet.chaos [--frames 5000] [--workers 3] [--fronts 2] [--ray] [--rolling]

None may be lost, none duplicated, none stuck longer than two leases. ``--rolling`` restarts every part gently instead,
one after the other, while clients ask for pictures: they may see retryable answers only. The last line is one JSON
object; the exit status says whether everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import numpy as np

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from cloud_decoder.store import Store
from tests.cloud.postgres import Postgres
from tests.fleet.camera import Camera
from tests.fleet.members import Member, reserved_port
from tests.fleet.watch import Watch
from tests.tiny_bundle import write_tiny_bundle

LEASE = 3.0
RETRYABLE = {429, 503, 504}


def make_frames(bundle: Bundle, count: int, kinds: int = 50) -> list[tuple[UUID, bytes]]:
    """Frames of three sizes under new ids; every one of ``kinds`` contents."""
    codec, chance = LatentCodec(bundle, 1), np.random.default_rng(0)
    contents = []
    for number in range(kinds):
        width, height = ((128, 96), (96, 128), (64, 64))[number % 3]
        size = Frame(width, height, 0, bundle.fingerprint, b"").latent_size
        contents.append(
            codec.encode(chance.normal(0, 20, (bundle.channels, *size)).astype(np.float32), 0, width, height)
        )
    return [(uuid4(), contents[number % kinds]) for number in range(count)]


class Fleet:
    """PostgreSQL, front ends behind one address, workers; without Ray each is a process of ours."""

    def __init__(self, folder: Path, workers: int, fronts: int, http: int, grpc: int) -> None:
        self.folder = folder
        self.postgres = Postgres(durable=True)
        self.bundle = Bundle.load(write_tiny_bundle(folder / "bundle"))
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        self.settings: dict[str, object] = {
            "bundle": folder / "bundle",
            "device": "onnx",
            "database_url": self.postgres.url,
            "cache_url": f"file://{folder}/pictures",
            "lease_seconds": LEASE,
            "max_attempts": 20,  # kills are ours, not the frames'
            "drain_seconds": 10,
        }
        front = {"role": "ingest", "reuse_port": True, "port": http, "grpc_port": grpc}
        self.fronts = [Member(f"front-{n}", folder, **self.settings | front) for n in range(fronts)]
        worker = {"role": "worker", "port": 0, "grpc_port": 0, "poll_seconds": 0.1}
        self.workers = [Member(f"worker-{n}", folder, **self.settings | worker) for n in range(workers)]

    async def start(self) -> None:
        """Everything up."""
        await asyncio.to_thread(self.postgres.start)
        Store(self.postgres.url).close()
        await asyncio.gather(*(member.start() for member in (*self.fronts, *self.workers)))

    async def stop(self) -> list[int]:
        """Everything down gently; the exit statuses."""
        codes = await asyncio.gather(*(member.stop() for member in (*self.fronts, *self.workers)))
        await asyncio.to_thread(self.postgres.stop)
        return list(codes)

    def abandon(self) -> None:
        """Nothing of it is left, whatever happened."""
        for member in (*self.fronts, *self.workers):
            member.kill()
        self.postgres.kill()
        self.postgres.stop()

    async def trouble(self, rng: random.Random, events: Counter[str], over: asyncio.Event) -> None:
        """One kill after the other, each followed by what a supervisor does: a start."""
        while not over.is_set():
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            kind = rng.choice(["worker", "worker", "front", "postgres"])
            events[kind] += 1
            if kind == "postgres":
                await asyncio.to_thread(self.postgres.kill)
                await asyncio.sleep(rng.uniform(0, 1))
                await asyncio.to_thread(self.postgres.start)
            else:
                member = rng.choice(self.workers if kind == "worker" else self.fronts)
                member.kill()
                await member.start()

    async def roll(self, events: Counter[str]) -> list[int]:
        """Every part stopped gently and started again, the database too; the exit statuses."""
        codes = []
        for member in (*self.workers, *self.fronts):
            events[member.name] += 1
            codes.append(await member.stop())
            await member.start()
            await asyncio.sleep(0.5)
        events["postgres"] += 1
        await asyncio.to_thread(self.postgres.restart)
        await asyncio.sleep(1.0)
        return codes


async def tell(cameras: list[Camera], watch: Watch, events: Counter[str]) -> None:
    """Where it stands, on stderr, every five seconds."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(5)
        acked = sum(len(camera.acked) for camera in cameras)
        said = f"{time.monotonic() - begun:4.0f} s: {acked} acknowledged, {watch.jobs} jobs, kills {dict(events)}"
        print(said, file=sys.stderr, flush=True)


class Client:
    """Asks for pictures all the time, and counts what it is told."""

    def __init__(self, address: str, frames: list[tuple[UUID, bytes]], cameras: list[Camera]) -> None:
        self._address, self._frames, self._cameras = address, frames, cameras
        self.answers: Counter[str] = Counter()

    async def run(self, over: asyncio.Event, rng: random.Random) -> None:
        """A new connection for each question, as a balancer would see it."""
        while not over.is_set():
            await asyncio.sleep(0.05)
            known = [id for camera in self._cameras for id in camera.acked]
            if not known:
                continue
            try:
                async with httpx.AsyncClient(base_url=self._address, timeout=30) as http:
                    if rng.random() < 0.3:
                        answer = await http.post("/v1/decode?timeout=20", content=rng.choice(self._frames)[1])
                    else:
                        answer = await http.get(f"/v1/frames/{rng.choice(known)}/image?wait=20")
                self.answers[str(answer.status_code)] += 1
            except httpx.TransportError as error:  # refused, reset, cut: what any client tries again
                self.answers[type(error).__name__] += 1

    @property
    def failed(self) -> int:
        """Answers that no client could mend by asking again."""
        good = {"200", "202", *(str(status) for status in RETRYABLE)}
        return sum(count for answer, count in self.answers.items() if answer.isdigit() and answer not in good)


async def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The whole story, as the last line tells it."""
    rng, events = random.Random(options.seed), Counter[str]()
    with reserved_port() as http, reserved_port() as grpc:
        if options.ray:
            from tests.fleet.ray_fleet import RayFleet

            fleet: Fleet = RayFleet(folder, options.workers, options.fronts, http, grpc)
        else:
            fleet = Fleet(folder, options.workers, options.fronts, http, grpc)
        try:
            await fleet.start()
            sent = make_frames(fleet.bundle, options.frames)
            cameras = [Camera(fleet.grpc, fleet.bundle, f"box-{number}") for number in range(8)]
            client = Client(fleet.http, sent, cameras)
            store = Store(fleet.postgres.url)
            watch = Watch(store, LEASE)
            watching = asyncio.gather(watch.run(), tell(cameras, watch, events))
            over = asyncio.Event()
            begun = time.monotonic()
            rate = options.per_second / len(cameras)
            sending = [camera.send(sent[number :: len(cameras)], rate) for number, camera in enumerate(cameras)]
            asking = asyncio.create_task(client.run(over, random.Random(7)))
            codes: list[int] = []
            if options.rolling:
                load = asyncio.gather(*sending)
                codes = await fleet.roll(events)
                await load
            else:
                trouble = asyncio.create_task(fleet.trouble(rng, events, over))
                load = asyncio.gather(*sending)
                await asyncio.wait({trouble, load}, return_when=asyncio.FIRST_COMPLETED)
                over.set()
                await trouble  # where it broke, it says so now
                await load
            seconds = time.monotonic() - begun
            done = await watch.until_done(len(sent), 60 + len(sent) / 20)
            over.set()
            await asking
            finished = time.monotonic() - begun
            await asyncio.sleep(0.5)  # frames that only passed through POST /v1/decode are forgotten a moment later
            watching.cancel()
            verdict = await asyncio.to_thread(watch.verdict, dict(sent))
            store.close()
            codes += await fleet.stop()
        finally:
            await asyncio.to_thread(fleet.abandon)
    statuses: Counter[str] = sum((camera.statuses for camera in cameras), Counter[str]())
    return {
        "frames": len(sent),
        "workers": options.workers,
        "fronts": options.fronts,
        "ray": options.ray,
        "rolling": options.rolling,
        **verdict,
        "all_done": done,
        "longest_stuck_leases": round(watch.longest_stuck, 2),
        "events": dict(events),
        "streams_broken": sum(camera.breaks for camera in cameras),
        "acknowledgements": dict(statuses),
        "answers": dict(client.answers),
        "requests_failed": client.failed,
        "exit_codes": codes,
        "ingest_seconds": round(seconds, 1),
        "seconds": round(finished, 1),
    }


def held(result: dict[str, object]) -> bool:
    """Whether everything that was promised is so."""
    nothing = ("lost", "wrong", "duplicated", "undecoded", "jobs_left", "requests_failed")
    stuck = float(str(result["longest_stuck_leases"]))
    codes = [code for code in result["exit_codes"] if code] if isinstance(result["exit_codes"], list) else [1]
    return bool(result["all_done"]) and not any(result[name] for name in nothing) and stuck <= 2.0 and not codes


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--fronts", type=int, default=2)
    parser.add_argument("--per-second", type=float, default=100.0, help="frames arriving; 0: as fast as they go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="workers and front ends are Ray actors")
    parser.add_argument("--rolling", action="store_true", help="gentle restarts instead of kills")
    parser.add_argument("--keep", type=Path, help="folder for logs, kept; by default a temporary one")
    options = parser.parse_args()
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        folder = (options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(options, folder))
    print(json.dumps(result))
    return 0 if held(result) else 1


if __name__ == "__main__":
    sys.exit(main())
