"""The simulator against what queueing theory and arithmetic know."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.fleet.simulator import Costs, Pool, plan, random, simulate, steady, workers_needed
from tests.support.roots import ROOT


def test_a_backlog_takes_as_long_as_its_work() -> None:
    outcome = simulate(Pool(4, 0.5, poll_seconds=0), np.zeros(80))
    assert outcome.seconds == 10.0 and outcome.busy == 1.0 and outcome.batches == 80


def test_an_overloaded_pool_falls_behind_by_the_difference() -> None:
    outcome = simulate(Pool(1, 0.1, poll_seconds=0), steady(20.0, 400))
    assert outcome.frames_per_second == pytest.approx(10, rel=0.01)
    assert outcome.age_p50 == pytest.approx(10.1, rel=0.02)


def test_batches_fill_by_themselves_under_load() -> None:
    idle = simulate(Pool(1, 0.01, batch=8, batch_seconds=0.1, poll_seconds=0), random(1.0, 300))
    loaded = simulate(Pool(1, 0.01, batch=8, batch_seconds=0.1, poll_seconds=0), random(30.0, 3000))
    assert 300 / idle.batches < 1.2 and 3000 / loaded.batches > 3


def test_one_server_waits_as_the_formula_says() -> None:
    """M/D/1 at a load of 0.8: the mean wait is rho / (2 (1 - rho)) services, so 2."""
    arrivals = random(0.8, 200_000)
    outcome = simulate(Pool(1, 1.0, poll_seconds=0), arrivals)
    assert outcome.busy == pytest.approx(0.8, abs=0.01)
    assert 2.0 < outcome.age_p50 < 3.2  # the median of 1 + wait; its mean is 3


def test_workers_that_share_a_core_are_as_slow_as_they_were_measured() -> None:
    """Two threads of one core that together do 1.25 times what one does."""
    alone = simulate(Pool(1, 0.1, poll_seconds=0), np.zeros(400))
    both = simulate(Pool(2, 0.1, poll_seconds=0, contention=2 / 1.25 - 1), np.zeros(400))
    assert both.frames_per_second / alone.frames_per_second == pytest.approx(1.25, rel=0.01)
    calm = simulate(Pool(2, 0.1, poll_seconds=0, contention=0.6), steady(1.0, 100))
    assert calm.age_p95 == pytest.approx(0.1)  # no other worker is busy


def test_the_least_number_is_the_least() -> None:
    pool, outcome = workers_needed(Pool(1, 0.1, poll_seconds=0.05), 50.0, target_seconds=0.5, frames=3000)
    assert outcome.age_p95 <= 0.5 and 5 <= pool.workers <= 8
    fewer = simulate(Pool(pool.workers - 1, 0.1, poll_seconds=0.05), random(50.0, 3000))
    assert fewer.age_p95 > 0.5 or fewer.busy > 0.98


def test_more_cameras_ask_for_more_of_everything() -> None:
    costs = Costs(database_cpu_seconds=0.0002, log_bytes=5000, stored_bytes=3000)
    plans = [plan(n, 10.0, 2.0, Pool(1, 0.02, 8, 0.02), costs, 2.0) for n in (1000, 1_000_000)]
    assert plans[0]["partitions"] == 1 and plans[1]["partitions"] > 1
    assert plans[1]["gpus"] > 100 * plans[0]["gpus"]
    assert plans[1]["cost_per_million_frames"] <= plans[0]["cost_per_million_frames"]


def test_the_command_ends_with_one_json_line() -> None:
    command = [sys.executable, "-m", "aeic_tools.cli", "simulate", "fleet", "--cameras", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["one_database_frames_per_second"] > 1000 and result["plans"][0]["gpus"] >= 1
