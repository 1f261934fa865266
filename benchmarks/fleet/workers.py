"""Measures workers on cores of their own: two compared with one, with the limit that the cores set, and with the
simulator's prediction.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aeic.bundle import Bundle
from benchmarks.cloud.bare_decoder import BareDecoder, rates
from benchmarks.fleet.frames import make_frames, stored
from benchmarks.fleet.simulator import Pool, simulate, steady
from benchmarks.others import Others
from cloud_decoder.store.records import FrameState, StoredFrame
from cloud_decoder.store.store import Store
from tests.fleet.chaos.members import Member
from tests.support.cloud.postgres import Postgres

POLL_SECONDS = 0.25
STEP_SECONDS = 0.1
"""The frames of one step arrive together."""
OTHERS = 0.05
"""A round in which other processes used a larger share of the machine is not counted, unless all rounds are like
that."""
PREDICTED = ("seconds", "age_p50", "age_p95")


class Crew:
    """Workers that live through many runs, one on each core. Workers that a run does not use are suspended."""

    def __init__(self, settings: dict[str, object], folder: Path, store: Store, count: int) -> None:
        worker = {"role": "worker", "port": 0, "grpc_port": 0, "poll_seconds": POLL_SECONDS, "claim_frames": 4}
        cores = os.cpu_count() or 1
        self._members = [Member(f"worker-{n}", folder, n % cores, **settings | worker) for n in range(count)]
        self._store = store

    async def start(self) -> None:
        """Start all workers and wait until they are ready."""
        await asyncio.gather(*(member.start() for member in self._members))
        self._still()

    async def stop(self) -> None:
        """Stop all workers with SIGTERM."""
        for member in self._members:
            await member.stop()

    async def _wake(self, workers: int) -> None:
        """Resume this many workers, at random moments, so that they do not poll in step."""
        for member in self._members[:workers]:
            assert member.process is not None
            member.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(random.uniform(0, POLL_SECONDS))

    def _still(self) -> None:
        """Suspend all workers. None of them holds a lease between two runs."""
        for member in self._members:
            assert member.process is not None
            member.process.send_signal(signal.SIGSTOP)

    def _rows(self, count: int) -> list[StoredFrame]:
        """The newest ``count`` frames."""
        rows: list[StoredFrame] = []
        before: int | None = None
        while len(rows) < count:
            page = self._store.frames.page("", count - len(rows), before)
            rows += page.rows
            if page.next is None:
                break
            before = page.next
        return rows

    async def run(self, workers: int, data: list[bytes], rate: float = 0.0) -> dict[str, float]:
        """Decode ``data`` by this many workers, as a backlog or at ``rate`` frames a second, until the last frame is
        done."""
        await self._wake(workers)
        new = [stored(one) for one in data]
        step = max(1, int(rate * STEP_SECONDS)) if rate else len(new)
        begun = time.time()
        for start in range(0, len(new), step):
            if rate and (early := begun + start / rate - time.time()) > 0:
                await asyncio.sleep(early)
            await asyncio.to_thread(self._store.frames.add, new[start : start + step], time.time())
        while (backlog := await asyncio.to_thread(self._store.queue.waiting, time.time())).ready or backlog.leased:
            await asyncio.sleep(0.5)  # each query takes time from the workers' cores
        self._still()
        rows = await asyncio.to_thread(self._rows, len(new))
        assert all(row.state is FrameState.DONE for row in rows)
        ends = sorted((row.available_ms or 0) / 1000 for row in rows)
        # The start is left out, and so is the end, where some workers have no more work.
        first, last = len(ends) // 10, len(ends) * 8 // 10
        ages = [((row.available_ms or 0) - row.received_ms) / 1000 for row in rows]
        window = np.arange(first, last)
        stages = {
            name: statistics.mean((row.timings or {}).get(name, 0.0) for row in rows)
            for name in ("entropy", "synthesis", "image")
        }
        return stages | {
            # A line is fitted through all of them, because the first and last alone would be off by half a frame.
            "frames_per_second": float(np.polyfit(np.array(ends[first:last]) - begun, window, 1)[0]),
            "seconds": ends[-1] - begun,
            "age_p50": float(np.percentile(ages, 50)),
            "age_p95": float(np.percentile(ages, 95)),
        }


@dataclass(frozen=True)
class Round:
    """Measurements within half a minute of each other, so that their ratios hold on a machine with other work."""

    bare: float
    """Frames a second of one bare decoder on one core."""
    ceiling: float
    """The speed of two bare decoders on two cores, relative to one: the most that a second core can give."""
    one: dict[str, float]
    two: dict[str, float]
    said: dict[str, float]
    seen: dict[str, float]
    others: float
    """The share of the machine that other processes used."""

    @property
    def scaling(self) -> float:
        """The speed of two workers relative to one."""
        return self.two["frames_per_second"] / self.one["frames_per_second"]

    def __str__(self) -> str:
        off = max(abs(self.said[name] / self.seen[name] - 1) for name in PREDICTED)
        return (
            f"bare {self.bare:5.2f}/s, two {self.ceiling:.3f} times; worker {self.one['frames_per_second']:5.2f}/s, two"
            f" {self.scaling:.3f} times: {self.scaling / self.ceiling:.3f} of what the cores allow; simulated"
            f" {self.said['age_p50']:.2f} s of age, seen {self.seen['age_p50']:.2f} s, worst {100 * off:.1f} % off;"
            f" others took {100 * self.others:.1f} % of the machine"
        )


async def measure_workers(
    bundle: Bundle,
    server: Postgres,
    settings: dict[str, object],
    folder: Path,
    *,
    frames: int,
    rounds: int,
    seconds: float,
    load: float,
) -> dict[str, object]:
    """Run rounds in which bare decoders, one worker, two workers and the simulated run take turns.

    No round begins that would not end within ``seconds``.
    """
    url = server.fresh()
    store = Store(url)
    crew = Crew(settings | {"bundle": bundle.path, "database_url": url}, folder, store, 2)
    data = make_frames(bundle, 2 * frames)  # no frame occurs twice in a run, because equal bytes are decoded once
    (folder / "frames").mkdir()
    for number, one in enumerate(data):
        (folder / "frames" / f"{number:04}").write_bytes(one)
    bare = [BareDecoder(core, bundle.path, folder / "frames") for core in range(2)]
    await crew.start()
    await crew.run(2, data[: frames // 2])
    seen: list[Round] = []
    begun = time.monotonic()
    for number in range(rounds):
        if number and (time.monotonic() - begun) * (number + 1) / number > seconds:
            break
        seen.append(await _round(crew, bare, data, load))
        print(seen[-1], flush=True)
    for process in bare:
        process.stop()
    await crew.stop()
    store.close()
    return summary(bundle.name, seen)


async def _round(crew: Crew, bare: list[BareDecoder], data: list[bytes], load: float) -> Round:
    half, others = len(data) // 2, Others()
    seconds = half / 10
    alone = statistics.mean(rates([one], seconds / 2)[0] for one in bare)
    ceiling = sum(rates(bare, seconds)) / alone
    one = await crew.run(1, data[:half])
    two = await crew.run(2, data)  # the same number for each worker, so that start and end have the same weight
    rate = load * one["frames_per_second"]
    pool = Pool(
        workers=2,
        frame_seconds=1 / one["frames_per_second"],
        poll_seconds=POLL_SECONDS,
        contention=2 * one["frames_per_second"] / two["frames_per_second"] - 1,
        delivery_seconds=one["image"],
    )
    said = simulate(pool, steady(rate, len(data), STEP_SECONDS))
    seen = await crew.run(2, data, rate)
    predicted = {name: getattr(said, name) for name in PREDICTED}
    return Round(alone, ceiling, one, two, predicted, seen, others.share())


def summary(bundle: str, all_seen: list[Round]) -> dict[str, object]:
    """Medians over the counted rounds, and the ratios of each round."""
    seen = [one for one in all_seen if one.others <= OTHERS] or all_seen

    def median(values: list[float], digits: int = 3) -> float:
        return round(statistics.median(values), digits)

    ratios = {name: [one.said[name] / one.seen[name] for one in seen] for name in PREDICTED}
    errors = {name: round(abs(statistics.median(each) - 1), 3) for name, each in ratios.items()}
    return {
        "bundle": bundle,
        "bare_frames_per_second": median([one.bare for one in seen], 2),
        "one_worker_frames_per_second": median([one.one["frames_per_second"] for one in seen], 2),
        "two_workers_frames_per_second": median([one.two["frames_per_second"] for one in seen], 2),
        "scaling": median([one.scaling for one in seen]),
        "ceiling": median([one.ceiling for one in seen]),
        "scaling_of_ceiling": median([one.scaling / one.ceiling for one in seen]),
        "one_worker_of_bare": median([one.one["frames_per_second"] / one.bare for one in seen]),
        "rounds": [
            {name: round(getattr(one, name), 3) for name in ("scaling", "ceiling", "others")} for one in all_seen
        ],
        "undisturbed_rounds": sum(one.others <= OTHERS for one in all_seen),
        "stage_seconds": {
            name: median([one.one[name] for one in seen], 5) for name in ("entropy", "synthesis", "image")
        },
        "predicted_and_measured_last": {
            name: [round(seen[-1].said[name], 3), round(seen[-1].seen[name], 3)] for name in PREDICTED
        },
        "prediction_errors": errors,
        "prediction_error_worst": max(errors.values()),
    }
