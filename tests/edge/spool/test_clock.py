"""Ages: by the machine's uptime, whatever its wall clock does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edge_encoder.spool.record import CapturedFrom, State
from edge_encoder.spool.spool import Spool
from tests.support.clocks import Clocks
from tests.support.edge.spooled import made_of, new_received, new_record, put, state_of

DAY = 86_400.0


def test_frames_age_by_uptime_and_expire(tmp_path: Path) -> None:
    clocks = Clocks()
    spool = Spool(tmp_path, system=clocks)
    old, fresh = new_record(1), new_record(2)
    put(spool, old)
    clocks.run(60)
    put(spool, fresh)
    clocks.run(20)
    assert spool.oldest_age_seconds() == 80
    assert spool.expire(70).result(5) == 1
    assert state_of(spool, old.id) is State.DROPPED and state_of(spool, fresh.id) is State.SPOOLED
    assert spool.oldest_age_seconds() == 20
    spool.close()


def test_old_originals_expire_and_may_be_posted_again(tmp_path: Path) -> None:
    clocks = Clocks()
    spool = Spool(tmp_path, system=clocks)
    old, encoded, fresh = new_received(1), new_received(2), new_received(3)
    spool.receive(old).result(5)
    spool.receive(encoded).result(5)
    clocks.run(100)
    spool.receive(fresh).result(5)
    spool.put(made_of(encoded)).result(5)  # a frame is as old as its picture
    assert spool.oldest_age_seconds() == 100
    assert spool.expire(50).result(5) == 2
    assert state_of(spool, old.id) is State.DROPPED and state_of(spool, encoded.id) is State.DROPPED
    assert spool.received_pictures == 1
    assert spool.receive(old).result(5).state is State.RECEIVED
    spool.close()


@pytest.mark.parametrize("jump", [90 * DAY, 2.5, 400 * DAY, -30 * DAY], ids=["ntp", "glitch", "years", "back"])
def test_no_jump_of_the_wall_clock_makes_a_fresh_frame_old(tmp_path: Path, jump: float) -> None:
    clocks = Clocks()
    spool = Spool(tmp_path, system=clocks)
    put(spool, new_record(1))
    clocks.wall += jump
    assert spool.oldest_age_seconds() == 0 and spool.expire(2).result(5) == 0
    spool.close()
    spool = Spool(tmp_path, system=clocks)  # the service is restarted, the machine is not
    assert spool.oldest_age_seconds() == 0 and spool.expire(2).result(5) == 0 and spool.pending_frames == 1
    spool.close()


def test_time_switched_off_counts_where_it_is_plausible(tmp_path: Path) -> None:
    clocks = Clocks()
    spool = Spool(tmp_path, system=clocks)
    put(spool, new_record(1))
    ages = []
    for off, error in (3600, 0.0), (3600, -5000.0), (3600, 400 * DAY):
        spool.close()
        clocks.reboot(off=off, wall_error=error)
        spool = Spool(tmp_path, system=clocks)
        ages.append(spool.oldest_age_seconds())
        clocks.run(10)
    assert ages == [3600, 3610, 3620]
    spool.close()


@pytest.mark.parametrize("posted", ["before", "after"])
def test_a_clock_that_is_set_after_the_start_makes_no_frame_old(tmp_path: Path, posted: str) -> None:
    """A box without a clock of its own starts days behind; the network sets it; the power fails; it is set at once."""
    clocks = Clocks()
    clocks.wall -= 2 * DAY
    spool = Spool(tmp_path / "live", system=clocks)
    if posted == "before":
        put(spool, new_record(1))
    clocks.run(40)
    clocks.wall += 2 * DAY
    if posted == "before":
        assert spool.expire(DAY).result(5) == 0  # housekeeping
    else:
        put(spool, new_record(1))
    clocks.run(300)
    shutil.copytree(tmp_path / "live", tmp_path / "dead")
    spool.close()
    clocks.reboot(off=30)
    spool = Spool(tmp_path / "dead", system=clocks)
    assert spool.oldest_age_seconds() == (370 if posted == "before" else 330)
    assert spool.expire(DAY).result(5) == 0 and spool.pending_frames == 1
    spool.close()


def test_a_time_of_capture_is_derived_once_the_clock_is_set(tmp_path: Path) -> None:
    clocks = Clocks()
    now, clocks.wall = clocks.wall, 40.0  # a box without a clock of its own, just switched on
    spool = Spool(tmp_path, system=clocks)
    early, named = new_record(1), new_record(2)
    put(spool, replace(early, captured_ms=0))
    put(spool, replace(named, captured_ms=7, captured_from=CapturedFrom.SENDER))
    clocks.run(30)
    unset = spool.lease(5)
    assert [(r.captured_ms, r.captured_from) for r in unset] == [(0, CapturedFrom.UNKNOWN), (7, CapturedFrom.SENDER)]
    spool.release([record.id for record in unset])
    clocks.run(60)
    clocks.wall = now  # from the network
    first, second = spool.lease(5)
    assert (first.captured_ms, first.captured_from) == (int((now - 90) * 1000), CapturedFrom.CLOCK)
    assert (second.captured_ms, second.captured_from) == (7, CapturedFrom.SENDER)
    spool.close()
