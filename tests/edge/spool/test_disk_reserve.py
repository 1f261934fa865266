"""A full disk: the spool accepts no new frame, still delivers its frames, and then accepts new ones again."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_encoder.errors import SpoolFull
from edge_encoder.spool.disk_reserve import DiskReserve
from edge_encoder.spool.record import Record, State
from edge_encoder.spool.spool import Spool


def record() -> Record:
    now = int(time.time() * 1000)
    return Record(id=uuid.uuid4(), data=os.urandom(1500), width=64, height=64, rate=0, created_ms=now)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB; only root may make one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be made here: mounting a tmpfs needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_accepts_no_frame_and_delivers_every_frame(small_disk: Path) -> None:
    spool = Spool(small_disk)
    for least, together in (500, 50), (1, 1), (1, 1):  # what was delivered is remembered, and takes its room too
        taken: set[uuid.UUID] = set()
        with pytest.raises(SpoolFull, match="is full"):
            while len(taken) < 20_000:
                for put in [spool.put(record()) for _ in range(together)]:  # a transaction of many might not fit at all
                    taken.add(put.result().id)
        delivered = 0
        while leased := spool.lease(64):
            delivered += sum(done.result() for done in [spool.finish(one.id, State.DELIVERED) for one in leased])
        assert delivered >= len(taken) >= least and spool.pending_frames == 0
    spool.put(record()).result()  # without a restart
    spool.close()


def test_the_reserve_is_released_once_and_made_again(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path / "room", 1 << 16)
    assert reserve.whole and (tmp_path / "room").stat().st_size == 1 << 16
    assert DiskReserve(tmp_path / "room", 1 << 16).whole, "found again after a restart"
    assert reserve.spend() and not reserve.whole and not (tmp_path / "room").exists()
    assert not reserve.spend(), "there is only one"
    assert reserve.make() and (tmp_path / "room").exists()


def test_a_reserve_larger_than_the_disk_is_not_made(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path / "room", 1 << 60)
    assert not reserve.whole and not reserve.spend() and not (tmp_path / "room").exists()
