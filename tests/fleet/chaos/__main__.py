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
from typing import Any

from cloud_decoder.store.store import Store
from tests.fleet.chaos.camera import Camera
from tests.fleet.chaos.client import Client
from tests.fleet.chaos.fleet import LEASE, Fleet, make_frames
from tests.fleet.chaos.members import reserved_port
from tests.fleet.chaos.watch import Watch


async def tell(cameras: list[Camera], watch: Watch, events: Counter[str]) -> None:
    """Where it stands, on stderr, every five seconds."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(5)
        acked = sum(len(camera.acked) for camera in cameras)
        said = f"{time.monotonic() - begun:4.0f} s: {acked} acknowledged, {watch.jobs} jobs, kills {dict(events)}"
        print(said, file=sys.stderr, flush=True)


async def run(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The whole story, as the last line tells it."""
    rng, events = random.Random(options.seed), Counter[str]()
    with reserved_port() as http, reserved_port() as grpc:
        if options.ray:
            from tests.fleet.chaos.ray_fleet import RayFleet

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
            arriving = True
            if options.rolling:
                load = asyncio.gather(*sending)
                codes = await fleet.roll(events)
                arriving = not load.done()
                await load
            else:
                trouble = asyncio.create_task(fleet.trouble(rng, events, over))
                load = asyncio.gather(*sending)
                both: set[asyncio.Future[Any]] = {trouble, load}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
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
        "arriving_all_the_time": arriving,
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
