"""The autoscaler: up by depth and by age at once, down one by one after a while, never outside its bounds."""

from __future__ import annotations

from typing import Any

from cloud_decoder.fleet.autoscale import Autoscaler
from cloud_decoder.store.records import Backlog


def scaler(**changed: float) -> Autoscaler:
    values: dict[str, Any] = {"drain_target_seconds": 10.0, "max_age_seconds": 5.0, "idle_seconds": 60.0} | changed
    return Autoscaler(1, 20, **values)


def test_depth_counts_once_the_speed_of_a_worker_is_known() -> None:
    one = scaler()
    assert one.want(Backlog(500, 8, 1.0), 1, done=0, now=0.0) == 1
    assert one.want(Backlog(500, 8, 2.0), 1, done=50, now=10.0) == 10  # 5 a second: 50 in ten seconds
    assert one.frames_per_second == 5.0
    assert one.want(Backlog(5000, 8, 2.0), 10, done=100, now=11.0) == 20  # at most
    assert one.want(Backlog(10, 8, 2.0), 10, done=150, now=12.0) == 10  # a short queue stops no worker


def test_age_asks_for_one_more() -> None:
    assert scaler().want(Backlog(3, 8, 6.0), 2, done=0, now=0.0) == 3


def test_an_empty_queue_sends_them_home_one_by_one() -> None:
    one, workers = scaler(), 3
    for now in range(0, 300, 10):
        workers = one.want(Backlog(0, 0, 0.0), workers, done=9, now=float(now))
        if now in (50, 110):
            assert workers == (3 if now == 50 else 2)
    assert workers == 1
    assert one.want(Backlog(0, 4, 0.0), 2, done=9, now=999.0) == 2  # jobs are leased, so no worker is stopped


def test_none_at_all_start_with_one() -> None:
    one = Autoscaler(0, 5, 10.0, 5.0, 60.0)
    assert one.want(Backlog(0, 0, 0.0), 0, done=0, now=0.0) == 0
    assert one.want(Backlog(1, 0, 0.1), 0, done=0, now=1.0) == 1
