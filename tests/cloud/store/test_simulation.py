"""Scenarios of the cloud's store (simulation.py): some here, more by `make simulate SCENARIOS=n`.

Six bugs are planted and must be caught; the first three were in an earlier release:

- a result is recorded without looking at the lease, so that a worker that wakes late undoes the work of another one
- a claim counts as an attempt, so that restarts put good frames into quarantine
- retention trusts the wall clock
- frames are acknowledged although their commit has failed
- the commit of received frames is not durable, which only a power cut shows
- bitstreams are removed without a period of grace
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.clock import TrustedClock
from cloud_decoder.store.database import Database
from cloud_decoder.store.frames import Frames
from cloud_decoder.store.queue import JobQueue
from cloud_decoder.store.records import Added, Lease, LeasedFrame, NewFrame
from cloud_decoder.store.retention import Retention
from cloud_decoder.store.schema import jobs
from tests.cloud.store.faulty import Stores
from tests.cloud.store.simulation import Broken, Scenario, run_scenario
from tests.support.cloud.postgres import Postgres

SCENARIOS = 100
"""A scenario takes a fifth of a second of a calm core, most of it in SQLAlchemy."""
PLANTED = 300
"""Scenarios in which a planted bug must show itself."""
Run = Callable[[int], Scenario]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    stores, numbers = Stores(tmp_path), itertools.count()

    def one(seed: int) -> Scenario:
        folder = tmp_path / f"scenario-{next(numbers)}"
        folder.mkdir()
        return run_scenario(seed, stores, folder)

    return one


def test_scenarios_keep_every_promise(run: Run) -> None:
    scenarios = [run(seed) for seed in range(SCENARIOS)]
    assert sum(one.deaths for one in scenarios) > SCENARIOS  # the faults happen
    assert sum(one.cuts for one in scenarios) > SCENARIOS / 4 and sum(one.late for one in scenarios) > SCENARIOS / 4
    assert sum(len(one.marked) for one in scenarios) > SCENARIOS / 4


def test_scenarios_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    stores = Stores(tmp_path, postgres.fresh())
    for seed in range(10):
        run_scenario(seed, stores, tmp_path)


def without_fencing(patch: pytest.MonkeyPatch) -> None:
    def end(self: JobQueue, connection: sa.Connection, leases: list[Lease]) -> set[int]:
        seqs = [lease.seq for lease in leases]
        connection.execute(sa.delete(jobs).where(jobs.c.seq.in_(seqs)))
        return set(seqs)

    patch.setattr(JobQueue, "_end", end)


def claims_are_attempts(patch: pytest.MonkeyPatch) -> None:
    lease = JobQueue._lease

    def counting(self: JobQueue, connection: sa.Connection, *rest: Any) -> list[LeasedFrame]:
        claimed = lease(self, connection, *rest)
        seqs = [one.row.seq for one in claimed]
        connection.execute(sa.update(jobs).where(jobs.c.seq.in_(seqs)).values(attempts=jobs.c.attempts + 1))
        return claimed

    patch.setattr(JobQueue, "_lease", counting)


def trust_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TrustedClock, "_judge", lambda *_: "")


def acknowledge_anyway(patch: pytest.MonkeyPatch) -> None:
    add = Frames.add

    def careless(self: Frames, new: list[NewFrame], *rest: Any, **more: Any) -> list[Added]:
        try:
            return add(self, new, *rest, **more)
        except StoreUnavailable:
            return [Added.STORED] * len(new)

    patch.setattr(Frames, "add", careless)


def never_durable(patch: pytest.MonkeyPatch) -> None:
    write = Database.write

    @contextmanager
    def careless(self: Database, durable: bool = True) -> Iterator[sa.Connection]:
        with write(self, False) as connection:
            yield connection

    patch.setattr(Database, "write", careless)
    patch.setattr(Scenario, "_log_bytes", lambda self: 0)  # nothing was synced since the start


def without_grace(patch: pytest.MonkeyPatch) -> None:
    remove = Retention.remove
    patch.setattr(Retention, "remove", lambda self, *, before_ms: remove(self, before_ms=2**62))


@pytest.mark.parametrize(
    ("plant", "first"),  # the first seed that is tried; the next ones follow until one shows the bug
    [
        (without_fencing, 7),
        (claims_are_attempts, 0),
        (trust_the_wall_clock, 73),
        (acknowledge_anyway, 0),
        (never_durable, 0),
        (without_grace, 0),
    ],
)
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], first: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match="seed"):
        for seed in range(first, first + PLANTED):
            run(seed)
