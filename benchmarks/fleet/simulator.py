"""Simulates a fleet: the GPUs and the database that many cameras need, from stage times measured on this machine.

    aeic simulate fleet [--cameras 1000 10000 100000 1000000] [--interval 10] [--frame-seconds 0.02]
                        [--stages benchmarks/results/fleet.json] [--target-seconds 5]

The model is a queue in order of arrival, and workers that take a batch whenever they are free, as the real ones do. One
event is one batch, so ten thousand workers can be simulated. The database is a budget of CPU seconds and log bytes per
frame, measured by ``aeic bench fleet``, which also compares this model with a real run. What is not measured is an
argument: seconds per frame of a GPU, prices in any one currency, cores of the database. The last line is one JSON
object; its costs are in the currency of the prices.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = 0.7
"""The share of a server's capacity that a plan may use. Beyond it, waiting times grow without bound."""
HOUR, DAY = 3600, 86400
CONNECTIONS = 3
"""Database connections of a busy worker. A connection pooler allows more workers."""


@dataclass(frozen=True)
class Pool:
    """A pool of workers. A batch takes ``batch_seconds`` plus ``frame_seconds`` for each of its frames."""

    workers: int
    frame_seconds: float
    batch: int = 1
    batch_seconds: float = 0.0
    poll_seconds: float = 0.25
    contention: float = 0.0
    """The share by which each other busy worker slows a worker down. It is 0 if each worker has its own device and the
    database its own machine, and above 0 if they share cores."""
    delivery_seconds: float = 0.0
    """Time from the end of a batch until its pictures are available. The worker already runs the next batch then."""


@dataclass(frozen=True)
class Outcome:
    """The result of one run: ages from arrival to picture in seconds; ``busy`` is the share of time that workers
    worked."""

    seconds: float
    frames_per_second: float
    age_p50: float
    age_p95: float
    busy: float
    batches: int


@dataclass(frozen=True)
class Costs:
    """The database resources that a frame needs (measured), and prices (given as arguments)."""

    database_cpu_seconds: float
    log_bytes: float
    stored_bytes: float
    database_cores: int = 16
    database_log_bytes: float = 150e6
    database_clients: int = 2000
    gpu_hour: float = 2.0
    core_hour: float = 0.05
    gigabyte_month: float = 0.1
    retention_days: float = 30.0


def steady(rate: float, frames: int, step_seconds: float = 0.0) -> NDArray[np.float64]:
    """Arrival times at ``rate`` a second. With ``step_seconds``, the frames of each step arrive together."""
    if step_seconds:
        step = max(1, int(rate * step_seconds))
        return np.arange(frames) // step * step / rate
    return np.arange(frames) / rate


