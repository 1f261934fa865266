"""Scenarios of several processes that share a store while their clock is wrong by years: no frame looks too old."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloud_decoder.store.clock import DAY, SLACK_SECONDS, TrustedClock, accept
from cloud_decoder.store.store import NewFrame, Store
from tests.support.frames import NOW, stored_frame

ROUND_SECONDS = 60.0
"""Between two looks of a process (cloud_decoder/lifecycle/maintenance.py)."""
STEPS = 25


class World:
    """True time, a wall clock that is wrong by ``offset``, and processes, each with its trusted clock."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.chance = store, random.Random(seed)
        self.true, self.offset = NOW, 0.0
        self.processes: list[TrustedClock] = []
        self.arrived: list[tuple[NewFrame, float]] = []
        store.database.clock = lambda: self.true + self.offset  # type: ignore[method-assign]  # another clock for the test
        self.start()

    def start(self) -> None:
        clock = TrustedClock(self.store.database, 7 * DAY, steady=lambda: self.true)
        clock.look()
        self.true += 1.0
        for other in self.processes:
            other.look()
        self.processes.append(clock)

    def kill(self) -> None:
        if self.processes:
            self.processes.remove(self.chance.choice(self.processes))

    def off(self) -> None:
        self.processes.clear()
        self.true += self.chance.choice([600.0, DAY, 20 * DAY])
        self.start()

    def step_the_clock(self) -> None:
        self.offset = self.chance.choice([0.0, 0.0, 400 * DAY, -400 * DAY])

    def accept(self) -> None:
        """Each process looks, or is ended by the operator, before the clock is wrong again."""
        if not self.offset:
            accept(self.store.database)
            self.frame()
            self.kill()
            self.start()
            self.run()

    def frame(self) -> None:
        if self.processes:
            self.store.frames.add([new := stored_frame()], NOW, received=self.chance.choice(self.processes).now())
            self.arrived.append((new, self.true))

    def run(self) -> None:
        """For a while, in which each process looks once a minute and frames may arrive."""
        arrive = self.chance.random() < 0.5
        for _ in range(self.chance.choice([1, 3, 30])):
            self.true += ROUND_SECONDS / 2
            if arrive:
                self.frame()
            self.true += ROUND_SECONDS / 2
            for clock in self.chance.sample(self.processes, len(self.processes)):
                clock.look()

    def check(self) -> None:
        """What retention would see in each process that trusts its clock."""
        for clock in self.processes:
            if not clock.problem:
                for new, at in self.arrived:
                    row = self.store.frames.get(new.tenant, new.id)
                    assert row is not None
                    too_old = clock.now() - row.received_ms / 1000 - (self.true - at)
                    assert too_old < SLACK_SECONDS + 2 * ROUND_SECONDS, f"{too_old:.0f} s"


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 24])
def test_no_frame_looks_older_than_it_is(tmp_path: Path, seed: int) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    world = World(store, seed)
    steps = [world.start, world.kill, world.off, world.step_the_clock, world.accept, world.frame, world.run, world.run]
    for _ in range(STEPS):
        world.chance.choice(steps)()
        world.check()
    world.offset = 0.0
    world.start()
    world.accept()
    world.run()
    assert all(not clock.problem for clock in world.processes)
    world.check()
    store.close()
