"""The bytes of an hour: each request has one charge, which is reserved, spent and forgotten after 60 minutes."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_encoder.answers.hourly_budget import REQUEST_BYTES, HourlyBudget, HourlyBudgets

ONE, TWO, THREE = (uuid.UUID(int=number) for number in range(3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`now` is what the module reads as monotonic time."""
    clock = SimpleNamespace(now=10_000.0)
    monkeypatch.setattr("edge_encoder.answers.hourly_budget.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_what_is_reserved_is_free_again_and_what_was_sent_is_not(clock: SimpleNamespace) -> None:
    hour = HourlyBudget(5000)
    with hour.attempt(ONE) as one:
        assert one is not None and hour.left == 5000 - REQUEST_BYTES
        assert one.reserve(3000) and (hour.left, one.left) == (2000, 3000)
        with hour.attempt(TWO) as two:
            assert two is not None and not two.reserve(2001) and two.left == 2000 and hour.left == 0
            with hour.attempt(THREE) as three:
                assert three is None
        assert hour.left == 2000 - REQUEST_BYTES
        one.sent = 1000
        assert one.left == 2000
    assert hour.left == 4000 - REQUEST_BYTES
    with hour.attempt(ONE) as one:
        assert one is not None and one.reserve(3000) and one.left == 2000 and hour.left == 2000 - REQUEST_BYTES
    assert hour.left == 4000 - REQUEST_BYTES, "nothing was sent, and what was sent before pays for the attempt"


def test_attempts_without_an_answer_use_up_the_hour(clock: SimpleNamespace) -> None:
    hour = HourlyBudget(3 * REQUEST_BYTES)
    for _ in range(3):
        with hour.attempt(ONE) as one:
            assert one is not None
    with hour.attempt(ONE) as one:
        assert one is None
    assert hour.left == 0


def test_an_hour_ends_60_minutes_after_the_last_attempt(clock: SimpleNamespace) -> None:
    hour = HourlyBudget(5000)
    with hour.attempt(ONE) as one, hour.attempt(TWO) as two:
        assert one is not None and two is not None and one.reserve(2000) and two.reserve(1000)
        clock.now += 3601
        assert hour.left == 2000, "what is worked on is not forgotten"
        one.sent, two.sent = 2000, 1000
    clock.now += 3000
    with hour.attempt(ONE):
        pass
    clock.now += 601
    assert hour.left == 3000, "the second is forgotten; the first counts as one of its last attempt"
    clock.now += 3000
    assert hour.left == 5000


class Box:
    """The budgets of the processes of one box, one after the other. ``now_ms`` is its spool time."""

    def __init__(self, path: Path) -> None:
        self.path, self.now_ms = path, 1_000_000_000

    def start(self) -> HourlyBudgets:
        return HourlyBudgets(5000, 20_000, self.path, lambda: self.now_ms)

    def left(self) -> int:
        hours = self.start()
        hours.close()
        return hours.of("gate").left


def spend(hours: HourlyBudgets, size: int) -> None:
    with hours.of("gate").attempt(ONE) as one:
        assert one is not None
        one.spend(size)


def test_a_process_that_was_killed_has_charged_what_it_sent(clock: SimpleNamespace, tmp_path: Path) -> None:
    box = Box(tmp_path / "charges")
    hours = box.start()  # never closed
    working = hours.of("gate").attempt(ONE)
    one = working.__enter__()
    assert one is not None and one.reserve(3000)
    one.spend(1000)
    one.spend(500)
    with hours.refusals.attempt(TWO), hours.of("yard").attempt(ONE) as other:
        assert other is not None
        other.spend(700)
        other.spend(-700)
    box.now_ms, clock.now = box.now_ms + 1_800_000, 5.0  # the machine was started again
    after = box.start()
    assert after.of("gate").left == 3500 and after.refusals.left == 20_000 - REQUEST_BYTES
    assert after.of("yard").left == 5000 - REQUEST_BYTES
    with after.of("gate").attempt(ONE) as one:
        assert one is not None and one.sent == 1500 and one.reserve(3000) and one.left == 1500, "its own charge"
    clock.now += 1801
    assert after.of("yard").left == 5000 and after.of("gate").left == 3500, "an hour after the last attempt at each"
    box.now_ms += 3_600_001
    assert box.left() == 5000


def test_a_clock_that_was_set_back_makes_the_hour_no_shorter(clock: SimpleNamespace, tmp_path: Path) -> None:
    box = Box(tmp_path / "charges")
    spend(box.start(), 2000)
    box.now_ms = 1
    assert box.left() == 3000
    box.now_ms += 3_600_001
    assert box.left() == 5000


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_a_damaged_file_begins_again(clock: SimpleNamespace, tmp_path: Path, content: bytes) -> None:
    box = Box(tmp_path / "charges")
    box.path.write_bytes(content)
    spend(box.start(), 2000)
    assert box.left() == 3000


@pytest.mark.parametrize(
    "row",
    [
        "CAST(x'ff41' AS TEXT), zeroblob(16), 1, 1",
        "'gate', 'sixteen letters.', 1, 1",
        "'gate', zeroblob(16), 1, -1000000",
        "'gate', zeroblob(16), 1.5, 'many'",
    ],
)
def test_a_damaged_row_or_another_table_begins_again(clock: SimpleNamespace, tmp_path: Path, row: str) -> None:
    box = Box(tmp_path / "charges")
    box.start()
    with contextlib.closing(sqlite3.connect(box.path)) as other, other:
        other.execute(f"INSERT INTO charges VALUES ({row}, 1000000000)")
    spend(box.start(), 2000)
    assert box.left() == 3000
    with contextlib.closing(sqlite3.connect(box.path)) as other, other:
        other.executescript("DROP TABLE charges; CREATE TABLE charges (request BLOB)")
    spend(box.start(), 2000)
    assert box.left() == 3000


def test_a_disk_that_fails_for_a_while_does_no_harm(
    clock: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Box(tmp_path / "charges")
    hours = box.start()
    with hours.of("gate").attempt(ONE) as one, contextlib.closing(sqlite3.connect(box.path)) as other:
        assert one is not None
        other.execute("BEGIN IMMEDIATE")
        one.spend(1000)
        one.spend(1000)
        other.rollback()
        one.spend(500)
    hours.close()
    assert box.left() == 2500 and caplog.text.count("cannot be used") == 1


def test_without_a_file_the_process_counts_in_memory(clock: SimpleNamespace, tmp_path: Path) -> None:
    hours = Box(tmp_path / "missing" / "charges").start()
    spend(hours, 2000)
    assert hours.of("gate").left == 3000
