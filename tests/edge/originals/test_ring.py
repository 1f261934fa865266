"""The ring of originals is bounded, survives restarts, and leaves the spool its space."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_encoder.originals import ring as ring_module
from edge_encoder.originals.ring import Kept, OriginalRing

KB = 1024


def original(number: int, source: str = "gate", size: int = KB) -> Kept:
    return Kept(uuid.UUID(int=number), source, bytes([number]) * size, 1_700_000_000_000 + number, 4)


def ring(folder: Path, **changes: Any) -> OriginalRing:
    return OriginalRing(folder / "originals", **{"max_bytes": 10 * KB, **changes})


def test_the_newest_originals_stay_and_survive_a_restart(tmp_path: Path) -> None:
    kept = ring(tmp_path)
    for number in range(30):
        assert kept.keep(original(number))
        assert kept.bytes <= 10 * KB
    there = [number for number in range(30) if kept.read(uuid.UUID(int=number)) == original(number)]
    assert there == list(range(30 - len(there), 30)) and len(there) == len(kept) >= 7
    files = {path.name for path in (tmp_path / "originals").iterdir()}
    assert len(files) == len(kept) and all(name.removesuffix(".original").isdigit() for name in files)
    again = ring(tmp_path)
    assert (len(again), again.bytes) == (len(kept), kept.bytes)
    assert again.keep(original(99)) and again.read(uuid.UUID(int=29)) == original(29)
    assert len(ring(tmp_path, max_bytes=3 * KB)) == 2  # a smaller limit holds from the start


def test_limits_of_one_source_and_of_one_original(tmp_path: Path) -> None:
    kept = ring(tmp_path, source_bytes={"yard": 3 * KB, "none": 0})
    assert kept.keep(original(1))
    for number in range(10, 20):
        assert kept.keep(original(number, "yard"))
    assert len(kept) == 3 and kept.read(uuid.UUID(int=1)) is not None
    assert not kept.takes("none") and not kept.keep(original(2, "none"))
    assert not kept.keep(original(3, size=11 * KB)) and len(kept) == 3


def test_originals_that_the_settings_do_not_keep_any_more_are_deleted(tmp_path: Path) -> None:
    """A camera whose limit is lowered to 0 keeps none from the start: they could still be asked for."""
    kept = ring(tmp_path)
    assert kept.keep(original(1, "gate")) and all(kept.keep(original(number, "yard")) for number in (2, 3, 4))
    again = ring(tmp_path, source_bytes={"gate": 0, "yard": 2 * KB + KB // 2})
    assert again.read(uuid.UUID(int=1)) is None and again.read(uuid.UUID(int=4)) is not None and len(again) == 2
    assert len(list((tmp_path / "originals").iterdir())) == 2


def test_age_damage_and_what_is_no_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ring(tmp_path, max_age_seconds=60)
    for number in (1, 2, 3):
        kept.keep(original(number))
    paths = sorted((tmp_path / "originals").iterdir())
    data = bytearray(paths[0].read_bytes())
    data[-100] ^= 1
    paths[0].write_bytes(data)
    assert kept.read(uuid.UUID(int=1)) is None and not paths[0].exists()
    (tmp_path / "originals" / "0000000000000077.original").write_bytes(b"AEICORI1\xff\xff\xff\x7f")
    (tmp_path / "originals" / "0000000000000078.original").write_bytes(b"")
    deep = b"[" * 4000
    (tmp_path / "originals" / "0000000000000079.original").write_bytes(
        paths[1].read_bytes()[:8] + len(deep).to_bytes(4, "little") + deep
    )
    (tmp_path / "originals" / "readme.txt").write_bytes(b"not ours")
    again = ring(tmp_path, max_age_seconds=60)
    assert len(again) == 2 and (tmp_path / "originals" / "readme.txt").exists()
    later = ring_module._uptime() + 61
    monkeypatch.setattr(ring_module, "_uptime", lambda: later)
    assert again.read(uuid.UUID(int=2)) is None and len(again) == 0 and again.bytes == 0


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_jump_of_the_wall_clock_changes_no_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    wall, up = time.time(), 5.0
    monkeypatch.setattr("edge_encoder.originals.ring.time.time", lambda: wall)
    monkeypatch.setattr(ring_module, "_uptime", lambda: up)
    kept = ring(tmp_path, max_age_seconds=60)
    kept.keep(original(1))
    wall += jump
    kept.expire()
    assert len(kept) == 1
    kept.keep(original(2))
    up = 66.0
    kept.expire()
    assert len(kept) == 0, "also where the clock was set back"


@pytest.mark.parametrize(("passed", "there"), [(59.0, 1), (61.0, 0), (-1e8, 1)])
def test_the_wall_clock_counts_between_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: float, there: int
) -> None:
    wall, up = time.time(), 1e6
    monkeypatch.setattr("edge_encoder.originals.ring.time.time", lambda: wall)
    monkeypatch.setattr(ring_module, "_uptime", lambda: up)
    ring(tmp_path).keep(original(1))
    wall, up = wall + passed, 5.0  # the machine was started again
    again = ring(tmp_path, max_age_seconds=60)
    again.expire()
    assert len(again) == there
    up += 61
    again.expire()
    assert len(again) == 0


def test_the_room_of_the_spool_is_left_free_and_a_failing_disk_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ring(tmp_path, spool_needs=lambda: 1 << 60)
    assert not small.keep(original(1)) and not small.keep(original(2))
    assert not list((tmp_path / "originals").iterdir())
    assert caplog.text.count("AEIC_EDGE_SPOOL_MAX_BYTES") == 1, "it is said once why the box has no originals"
    (tmp_path / "file").write_text("")
    broken = OriginalRing(tmp_path / "file", max_bytes=KB)
    assert not broken.keep(original(1, size=100)) and broken.read(uuid.UUID(int=1)) is None and broken.failures


def test_originals_give_way_where_the_spool_may_need_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, needs = 100 * KB, 20 * KB
    kept = ring(tmp_path, spool_needs=lambda: needs)
    for number in range(6):
        assert kept.keep(original(number))
    monkeypatch.setattr(
        "edge_encoder.originals.ring.os.statvfs", lambda path: SimpleNamespace(f_bavail=free // KB, f_frsize=KB)
    )
    kept.expire()
    assert len(kept) == 6
    free = 18 * KB
    kept.expire()
    assert [kept.source(uuid.UUID(int=number)) for number in range(6)] == [None] * 2 + ["gate"] * 4, "the oldest go"
    assert len(list((tmp_path / "originals").iterdir())) == 4
    free = 20 * KB
    assert kept.keep(original(9)) and kept.source(uuid.UUID(int=2)) is None, "and the newest takes their place"
    free = 0
    kept.expire()
    assert len(kept) == 0 and kept.bytes == 0
    assert not kept.keep(original(10))


def test_an_original_that_is_about_to_be_kept_is_expected(tmp_path: Path) -> None:
    kept, ident = ring(tmp_path), uuid.UUID(int=1)
    with kept.expecting(ident):
        with kept.expecting(ident):
            assert kept.expects(ident)
        assert kept.expects(ident)
    assert not kept.expects(ident)


@pytest.mark.parametrize("name", ["\u00b2", "\u0663", "1" * 200, "", "-1"])
def test_a_file_of_another_name_is_left_alone(tmp_path: Path, name: str) -> None:
    ring(tmp_path).keep(original(1))
    foreign = tmp_path / "originals" / f"{name}.original"
    foreign.write_bytes(b"not ours")
    again = ring(tmp_path)
    assert foreign.exists() and len(again) == 1 and again.keep(original(2))
