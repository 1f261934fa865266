"""Scenarios of the cloud's store, made from a seed: workers stall, die and wake late, clocks jump, commits fail.

A scenario is a script of frames that arrive, workers that claim, decode, finish and fail them, callers that ask again,
and rounds of retention. Meanwhile the store refuses a statement or a commit, an answer is lost after its commit, the
machine stops (a power cut loses the commits that were not durable), and the wall clock is wrong by seconds or years.
Some frames are poison: they end the worker that decodes them. Others are damaged. At the end everything works again,
the queue is emptied, and this must hold:

- every frame that was acknowledged is there, and its bytes are those that arrived, unless retention removed them
- a good frame is decoded and never in quarantine; a poison or damaged frame ends there
- ``done`` never turns into ``failed`` or ``received``
- a result is recorded once, and under a lease that held
- retention marks no frame that is young in truth, and removes none before the period of grace is over
- the counters are those of a full scan

Time is simulated, and everything runs in one thread, so a seed always makes the same scenario.

    python -m tests.cloud.store.simulation --scenarios 1000 --seed 1 [--postgresql]      (make simulate SCENARIOS=1000)
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.clock import DAY
from cloud_decoder.store.records import Added, DecodeResult, FrameState, LeasedFrame, NewFrame, StoredFrame
from cloud_decoder.store.schema import frames, jobs, source_tallies, tallies
from cloud_decoder.store.store import Store
from tests.cloud.store.faulty import NOW, Lost, Machine, Stores
from tests.support.frames import stored_frame

MAX_ATTEMPTS = 3
LEASE_SECONDS = 60.0
RETENTION_SECONDS = 2 * DAY
GRACE_SECONDS = DAY
JUMPS = (400 * DAY, -400 * DAY, 90 * DAY, 12 * DAY, 7200.0, -7200.0, 2.5)
ERROR_SECONDS = DAY / 2
"""By how much an age may be wrong: jumps of some hours are accepted in the end."""
REPORTED_SCENARIOS = 500  # between two lines of progress
WORKERS = ("north", "south", "south-2")
_ALLOWED = {  # what a reader may see next, besides the same
    "received": {"done", "failed"},
    "done": {"pruned"},
    "failed": {"received", "pruned"},
    "pruned": {"done", "failed"},
}


_STATES = sa.select(frames.c.id, frames.c.state, frames.c.reason, frames.c.bitstream.is_(None).label("empty"))


class Broken(AssertionError):
    """A promise was broken; the message has the seed."""


@dataclasses.dataclass
class Held:
    """A claimed frame in a worker; ``begun`` once its attempt is counted, ``ended`` once it was decoded."""

    frame: LeasedFrame
    begun: bool = False
    ended: bool = False


@dataclasses.dataclass
class Worker:
    """A worker process. It sleeps until ``wakes`` (true time) and then goes on as if nothing had happened."""

    name: str
    held: list[Held] = dataclasses.field(default_factory=list)
    owed: list[Callable[[], object]] = dataclasses.field(default_factory=list)
    wakes: float = 0.0


class Scenario(Machine):
    """One scenario; ``run()`` raises :class:`Broken`. ``trace`` is what happened, for people."""

    def __init__(self, seed: int, open_store: Callable[[Path], Store], folder: Path) -> None:
        super().__init__(random.Random(seed), open_store, folder)
        self.seed, self.trace = seed, list[str]()
        self.workers = [Worker(name) for name in WORKERS]
        self.offered: dict[UUID, NewFrame] = {}
        self.promised: set[UUID] = set()
        self.poison: set[UUID] = set()
        self.damaged: set[UUID] = set()
        self.arrived: dict[UUID, float] = {}  # true time at which it was stored
        self.marked: dict[UUID, float] = {}
        self.results: Counter[int] = Counter()
        self.demanded: Counter[int] = Counter()
        self.seen: dict[UUID, str] = {}
        self.kills_left = 1
        self.begun: defaultdict[UUID, set[str]] = defaultdict(set)
        """Leases under which a frame was begun and not returned. A good one may be in quarantine only after several:
        each time its worker died, or slept until the lease had run out."""
        self.deaths = self.cuts = self.late = 0
        self._token = 0

    def power_cut(self) -> None:
        """The machine stops: all workers are gone, and so may be every commit that was not durable."""
        self.cuts += 1
        self.fails_in = None
        for worker in self.workers:
            self.kill(worker)
        self.lose_power()
        if self.rng.random() < 0.4:
            self.error = self.rng.choice((0.0, *JUMPS))
        self.pass_time(self.rng.choice((5.0, 3600.0, 3 * DAY)))
        for worker in self.workers:
            if self.rng.random() < 0.7:  # the others' leases run out
                self.store.queue.recover(worker.name)
        self.look()

    def kill(self, worker: Worker) -> None:
        """kill -9 of one worker. It is started again by another action."""
        self.deaths += bool(worker.held)
        worker.held, worker.owed, worker.wakes = [], [], 0.0

    # -- the script -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole scenario."""
        self.look()
        actions: list[tuple[Callable[[], None], int]] = [
            (self.ingest, 20),
            (self.claim, 20),
            (self.decode, 30),
            (self.settle, 20),
            (self.renew, 4),
            (self.stall, 5),
            (self.die, 4),
            (self.let_go, 3),
            (self.demand, 4),
            (self.maintain, 16),
            (self.wait, 14),
            (self.jump, 3),
            (self.power_cut, 2),
            (self.undelete, 1),
        ]
        for _ in range(self.rng.randrange(25, 70)):
            (action,) = self.rng.choices([one for one, _ in actions], [weight for _, weight in actions])
            if self.rng.random() < 0.08:
                self.fails_in = self.rng.randrange(6)
            self.lose_next = self.rng.random() < 0.04
            try:
                action()
                self.note(action.__name__)
            except StoreUnavailable as error:
                self.note(f"{action.__name__}: {error}")
            except Lost:
                self.note(f"{action.__name__}: the answer was lost")
            self.fails_in, self.lose_next = None, False
            self.watch()
        self.end()

    def ingest(self) -> None:
        new = []
        for _ in range(self.rng.randrange(1, 6)):
            if self.offered and self.rng.random() < 0.15:  # the edge sends it again
                new.append(self.rng.choice(list(self.offered.values())))
                continue
            kind = self.rng.choices(("good", "poison", "damaged"), (90, 5, 5))[0]
            frame = stored_frame(
                self.rng.randbytes(60),
                UUID(int=self.rng.getrandbits(128)),
                source=f"camera-{self.rng.randrange(3)}",
                priority=self.rng.randrange(3),
                wanted=self.rng.random() < 0.9,
            )
            self.offered[frame.id] = frame
            {"good": set(), "poison": self.poison, "damaged": self.damaged}[kind].add(frame.id)
            self.arrived.setdefault(frame.id, self.truth)
            new.append(frame)
        store = self.store
        added = self.call(lambda: store.frames.add(new, store.clock(), received=store.trusted_clock.now()))
        if Added.CONFLICT in added:
            raise Broken("the same bytes are a conflict")
        self.promised |= {frame.id for frame in new}

    def claim(self) -> None:
        if (worker := self._awake()) is None:
            return
        arguments = (self.rng.randrange(1, 9), self.store.clock(), LEASE_SECONDS, MAX_ATTEMPTS)
        alike = self.rng.random() < 0.5
        claimed = self.call(lambda: self.store.queue.claim(worker.name, "abcdef", *arguments, alike=alike))
        for one in claimed:
            if one.bitstream != self.offered[one.row.id].bitstream:
                raise Broken("a claimed frame has other bytes")
            worker.held = [held for held in worker.held if held.frame.row.seq != one.row.seq]
            worker.held.append(Held(one))

    def decode(self) -> None:
        """Decode some of the frames that are held, suspects alone. A poison frame ends the worker."""
        worker = self._awake()
        if worker is None or not (ready := [held for held in worker.held if not held.ended]):
            return
        suspect = bool(ready[0].frame.row.attempts)
        group = ready[:1] if suspect else [held for held in ready if not held.frame.row.attempts][:4]
        for held in group:
            self.begun[held.frame.row.id].add(held.frame.lease.token)
        if suspect:  # what was decoded before it is recorded first
            self._settle(worker)
            try:
                self.call(self._beginning(group))
            except Lost:
                group[0].begun = True  # as far as the store knows
                raise
        else:
            with suppress(StoreUnavailable, Lost):  # an attempt less is counted
                self.call(self._beginning(group))
        for held in group:
            held.begun = True
        if any(held.frame.row.id in self.poison for held in group):
            self.kill(worker)
        elif self.kills_left and self.rng.random() < 0.03:
            self.kills_left -= 1
            self.kill(worker)
        else:
            for held in group:
                held.ended = True
            if suspect:
                self._settle(worker)

    def _beginning(self, group: list[Held]) -> Callable[[], None]:
        return lambda: self.store.queue.begin([held.frame.lease for held in group])

    def settle(self) -> None:
        """Record what was decoded. What the store cannot take now is repeated later."""
        if worker := self._awake():
            self._settle(worker)

    def _settle(self, worker: Worker) -> None:
        while worker.owed:
            worker.owed[0]()
            worker.owed.pop(0)
        ended = [held for held in worker.held if held.ended]
        worker.held = [held for held in worker.held if not held.ended]
        bad = [held for held in ended if held.frame.row.id in self.damaged]
        good = [held for held in ended if held.frame.row.id not in self.damaged]
        for held in bad:
            worker.owed.append(self._failing(held))
        if good:
            worker.owed.append(self._finishing(good))
        while worker.owed:
            self.call(worker.owed[0])
            worker.owed.pop(0)

    def _finishing(self, done: list[Held]) -> Callable[[], object]:
        self._token += 1
        results = [DecodeResult(held.frame.lease, f"{self._token:064d}", {}) for held in done]
        seqs = {result.lease.seq for result in results}

        def finish() -> None:
            lost = self.store.queue.finish(results, self.store.clock())
            self.late += len(lost)
            self.results.update(seqs - lost)

        return finish

    def _failing(self, held: Held) -> Callable[[], object]:
        return lambda: self.store.queue.fail([held.frame.lease], "Damaged")

    def renew(self) -> None:
        if worker := self._awake():
            leases = [held.frame.lease for held in worker.held]
            self.call(lambda: self.store.queue.renew(leases, self.store.clock() + LEASE_SECONDS))

    def stall(self) -> None:
        """A worker stops for some time and goes on with leases that may have run out."""
        self.rng.choice(self.workers).wakes = self.truth + self.rng.choice((30.0, 90.0, 600.0, 2 * DAY))

    def die(self) -> None:
        worker = self.rng.choice(self.workers)
        if any(held.begun for held in worker.held):
            if not self.kills_left:
                return
            self.kills_left -= 1
        self.kill(worker)
        if self.rng.random() < 0.6:  # it is started again at once
            self.call(lambda: self.store.queue.recover(worker.name))

    def let_go(self) -> None:
        """A worker stops gently: it returns what it holds."""
        if worker := self._awake():
            held, worker.held = worker.held, []
            until = self.store.clock() + 10 if self.rng.random() < 0.3 else None
            leases = [one.frame.lease for one in held]
            self.call(functools.partial(self.store.queue.release, leases, until=until))
            for one in held:
                self.begun[one.frame.row.id].discard(one.frame.lease.token)

    def demand(self) -> None:
        if self.offered:
            id = self.rng.choice(list(self.offered))
            row = self.store.frames.get("", id)
            if row and row.state is FrameState.DONE:
                self.demanded[row.seq] += 1
            self.call(lambda: self.store.queue.demand("", id, self.store.clock()))

    def maintain(self) -> None:
        """A round of the service's maintenance."""
        store, clock = self.store, self.store.trusted_clock
        now_ms = int(self.call(clock.look) * 1000)
        if clock.problem:
            return
        older = now_ms - int(RETENTION_SECONDS * 1000)
        self.call(lambda: store.retention.mark(now_ms, older_than_ms=older))
        self.watch()
        self.call(lambda: store.retention.remove(before_ms=now_ms - int(GRACE_SECONDS * 1000)))

    def undelete(self) -> None:
        self.call(self.store.retention.undelete)

    def wait(self) -> None:
        self.pass_time(self.rng.choice((1.0, 20.0, 61.0, 600.0, 4000.0, DAY, 4 * DAY)))
        if self.rng.random() < 0.3:  # a time server corrects the clock
            self.error = 0.0

    def jump(self) -> None:
        """The wall clock becomes wrong, or right again."""
        self.error = 0.0 if self.error and self.rng.random() < 0.7 else self.rng.choice(JUMPS)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Compare the states of all frames with those of the last time."""
        with self.store.database.read() as connection:
            rows = connection.execute(_STATES).all()
        for row in rows:
            before = self.seen.get(row.id, "received")
            if row.state != before and row.state not in _ALLOWED[before]:
                raise Broken(f"frame {row.id} was {before} and is {row.state}")
            if row.state == "failed" and not self._may_fail(row.id):
                raise Broken(f"the good frame {row.id} is in quarantine: {row.reason}")
            if row.state == "pruned" and before != "pruned":
                self.marked[row.id] = self.truth
                if self.truth - self.arrived[row.id] < RETENTION_SECONDS - ERROR_SECONDS:
                    raise Broken(
                        f"frame {row.id} was marked {self.truth - self.arrived[row.id]:.0f} s after it arrived"
                    )
            if row.empty and row.state != "pruned":
                raise Broken(f"frame {row.id} is {row.state} and has no bitstream")
            if row.empty and before == "pruned" and self.truth - self.marked[row.id] < GRACE_SECONDS - 7200:
                raise Broken(f"frame {row.id} was removed before its grace was over")
            self.seen[row.id] = row.state
        missing = self.promised - {row.id for row in rows}
        if missing:
            raise Broken(f"{len(missing)} acknowledged frames are gone")

    def end(self) -> None:
        """Everything works again: empty the queue, then look at every frame."""
        self.error, self.kills_left = 0.0, 0
        for worker in self.workers:
            worker.wakes = 0.0
            self.settle_all(worker)
        self.pass_time(LEASE_SECONDS * 3 + 500 * DAY if self.rng.random() < 0.1 else LEASE_SECONDS * 3)
        with self.store.database.write() as connection:  # leases that were taken while the clock was ahead
            connection.execute(
                sa.update(jobs).where(jobs.c.lease_until > self.truth).values(lease_until=self.truth - 1)
            )
        for id in self.promised:
            self.store.queue.demand("", id, self.store.clock())
        worker = self.workers[0]
        for _ in range(400):
            if not self.store.queue.waiting(self.store.clock()).ready and not worker.held and not self._leases():
                break
            claimed = self.store.queue.claim(worker.name, "abcdef", 50, self.store.clock(), LEASE_SECONDS, MAX_ATTEMPTS)
            worker.held += [Held(one) for one in claimed]
            while any(not held.ended for held in worker.held):
                self.decode_by(worker)
            self.settle_all(worker)
            self.pass_time(LEASE_SECONDS + 1)
            self.watch()
        self.check()

    def decode_by(self, worker: Worker) -> None:
        others = [one for one in self.workers if one is not worker]
        for one in others:
            one.wakes = self.truth + 1e9
        self.decode()
        for one in others:
            one.wakes = 0.0

    def settle_all(self, worker: Worker) -> None:
        for one in self.workers:
            one.wakes = 0.0 if one is worker else self.truth + 1e9
        self.settle()
        for one in self.workers:
            one.wakes = 0.0

    def check(self) -> None:
        for id in self.promised:
            row = self.store.frames.get("", id)
            assert row is not None, "watch() has looked"
            self._check_frame(row)
        with self.store.database.read() as connection:
            counted = connection.execute(
                sa.select(frames.c.state, sa.func.count(), sa.func.sum(frames.c.bytes)).group_by(frames.c.state)
            ).all()
            told = connection.execute(
                sa.select(tallies.c.state, sa.func.sum(tallies.c.frames), sa.func.sum(tallies.c.bytes)).group_by(
                    tallies.c.state
                )
            ).all()
            waiting = sa.and_(frames.c.state == "received", frames.c.wanted)
            waits = connection.execute(
                sa.select(frames.c.source, sa.func.count()).where(waiting).group_by(frames.c.source)
            ).all()
            sums = sa.func.sum(source_tallies.c.waiting)
            told_waits = connection.execute(
                sa.select(source_tallies.c.source, sums).group_by(source_tallies.c.source)
            ).all()
        if {tuple(row) for row in counted} != {tuple(row) for row in told if row[1]}:
            raise Broken(f"the counters say {told}, and there are {counted}")
        if {tuple(row) for row in waits} != {tuple(row) for row in told_waits if row[1]}:
            raise Broken(f"the sources' counters say {told_waits}, and {waits} wait")

    def _check_frame(self, row: StoredFrame) -> None:
        bad = row.id in self.poison | self.damaged
        expected = {FrameState.PRUNED} if bad else {FrameState.DONE, FrameState.PRUNED}
        if self._may_fail(row.id):
            expected.add(FrameState.FAILED)
        if row.state not in expected:
            raise Broken(f"frame {row.id} ends as {row.state.value}{', and it is bad' if bad else ''}")
        stored = self.store.frames.bitstream("", row.id)
        if row.state is not FrameState.PRUNED and stored != self.offered[row.id].bitstream:
            raise Broken(f"frame {row.id} has other bytes")
        if self.results[row.seq] > 1 + self.demanded[row.seq] + 1:  # one more demand at the end
            raise Broken(f"{self.results[row.seq]} results of frame {row.id} were recorded")

    def _may_fail(self, id: UUID) -> bool:
        return id in self.poison | self.damaged or len(self.begun[id]) >= MAX_ATTEMPTS

    # -- small things -----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.trace.append(f"{self.truth - NOW:10.0f} {self.error:+12.0f} {text}")

    def _leases(self) -> bool:
        with self.store.database.read() as connection:
            query = sa.select(sa.exists().where(jobs.c.lease_until.is_not(None)))
            return bool(connection.scalar(query))

    def _awake(self) -> Worker | None:
        awake = [worker for worker in self.workers if worker.wakes <= self.truth]
        return self.rng.choice(awake) if awake else None


def run_scenario(seed: int, stores: Callable[[Path], Store], folder: Path) -> Scenario:
    """Run one scenario in an empty folder; :class:`Broken`, with the seed and the trace, when it breaks a promise."""
    scenario = Scenario(seed, stores, folder)
    try:
        scenario.run()
    except Exception as error:
        raise Broken(f"seed {seed}: {error!r}\n" + "\n".join(scenario.trace)) from error
    finally:
        scenario.store.close()
    return scenario


def main() -> int:
    """Run scenarios, print what they met, and end with 1 at the first broken promise."""
    parser = argparse.ArgumentParser(description="Scenarios of the cloud's store with faults of every kind.")
    parser.add_argument("--scenarios", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the first scenario; by default from the clock")
    parser.add_argument("--postgresql", action="store_true", help="on PostgreSQL (Debian: postgresql), not SQLite")
    given = parser.parse_args()
    first = time.time_ns() % 1_000_000_000 if given.seed is None else given.seed
    logging.disable(logging.CRITICAL)
    met: Counter[str] = Counter()
    print(f"seeds {first} to {first + given.scenarios - 1}", flush=True)
    server = None
    if given.postgresql:
        from tests.support.cloud.postgres import Postgres

        server = Postgres().start()
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
            stores = Stores(Path(name), server.fresh() if server else None)
            for seed in range(first, first + given.scenarios):
                folder = Path(name) / f"scenario-{seed}"
                folder.mkdir()
                try:
                    scenario = run_scenario(seed, stores, folder)
                except Broken as broken:
                    print(broken)
                    return 1
                shutil.rmtree(folder)
                met["acknowledged"] += len(scenario.promised)
                met["deaths"] += scenario.deaths
                met["power cuts"] += scenario.cuts
                met["late results"] += scenario.late
                met["marked by retention"] += len(scenario.marked)
                if (done := seed - first + 1) % REPORTED_SCENARIOS == 0:
                    print(f"{done} of {given.scenarios} scenarios", flush=True)
    finally:
        if server:
            server.stop()
    print(", ".join(f"{name}: {count}" for name, count in sorted(met.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