def random(rate: float, frames: int, seed: int = 0) -> NDArray[np.float64]:
    """Arrival times of many independent cameras."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, frames))


def simulate(pool: Pool, arrivals: NDArray[np.float64]) -> Outcome:
    """Pass every frame of ``arrivals`` (sorted, in seconds) through the pool."""
    free = [-math.inf] * pool.workers
    finished = np.empty(len(arrivals))
    taken, busy, batches = 0, 0.0, 0
    while taken < len(arrivals):
        now = heapq.heappop(free)
        if arrivals[taken] > now:  # all idle workers look every poll_seconds, and the first to look takes the frame
            now = float(arrivals[taken]) + pool.poll_seconds / (2 + _idle(free, float(arrivals[taken])))
        waiting = int(np.searchsorted(arrivals[taken : taken + pool.batch], now, side="right"))
        size = max(1, waiting)
        seconds = pool.batch_seconds + size * pool.frame_seconds
        if pool.contention:
            seconds *= 1 + pool.contention * sum(1 for other in free if other > now)
        finished[taken : taken + size] = now + seconds + pool.delivery_seconds
        heapq.heappush(free, now + seconds)
        taken, busy, batches = taken + size, busy + seconds, batches + 1
    ages = finished - arrivals
    end = float(finished.max())
    return Outcome(
        seconds=end,
        frames_per_second=len(arrivals) / end,
        age_p50=float(np.percentile(ages, 50)),
        age_p95=float(np.percentile(ages, 95)),
        busy=busy / (pool.workers * end),
        batches=batches,
    )


def _idle(free: list[float], now: float) -> int:
    """The number of other workers that are idle at ``now``. Only the first few hundred are counted, which is enough."""
    return sum(1 for other in free[:256] if other <= now)


def workers_needed(pool: Pool, rate: float, target_seconds: float, frames: int) -> tuple[Pool, Outcome]:
    """The smallest pool whose 95th percentile of age stays within the target at that rate."""
    per_frame = pool.frame_seconds + pool.batch_seconds / pool.batch
    low = max(1, math.ceil(rate * per_frame))
    arrivals = random(rate, frames)
    high = low
    while True:
        outcome = simulate(replace(pool, workers=high), arrivals)
        if outcome.age_p95 <= target_seconds and outcome.busy <= 0.98:
            break
        low, high = high + 1, math.ceil(high * 1.1) + 1
    while low < high:
        middle = (low + high) // 2
        found = simulate(replace(pool, workers=middle), arrivals)
        if found.age_p95 <= target_seconds and found.busy <= 0.98:
            high, outcome = middle, found
        else:
            low = middle + 1
    return replace(pool, workers=high), outcome


def plan(cameras: int, interval: float, peak: float, pool: Pool, costs: Costs, target: float) -> dict[str, Any]:
    """The resources for ``cameras`` that each send a frame every ``interval`` seconds, and ``peak`` times that in the
    worst hour."""
    mean = cameras / interval
    rate = mean * peak
    enough, outcome = workers_needed(pool, rate, target, frames=int(min(1_000_000, max(2000, rate * 60))))
    database = rate * costs.database_cpu_seconds
    asked = {
        "cores": database / (ROOM * costs.database_cores),
        "log": rate * costs.log_bytes / (ROOM * costs.database_log_bytes),
        "clients": enough.workers * CONNECTIONS / costs.database_clients,
    }
    limit = max(asked, key=lambda name: asked[name])
    partitions = max(1, math.ceil(asked[limit]))
    gpu_hours = mean * 1e6 / mean * (pool.frame_seconds + pool.batch_seconds / pool.batch) / HOUR / outcome.busy * peak
    stored = mean * DAY * costs.retention_days * costs.stored_bytes
    million_seconds = 1e6 / mean
    per_million = (
        gpu_hours * costs.gpu_hour
        + million_seconds / HOUR * partitions * costs.database_cores * costs.core_hour
        + 1e6 * costs.stored_bytes / 1e9 * costs.gigabyte_month * costs.retention_days / 30
    )
    return {
        "cameras": cameras,
        "frames_per_second_at_peak": round(rate, 1),
        "gpus": enough.workers,
        "gpus_busy": round(outcome.busy, 3),
        "age_p50_seconds": round(outcome.age_p50, 3),
        "age_p95_seconds": round(outcome.age_p95, 3),
        "mean_batch": round(outcome.frames_per_second * outcome.seconds / outcome.batches, 2),
        "claims_per_second": round(outcome.batches / outcome.seconds, 1),
        "database_cores_at_peak": round(database, 2),
        "log_megabytes_per_second": round(rate * costs.log_bytes / 1e6, 2),
        "stored_gigabytes": round(stored / 1e9, 1),
        "partitions": partitions,
        "partitioned_for": limit if partitions > 1 else None,
        "cost_per_million_frames": round(per_million, 2),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two frames of a camera")
    parser.add_argument("--peak", type=float, default=2.0, help="the worst hour, in means")
    parser.add_argument("--frame-seconds", type=float, default=0.02, help="of one frame on one GPU; not measured here")
    parser.add_argument("--batch-seconds", type=float, default=0.02, help="of a batch besides its frames")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--target-seconds", type=float, default=2.0, help="95 %% of the pictures are there by then")
    parser.add_argument("--stages", type=Path, default=Path(__file__).parents[1] / "results" / "fleet.json")
    parser.add_argument("--database-cores", type=int, default=16)
    parser.add_argument("--database-log-megabytes", type=float, default=150.0, help="a second, that its disk can write")
    parser.add_argument("--database-clients", type=int, default=2000, help="connections, with or without a pooler")
    parser.add_argument("--gpu-hour", type=float, default=2.0, help="price of a worker's hour, in any currency")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price, in the same currency")
    parser.add_argument("--gigabyte-month", type=float, default=0.1, help="price, in the same currency")
    parser.add_argument("--retention-days", type=float, default=30.0)
    arguments = parser.parse_args()
    stages = json.loads(arguments.stages.read_text())
    costs = Costs(
        **stages["database"],
        database_cores=arguments.database_cores,
        database_log_bytes=1e6 * arguments.database_log_megabytes,
        database_clients=arguments.database_clients,
        gpu_hour=arguments.gpu_hour,
        core_hour=arguments.core_hour,
        gigabyte_month=arguments.gigabyte_month,
        retention_days=arguments.retention_days,
    )
    pool = Pool(1, arguments.frame_seconds, arguments.batch, arguments.batch_seconds)
    plans = [
        plan(cameras, arguments.interval, arguments.peak, pool, costs, arguments.target_seconds)
        for cameras in arguments.cameras
    ]
    print("cameras    frames/s     GPUs  busy   age p95   DB cores  log MB/s  partitions  cost per million")
    for one in plans:
        print(
            f"{one['cameras']:>8} {one['frames_per_second_at_peak']:>10} {one['gpus']:>8} {one['gpus_busy']:>6}"
            f" {one['age_p95_seconds']:>8}s {one['database_cores_at_peak']:>9} {one['log_megabytes_per_second']:>9}"
            f" {one['partitions']:>10} {one['cost_per_million_frames']:>17}"
        )
    by_cores = ROOM * costs.database_cores / costs.database_cpu_seconds
    by_log = ROOM * costs.database_log_bytes / costs.log_bytes
    limit = min(by_cores, by_log)
    print(
        f"one PostgreSQL: {by_cores:.0f} frames/s by {costs.database_cores} cores, {by_log:.0f} frames/s by"
        f" {arguments.database_log_megabytes:.0f} MB/s of log; beyond, docs/how-to/fleet.md"
    )
    print(json.dumps({"simulation": "fleet", "one_database_frames_per_second": round(limit), "plans": plans}))


if __name__ == "__main__":
    main()
