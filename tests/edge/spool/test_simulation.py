"""Scenarios of a spool with faults at any I/O step (simulation.py): some here, more by `make simulate SCENARIOS=n`.

Four bugs are planted and must be caught; the first two were in an earlier release:

- the damaged file is put aside before the new one is complete (the order of the first recovery)
- the log is not scanned, so that a flipped bit in it discards every later commit
- an operation is acknowledged before its commit
- commits are not synced, which only a power cut shows
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_encoder.errors import SpoolError
from edge_encoder.spool import database, recovery, writer
from edge_encoder.spool.system import System
from tests.edge.spool.simulation import Broken, run_scenario

SCENARIOS = 250


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    numbers = itertools.count()

    def fresh() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return fresh


def test_scenarios_keep_every_promise(folders: Callable[[], Path]) -> None:
    stops = damages = 0
    for seed in range(SCENARIOS):
        one = run_scenario(seed, folders())
        stops += one.stops
        damages += one.damage != "none"
    assert stops > SCENARIOS / 2 and damages > SCENARIOS / 2  # the faults happen


@pytest.mark.parametrize("seed", [91560612, 91562222, 91562287, 111101230, 991440899, 867910539, 264669288])
def test_scenarios_that_once_broke_a_promise(folders: Callable[[], Path], seed: int) -> None:
    """A torn commit, a schema that is not UTF-8 (twice), a torn transaction behind damage, rolled-back ones
    (twice), an index that SQLite's quick check does not read."""
    run_scenario(seed, folders())


def set_aside_first(patch: pytest.MonkeyPatch) -> None:
    original = database._rebuild

    def rebuild(path: Path, system: System) -> Any:
        aside = path.with_name(path.name + ".damaged-0")
        for suffix in "", "-wal":
            if path.with_name(path.name + suffix).exists():
                system.rename(path.with_name(path.name + suffix), aside.with_name(aside.name + suffix))
        recover = recovery.recover
        patch.setattr(database, "recover", lambda _, *rest: recover(aside, *rest))
        try:
            return original(path, system)
        finally:
            patch.setattr(database, "recover", recover)

    patch.setattr(database, "_rebuild", rebuild)


def trust_the_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(database, "_check_log", lambda path: None)


def acknowledge_first(patch: pytest.MonkeyPatch) -> None:
    submit = writer.Writer.submit

    def early(self: writer.Writer, op: writer.Op) -> Any:
        done = submit(self, writer.Op(op.apply, op.after))
        try:
            op.done.set_result(done.result(10))
        except SpoolError:
            op.done.set_result(None)  # the client has its answer
        return op.done

    patch.setattr(writer.Writer, "submit", early)


def never_sync(patch: pytest.MonkeyPatch) -> None:
    connect = database.connect

    def careless(path: Path, system: System) -> sqlite3.Connection:
        connection = connect(path, system)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    patch.setattr(database, "connect", careless)


@pytest.mark.parametrize("plant", [set_aside_first, trust_the_log, acknowledge_first, never_sync])
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match="seed"):
        for seed in range(SCENARIOS):
            run_scenario(seed, folders())
