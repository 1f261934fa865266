"""Scenarios of a spool, made from a seed: what is promised holds, whichever I/O step fails.

A scenario is a script of posts, encodings, deliveries, acknowledgements and restarts on a machine (faulty.py) that
stops, or whose disk fails or is full, at one step; the restart after a stop, and the recovery in it, is hit again at
another. Some disks are damaged while the machine is off. Then the faults end, everything is delivered, and this must
hold:

- every frame and received picture that was promised is delivered, or counted as lost with its reason
- nothing is lost without damage, and a flipped bit loses no more than the page around it
- nothing is delivered that was not posted, and nothing differs from what was posted
- the spool says that it cannot be written when it cannot, and that it can in the end

    python -m tests.edge.spool.simulation --scenarios 10000 --seed 1      (make simulate SCENARIOS=10000)
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import random
import sys
import tempfile
import time
import uuid
import zlib
from collections import Counter
from pathlib import Path

from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import ReceivedPicture, Record, State
from edge_encoder.spool.spool import Spool
from tests.edge.spool.faulty import Machine

FAULTS = ("kill", "power", "eio", "full", "once", "none")
DAMAGES = ("none", "none", "flip wal", "flip", "zero page", "truncate", "first page", "empty")
REPORTED_SCENARIOS = 500  # between two lines of progress
# What a flipped bit may cost: the records of one page, and the received pictures of one.
FLIP_LOSES = 16


class Broken(AssertionError):
    """A promise was broken; the message has the seed."""


@dataclasses.dataclass
class Scenario:
    """One scenario; `run()` raises Broken. `trace` is what happened, for people."""

    seed: int
    folder: Path
    trace: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.machine = Machine(self.rng)
        self.disks = 0
        self.place = self.folder / "0"
        self.spool: Spool | None = None
        self.posted: dict[uuid.UUID, Record] = {}  # every frame that may be delivered, promised or not
        self.received: dict[uuid.UUID, ReceivedPicture] = {}
        self.promised: set[uuid.UUID] = set()
        self.finished: set[uuid.UUID] = set()  # promised, and given up with a reason
        self.delivered: dict[uuid.UUID, bytes] = {}  # by the cloud, which keeps one of each id
        self.counted = 0
        self.damage = "none"
        self.stops = 0

    # -- the machine -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Starts the service until it is up; a machine that stops meanwhile starts from what is on its disk."""
        for _ in range(12):
            try:
                self.spool = Spool(self.place, system=self.machine)
                self.counted += self.spool.unreadable
                self.spool.unreadable = 0
                return
            except SpoolError as error:
                self.note(f"start failed: {error}")
                if self.machine.mode == "dead":
                    self.restart_machine()
                else:
                    self.machine.mend()
        raise Broken("the spool does not start")

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.counted += self.spool.unreadable
            self.spool = None

    def restart_machine(self) -> None:
        """What was on the disk when the machine stopped, on a machine that works."""
        self.stops += 1
        self.disks += 1
        place = self.folder / str(self.disks)
        self.machine.disk(self.place, place)
        self.close()
        self.place = place
        machine = Machine(self.rng)
        machine.wall = self.machine.wall + self.rng.choice([5.0, 90 * 86_400.0, -400 * 86_400.0])
        machine.start = f"boot-{self.disks}"
        self.machine = machine
        if self.damage == "none" and not self.counted and self.damage_planned != "none":
            self.do_damage()
        if self.stops < 4 and self.rng.random() < 0.7:  # and it is hit again while it starts
            machine.plan(self.rng.randrange(1, 120), self.rng.choice(FAULTS), torn=self.rng.random() < 0.5)
        self.note(f"machine restarted from disk {self.disks}")

    def do_damage(self) -> None:
        self.damage = self.damage_planned
        path, log = self.place / "spool.sqlite3", self.place / "spool.sqlite3-wal"
        target = log if self.damage == "flip wal" and log.exists() else path
        raw = bytearray(target.read_bytes()) if target.exists() else bytearray()
        # An empty database without a log beside it is also what a new spool begins with.
        if not raw or (self.damage == "empty" and (not log.exists() or log.stat().st_size < 4096)):
            self.damage = "none"
            return
        at = self.rng.randrange(len(raw))
        if self.damage.startswith("flip"):
            raw[at] ^= 1 << self.rng.randrange(8)
        elif self.damage == "zero page":
            raw[at // 4096 * 4096 :][:4096] = b""
            start = at // 4096 * 4096
            raw[start : start + 4096] = bytes(min(4096, len(raw) - start))
        elif self.damage == "truncate":
            del raw[at:]
        elif self.damage == "first page":
            raw[:4096] = self.rng.randbytes(min(4096, len(raw)))
        else:
            raw = bytearray()
        target.write_bytes(raw)
        self.note(f"damage: {self.damage} at {at} of {target.name}")

    # -- the script --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The whole scenario."""
        self.damage_planned = self.rng.choice(DAMAGES)
        self.open()
        fault = self.rng.choice(FAULTS)
        if fault != "none":
            self.machine.plan(self.rng.randrange(1, 400), fault, torn=self.rng.random() < 0.5)
        self.note(f"fault {fault} at step {self.machine.fault_at}, damage {self.damage_planned}")
        failing_since = 0
        for number in range(self.rng.randrange(10, 45)):
            action = self.rng.choices(
                (self.post, self.receive, self.encode, self.send, self.restart, self.pass_time),
                (30, 12, 12, 25, 5, 6),
            )[0]
            try:
                action()
                self.note(action.__name__)
            except SpoolError as error:
                self.note(f"{action.__name__}: {error}")
                self.is_honest()
            if self.machine.mode == "dead":
                self.restart_machine()
                self.open()
            elif self.machine.mode:
                failing_since = failing_since or number
                if number - failing_since > 4:
                    self.note("the disk works again")
                    self.machine.mend()
                    failing_since = 0
        if not self.stops and self.damage_planned != "none":
            self.machine.mode, self.machine.power_cut = "dead", False
            self.restart_machine()
            self.open()
        self.machine.fault_at = None
        self.machine.mend()
        self.deliver_everything()
        self.check()

    def is_honest(self) -> None:
        """An operation was refused. Where the disk fails, probing the spool must show it."""
        if self.machine.mode == "eio" and self.spool is not None:
            try:
                self.spool.probe().result(10)
            except SpoolError:
                if self.machine.mode == "eio" and not self.spool.problem:
                    raise Broken("the disk fails, and the spool names no problem") from None
                return
            raise Broken("the disk fails, and the spool says that it can be written")

    def post(self) -> None:
        data = self.rng.randbytes(self.rng.choice([40, 400, 900, 6000]))
        record = Record(self._id(), data, 96, 64, 1, self.rng.randrange(3), 1, 1, zlib.crc32(data), "mast-7")
        self.posted[record.id] = record
        self._up().put(record).result(10)
        self._promise(record.id)

    def receive(self) -> None:
        picture = self.rng.randbytes(self.rng.choice([300, 3000, 20_000]))
        received = ReceivedPicture(self._id(), picture, zlib.crc32(picture), 96, 64, 1, 1, 7, "mast-7", "r1", None, 900)
        self.received[received.id] = received
        self.posted[received.id] = self._made_of(received)
        self._up().receive(received).result(10)
        self._promise(received.id)

    def encode(self) -> None:
        spool = self._up()
        found = spool.next_received()
        if found is None:
            return
        if found[0] != self.received.get(found[0].id):
            raise Broken("an original differs from what was posted")
        try:
            spool.put(self._made_of(found[0])).result(10)
        except SpoolError:
            spool.release_received(found[0].id)
            raise

    def send(self) -> None:
        spool = self._up()
        for record in spool.lease(self.rng.randrange(1, 6)):
            if self.machine.mode == "dead":
                return
            if record != self.posted.get(record.id):
                raise Broken("a frame differs from what was posted")
            if self.rng.random() < 0.15:  # the connection broke before the frame arrived
                spool.release([record.id])
                continue
            self.delivered[record.id] = record.data
            if self.rng.random() < 0.15:  # or before its acknowledgement did
                spool.release([record.id])
                continue
            try:
                spool.finish(record.id, State.DELIVERED).result(10)
            except SpoolError:
                spool.release([record.id])

    def restart(self) -> None:
        self.close()
        if self.machine.mode != "dead":
            self.open()

    def pass_time(self) -> None:
        self.machine.steady += 2
        self.machine.boot += 2
        self.machine.wall += self.rng.choice([2.0, 2.0, 5e6, -5e6])
        if self._up().expire(86_400).result(10):
            raise Broken("a fresh frame expired")

    # -- the end -----------------------------------------------------------------------------------------------

    def deliver_everything(self) -> None:
        self.machine.steady += 100
        spool = self._up()
        spool.probe().result(10)
        if spool.problem:
            raise Broken(f"nothing fails any more, and the spool says {spool.problem!r}")
        self.machine.steady += 100
        for _ in range(1000):
            while (found := spool.next_received()) is not None:
                spool.put(self._made_of(found[0])).result(10)
            records = spool.lease(100)
            if not records:
                break
            for record in records:
                if record != self.posted.get(record.id):
                    raise Broken("a frame differs from what was posted")
                self.delivered[record.id] = record.data
                spool.finish(record.id, State.DELIVERED).result(10)
        spool.expire(1e9).result(10)  # the frames that lease() found damaged are finished before this
        for ident in self.promised:
            entry = spool.get(ident)
            if entry is not None and entry.state is State.DROPPED and entry.reason.startswith("damaged on disk"):
                self.finished.add(ident)
        self.recoveries = spool.recoveries()
        if spool.pending_frames or spool.received_pictures:
            raise Broken(
                f"{spool.pending_frames} frames and {spool.received_pictures} received pictures stay in the spool"
            )
        self.close()

    def check(self) -> None:
        missing = self.promised - set(self.delivered)
        counted = max(self.counted, sum(lost for _, lost, _ in self.recoveries))
        uncertain = any(not complete for _, _, complete in self.recoveries)
        if self.damage == "none":
            if missing:
                raise Broken(f"{len(missing)} lost without damage")
            if counted:
                raise Broken(f"{counted} counted as lost, and none is")
            if uncertain or list(self.place.glob("spool.sqlite3.damaged-*")):
                raise Broken("a whole spool is taken for a damaged one")
        unexplained = missing - self.finished
        # Where the tables or their indexes are gone, the recovery says that more may be missing than it counted.
        if len(unexplained) > counted and not uncertain:
            raise Broken(f"{len(unexplained)} lost and {counted} counted")
        if self.damage.startswith("flip") and len(missing) > FLIP_LOSES:
            raise Broken(f"one flipped bit lost {len(missing)} of {len(self.promised)}")

    # -- small things ------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.trace.append(f"{self.machine.steps:4d} {text}")

    def _up(self) -> Spool:
        if self.spool is None:
            raise SpoolError("the machine is down")
        return self.spool

    def _id(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128))

    def _promise(self, ident: uuid.UUID) -> None:
        if self.machine.mode != "dead":  # a stopped machine sends no answer
            self.promised.add(ident)

    def _made_of(self, received: ReceivedPicture) -> Record:
        return Record(received.id, received.picture[:900], 96, 64, 0, 1, 1, 7, received.picture_crc, "mast-7")


