"""The spool's files: of the last release, replaced or deleted while in use, their permissions, `aeic spool check`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from edge_encoder.errors import SpoolError
from edge_encoder.spool.record import State
from edge_encoder.spool.spool import Spool
from edge_encoder.spool.verification import check
from tests.edge.spool.damaged import killed, present
from tests.support.edge.spooled import new_record, put, state_of
from tests.support.roots import ROOT

RELEASE = Path(__file__).parent / "data" / "release-0.1"


def test_a_spool_of_the_last_release_opens(tmp_path: Path) -> None:
    """Made by the release 0.1.0 and killed: part of it is in the log only."""
    expected = json.loads((RELEASE / "expected.json").read_text())
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    spool = Spool(folder)
    assert spool.unreadable == 0 and spool.recoveries() == []
    found = spool.next_received()
    assert found is not None and (str(found[0].id), found[1] - 1) in expected["begun"].items()
    received = {str(found[0].id): hashlib.sha256(found[0].picture).hexdigest()}
    while (found := spool.next_received()) is not None:
        received[str(found[0].id)] = hashlib.sha256(found[0].picture).hexdigest()
    assert received == expected["originals"]
    frames = {str(ident): hashlib.sha256(each.data).hexdigest() for ident, each in present(spool).items()}
    assert frames == expected["frames"]
    assert {ident: state_of(spool, uuid.UUID(ident)).name for ident in expected["finished"]} == expected["finished"]
    assert spool.oldest_age_seconds() < 60  # the wall clock of the release says nothing
    for ident in frames:
        assert spool.finish(uuid.UUID(ident), State.DELIVERED).result(10)
    spool.close()
    assert check(folder).ok


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    for path in folder.iterdir():
        path.chmod(0o644)
    spool = Spool(folder)
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite3*")}
    assert len(modes) == 3 and not any(modes.values())
    spool.close()
    fresh = Spool(tmp_path / "new" / "folder")
    assert not (tmp_path / "new" / "folder").stat().st_mode & 0o077
    assert not any(path.stat().st_mode & 0o077 for path in (tmp_path / "new" / "folder").glob("spool.sqlite3*"))
    fresh.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_spool_that_appears_at_the_path_is_taken_over(tmp_path: Path, clean: bool) -> None:
    """A disk that is mounted over the folder after the start; one that lost power has a full log."""
    kept, pictures = killed(tmp_path / "disk", 60, 3)
    if clean:
        Spool(tmp_path / "disk").close()
    spool = Spool(tmp_path / "data")
    early, both, late = new_record(100), next(iter(kept.values())), new_record(101)
    put(spool, early)
    put(spool, both)
    assert spool.finish(both.id, State.DELIVERED).result(10)
    (tmp_path / "data").rename(tmp_path / "below")
    (tmp_path / "disk").rename(tmp_path / "data")
    put(spool, late)
    del kept[both.id]
    assert present(spool) == kept | {early.id: early, late.id: late}
    assert state_of(spool, both.id) is State.DELIVERED
    assert spool.received_pictures == len(pictures) and spool.unreadable == 0
    assert spool.oldest_age_seconds() < 60
    spool.close()
    assert check(tmp_path / "data").ok


def test_a_spool_that_replaces_the_file_beside_its_log_is_taken_over(tmp_path: Path) -> None:
    """The log is that of the file that was there before; it hides the tables of the other."""
    kept, pictures = killed(tmp_path / "other", 20, 3)
    Spool(tmp_path / "other").close()
    spool = Spool(tmp_path / "data")
    (tmp_path / "other" / "spool.sqlite3").rename(tmp_path / "data" / "spool.sqlite3")
    late = new_record(100)
    put(spool, late)
    assert present(spool) == kept | {late.id: late} and spool.received_pictures == len(pictures)
    spool.close()


def test_a_foreign_file_at_the_path_is_kept(tmp_path: Path) -> None:
    content = b"no spool at all " * 1000
    spool = Spool(tmp_path / "data")
    records = [new_record(number) for number in range(3)]
    for record in records[:2]:
        put(spool, record)
    (tmp_path / "foreign").write_bytes(content)
    (tmp_path / "foreign").rename(tmp_path / "data" / "spool.sqlite3")
    put(spool, records[2])
    assert present(spool) == {record.id: record for record in records}
    assert [(tmp_path / "data" / name).read_bytes() for name in spool.damaged_files()] == [content]
    spool.close()


def test_a_file_deleted_while_in_use_is_written_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [new_record(number) for number in range(20)]
    for record in records[:10]:
        put(spool, record)
    for path in tmp_path.iterdir():
        path.unlink()
    assert spool.misplaced()
    for record in records[10:]:
        put(spool, record)
    assert not spool.misplaced() and check(tmp_path).ok
    with pytest.raises(SpoolError, match="another edge"):
        Spool(tmp_path)
    spool.close()
    spool = Spool(tmp_path)
    assert present(spool) == {record.id: record for record in records}
    spool.close()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_log_deleted_while_in_use_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    spool = Spool(tmp_path / "live")
    records = [new_record(number) for number in range(20)]
    for record in records[:10]:
        put(spool, record)
    log = tmp_path / "live" / "spool.sqlite3-wal"
    log.unlink()
    if replaced:
        log.write_bytes(b"")
    assert spool.misplaced()
    for record in records[10:]:
        put(spool, record)
    assert not spool.misplaced()
    killed_now = shutil.copytree(tmp_path / "live", tmp_path / "killed")
    spool.close()
    spool = Spool(killed_now)
    assert present(spool) == {record.id: record for record in records} and spool.unreadable == 0
    spool.close()


def test_spool_check_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aeic_tools.cli", "spool", "check"]

    def run(folder: Path) -> tuple[int, dict[str, object]]:
        done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    code, nothing = run(tmp_path)
    assert code == 1 and "there is no spool" in str(nothing["error"])
    folder = shutil.copytree(RELEASE, tmp_path / "spool")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, report = run(folder)
    assert code == 0 and (report["frames"], report["originals"], report["unreadable"]) == (5, 2, 0)
    assert {name: (folder / name).read_bytes() for name in before} == before
    raw = bytearray(before["spool.sqlite3-wal"])
    raw[5000] ^= 1
    (folder / "spool.sqlite3-wal").write_bytes(raw)
    code, report = run(folder)
    assert code == 4 and not report["ok"] and "damaged" in str(report["log"])
