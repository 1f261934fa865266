"""The bytes of an hour: each request has one charge, which is reserved, spent and forgotten after 60 minutes."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest

from edge_encoder.answers.hourly_budget import REQUEST_BYTES, HourlyBudget

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