def run_scenario(seed: int, folder: Path) -> Scenario:
    """Runs one scenario in an empty folder; Broken, with the seed and what happened, when it breaks a promise."""
    scenario = Scenario(seed, folder)
    try:
        scenario.run()
    except Exception as error:
        scenario.machine.mode = "dead"
        if scenario.spool is not None:
            scenario.spool.close()
        raise Broken(f"seed {seed}: {error!r}\n" + "\n".join(scenario.trace)) from error
    return scenario


def main() -> int:
    """Runs scenarios, prints what they met, and ends with 1 at the first broken promise."""
    parser = argparse.ArgumentParser(description="Scenarios of a spool with faults at every I/O step.")
    parser.add_argument("--scenarios", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the first scenario; by default from the clock")
    given = parser.parse_args()
    first = time.time_ns() % 1_000_000_000 if given.seed is None else given.seed
    logging.disable(logging.CRITICAL)
    met: Counter[str] = Counter()
    print(f"seeds {first} to {first + given.scenarios - 1}", flush=True)
    for seed in range(first, first + given.scenarios):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            try:
                scenario = run_scenario(seed, Path(folder))
            except Broken as broken:
                print(broken)
                return 1
        met[f"damage {scenario.damage}"] += 1
        met["stops"] += scenario.stops
        met["promised"] += len(scenario.promised)
        met["lost to damage"] += len(scenario.promised - set(scenario.delivered))
        if (done := seed - first + 1) % REPORTED_SCENARIOS == 0:
            print(f"{done} of {given.scenarios} scenarios", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in sorted(met.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
