"""The watched folder: what appears is taken once, what is no picture is put aside, half-written files wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.pixels import load_picture
from edge_encoder.originals.ring import OriginalRing
from edge_encoder.service import EdgeService
from edge_encoder.source_settings import FolderSettings
from edge_encoder.sources import watched_folder
from edge_encoder.sources.watched_folder import WatchedFolder
from edge_encoder.spool.frame_table import SpoolLimits
from edge_encoder.spool.record import CapturedFrom
from tests.support.edge import crashing_reader
from tests.support.edge.fakes import settings
from tests.support.pictures import picture
from tests.support.waiting import until


def watched(service: EdgeService, path: Path, **changes: Any) -> WatchedFolder:
    values: dict[str, Any] = {"name": "folder", "path": path, "seconds": 0.01, "settle_seconds": 0.0, **changes}
    return WatchedFolder(service, FolderSettings(**values))


def outcomes(service: EdgeService, outcome: str) -> float:
    name = "aeic_edge_source_frames_total"
    return service.metrics.registry.get_sample_value(name, {"source": "folder", "outcome": outcome}) or 0.0


@contextlib.asynccontextmanager
async def service(folder: Path, bundle: Path) -> AsyncIterator[EdgeService]:
    edge = EdgeService(settings(folder / "spool", bundle=bundle, drain_timeout_seconds=0))
    await edge.start()
    yield edge
    await edge.stop()


async def test_pictures_are_taken_once_they_rest(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_folder, "PATIENCE_SECONDS", 0.0)
    inbox = tmp_path / "in"
    inbox.mkdir()

    service = EdgeService(settings(tmp_path / "spool", bundle=tiny_bundle, drain_timeout_seconds=0))
    await service.start()
    folder = watched(service, inbox)
    (inbox / "a.jpg").write_bytes(picture())
    (inbox / "b.PNG").write_bytes(picture(form="PNG"))
    (inbox / ".half.jpg").write_bytes(picture()[:100])
    (inbox / "notes.txt").write_text("not for us")
    (inbox / "broken.jpg").write_bytes(b"no picture at all")
    assert await folder.look() == 0  # first sight
    (inbox / "b.PNG").write_bytes(picture(form="PNG", seed=2))
    os.utime(inbox / "b.PNG", (1_800_000_000, 1_800_000_000))
    assert await folder.look() == 1  # b is still being written
    assert await folder.look() == 1
    assert {p.name for p in (inbox / "done").iterdir()} == {"a.jpg", "b.PNG"}
    assert {p.name for p in (inbox / "refused").iterdir()} == {"broken.jpg"}
    records = service.spool.lease(10)
    assert len(records) == 2 and records[1].captured_ms == 1_800_000_000_000
    # As after a crash before the file was moved: it is there again, and makes no second frame.
    (inbox / "done" / "b.PNG").rename(inbox / "b.PNG")
    await folder.look()
    assert await folder.look() == 1
    assert service.spool.pending_frames == 2
    await service.stop()


async def test_files_wait_while_the_spool_is_full(tmp_path: Path, tiny_bundle: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()

    config = settings(tmp_path / "spool", bundle=tiny_bundle, drain_timeout_seconds=0)
    service = EdgeService(config)
    await service.start()
    service.spool._frame_table.limits = SpoolLimits(max_bytes=10)
    folder = watched(service, inbox, keep=False)
    (inbox / "a.jpg").write_bytes(picture())
    await folder.look()
    assert await folder.look() == 0 and (inbox / "a.jpg").exists()
    service.spool._frame_table.limits = SpoolLimits()
    assert await folder.look() == 1 and not (inbox / "a.jpg").exists()
    await service.stop()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("late", [True, False])
async def test_a_file_that_is_replaced_while_it_is_encoded_is_taken_too(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, late: bool
) -> None:
    inbox, number = tmp_path / "in", 0
    inbox.mkdir()

    def replace() -> None:
        nonlocal number
        number += 1
        (tmp_path / "new").write_bytes(picture(seed=number))
        os.rename(tmp_path / "new", inbox / "snap.jpg")

    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox, keep=keep)
        replace()
        await folder.look()
        if late:  # after the last look at it, while it gets its other name
            rename = Path.rename

            def slow(path: Path, target: Path) -> Path:
                if number == 1:
                    replace()
                return rename(path, target)

            monkeypatch.setattr(Path, "rename", slow)
            assert await folder.look() == 1
        else:
            take = edge.take

            async def taken(*given: Any) -> Any:
                replace()
                return await take(*given)

            with monkeypatch.context() as patch:
                patch.setattr(edge, "take", taken)
                assert await folder.look() == 1
        assert (inbox / "snap.jpg").read_bytes() == picture(seed=2)
        await folder.look()
        assert await folder.look() == 1 and edge.spool.pending_frames == 2
        assert [path.name for path in inbox.iterdir()] == (["done"] if keep else [])
        assert not keep or {path.read_bytes() for path in (inbox / "done").iterdir()} == {picture(seed=2)}


async def test_a_file_that_is_replaced_before_it_is_read_is_read_later(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox)
        (inbox / "a.jpg").write_bytes(picture())
        await folder.look()
        listed = folder._list()
        (inbox / "a.jpg").write_bytes(picture(seed=1))
        os.utime(inbox / "a.jpg", (1_800_000_000, 1_800_000_000))
        with monkeypatch.context() as patch:
            patch.setattr(folder, "_list", lambda: listed)
            assert await folder.look() == 0
        await folder.look()
        assert await folder.look() == 1 and edge.spool.pending_frames == 1


async def test_files_that_cannot_be_read_and_odd_names_stop_no_other(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.png").symlink_to("/proc/self/mem")  # it cannot be read, even by root
    (inbox / "b.png").write_bytes(picture(form="PNG"))
    odd = os.fsdecode(b"caf\xe9.png")
    (inbox / odd).write_bytes(picture(form="PNG", seed=2))
    (inbox / "gone.png").symlink_to("nowhere")
    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox)
        await folder.look()
        assert await folder.look() == 2
        for _ in range(3):
            assert await folder.look() == 0
        assert {p.name for p in (inbox / "done").iterdir()} == {"b.png", odd}
        assert caplog.text.count("a.png cannot be read") == 1 and outcomes(edge, "unreadable") == 1
        (inbox / "a.png").unlink()
        (inbox / "a.png").write_bytes(picture(form="PNG", seed=3))
        await folder.look()
        assert await folder.look() == 1


async def test_a_file_that_breaks_the_encoder_stops_no_other(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(picture(form="PNG", seed=1))
    (inbox / "b.png").write_bytes(picture(form="PNG", seed=2))
    async with service(tmp_path, tiny_bundle) as edge:
        encode, poison = edge.encoder.encode, (inbox / "a.png").read_bytes()

        def breaks(data: bytes, **wanted: Any) -> Any:
            if data == poison:
                raise RuntimeError("the poison")
            return encode(data, **wanted)

        monkeypatch.setattr(edge.encoder, "encode", breaks)
        folder = watched(edge, inbox)
        await folder.look()
        assert await folder.look() == 1 and await folder.look() == 0
        assert (inbox / "a.png").exists() and (inbox / "done" / "b.png").exists()


@pytest.mark.parametrize(
    "fault", [MemoryError(), OSError(errno.EMFILE, "too many open files")], ids=["memory", "files"]
)
async def test_a_file_for_which_the_machine_lacks_something_is_taken_later(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(picture(form="PNG", seed=1))
    (inbox / "b.png").write_bytes(picture(form="PNG", seed=2))
    async with service(tmp_path, tiny_bundle) as edge:
        encode, faults = edge.encoder.encode, [fault, fault]

        def lacks(data: bytes, **wanted: Any) -> Any:
            if faults and data == (inbox / "a.png").read_bytes():
                raise faults.pop()
            return encode(data, **wanted)

        monkeypatch.setattr(edge.encoder, "encode", lacks)
        folder = watched(edge, inbox)
        assert [await folder.look() for _ in range(4)] == [0, 1, 0, 1]
        assert {path.name for path in (inbox / "done").iterdir()} == {"a.png", "b.png"}


async def test_a_slow_writer_is_waited_for(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    whole = picture(200, 150)
    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox)
        path = inbox / "slow.jpg"
        path.write_bytes(whole[: len(whole) // 2])
        for _ in range(4):  # it pauses, and half a picture looks like a broken one
            assert await folder.look() == 0
        assert path.exists() and outcomes(edge, "refused") == 0
        path.write_bytes(whole)
        await folder.look()
        assert await folder.look() == 1
        (inbox / "other.jpg").write_bytes(whole[: len(whole) // 2])
        (inbox / "done.jpg").write_bytes(b"")
        (inbox / "done.jpg.part").write_bytes(whole[:100])
        await folder.look()
        monkeypatch.setattr(watched_folder, "PATIENCE_SECONDS", 0.0)
        await folder.look()
        assert outcomes(edge, "refused") == 1 and (inbox / "refused" / "other.jpg").exists()
        assert (inbox / "done.jpg").exists()  # its .part says that it is not complete
        patient = watched(edge, inbox, settle_seconds=60.0)
        (inbox / "new.jpg").write_bytes(whole)
        assert [await patient.look() for _ in range(5)] == [0] * 5


async def test_equal_names_overwrite_nothing_and_folders_in_it_are_taken_on_request(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    inbox = tmp_path / "in"
    names = ("100CANON/IMG_1.jpg", "101CANON/IMG_1.jpg", ".hidden/IMG_1.jpg")
    async with service(tmp_path, tiny_bundle) as edge:
        for round_ in range(2):
            for number, name in enumerate(names):
                (inbox / name).parent.mkdir(parents=True, exist_ok=True)
                (inbox / name).write_bytes(picture(seed=10 * round_ + number))
            flat, deep = watched(edge, inbox), watched(edge, inbox, recursive=True)
            await flat.look()
            assert await flat.look() == 0
            await deep.look()
            assert await deep.look() == 2 and await deep.look() == 0
        done = inbox / "done"
        found = {str(path.relative_to(done)) for path in done.rglob("*.jpg")}
        assert found == {f"{camera}/{name}.jpg" for camera in ("100CANON", "101CANON") for name in ("IMG_1", "IMG_1-1")}
        assert (done / "100CANON" / "IMG_1.jpg").read_bytes() == picture(seed=0)
        assert edge.spool.pending_frames == 4


async def test_a_read_only_folder_works_and_a_restart_sends_nothing_twice(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    for number in range(3):
        (inbox / f"{number}.jpg").write_bytes(picture(seed=number))
    (inbox / "broken.jpg").write_bytes(b"GIF89a" + bytes(100))

    def refuse(*_: object) -> None:  # as for a mount that is read-only; root may write anywhere else
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(watched_folder, "_put_away", refuse)
    for start in range(2):
        async with service(tmp_path, tiny_bundle) as edge:
            folder = watched(edge, inbox)
            taken = [await folder.look() for _ in range(4)]
            assert sum(taken) == (3 if not start else 0)
            assert outcomes(edge, "refused") == (1 if not start else 0)
            (inbox / "late.jpg").write_bytes(picture(seed=9 + start))
            await folder.look()
            assert await folder.look() == 1
    assert caplog.text.count("cannot be moved or deleted") == 1
    assert len(list(inbox.iterdir())) == 5


async def test_a_folder_that_disappears_is_shown_and_comes_back(tmp_path: Path, tiny_bundle: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox)
        running = asyncio.create_task(folder.run())
        await until(lambda: folder.status.state == "up")
        shutil.rmtree(inbox)
        await until(lambda: folder.status.state == "down")
        assert "No such file" in folder.status.detail
        inbox.mkdir()
        (inbox / "a.jpg").write_bytes(picture())
        await until(lambda: folder.status.taken == 1)
        assert folder.status.state == "up" and folder.status.last_picture is not None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_limits_of_the_folder_hold(tmp_path: Path, tiny_bundle: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.jpg").write_bytes(picture(400, 300))
    async with service(tmp_path, tiny_bundle) as edge:
        folder = watched(edge, inbox, name="mast", max_side=64, priority=7, rate="r1")
        await folder.look()
        assert await folder.look() == 1
        (record,) = edge.spool.lease(5)
        assert (record.width, record.height, record.priority, record.rate) == (64, 48, 7, 0)
        assert record.source_id == "mast-7/mast" and record.original_width == 400
        assert record.captured_from is CapturedFrom.FILE


async def test_grey_levels_are_spread_where_the_folder_says_so(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an original that the cloud takes is kept: an 8-bit JPEG that shows what the frame shows."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    async with service(tmp_path, tiny_bundle) as edge:
        ring = edge.submitter.ring = OriginalRing(tmp_path / "ring", max_bytes=1 << 20)
        asked, encode = [], edge.encoder.encode

        def noted(data: bytes, **wanted: Any) -> Any:
            asked.append(wanted["stretch"])
            return encode(data, **wanted)

        monkeypatch.setattr(edge.encoder, "encode", noted)
        kept = []
        for stretch in (None, True):
            levels = (20_000 + 500 * np.mgrid[:64, :96][1] / 95).astype(np.uint16) + (stretch is None)
            Image.fromarray(levels).save(inbox / "a.png")
            folder = watched(edge, inbox, stretch=stretch, keep=False)
            await folder.look()
            assert await folder.look() == 1
        for record in edge.spool.lease(5):
            original = ring.read(record.id)
            assert original is not None
            kept.append((original.picture[:4], float(np.ptp(load_picture(original.picture)))))
        assert asked == [False, True]
        assert sorted(start for start, _ in kept) == [b"\x89PNG", b"\xff\xd8\xff\xe0"]
        assert [spread > 200 for _, spread in sorted(kept)] == [False, True]


async def test_a_file_that_crashes_its_reader_is_refused_once_and_the_others_flow(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(picture(form="PNG", seed=1))
    (inbox / "b.png").write_bytes(picture(form="PNG") + b"." + crashing_reader.CRASH)
    (inbox / "c.jpg").write_bytes(picture(seed=2))
    (inbox / "d.webp").write_bytes(picture(form="WEBP", seed=3))
    async with service(tmp_path, tiny_bundle) as edge:
        edge.reader.command = crashing_reader.command(tmp_path)
        folder = watched(edge, inbox)
        await folder.look()
        assert await folder.look() == 3
        assert {path.name for path in (inbox / "done").iterdir()} == {"a.png", "c.jpg", "d.webp"}
        assert {path.name for path in (inbox / "refused").iterdir()} == {"b.png"}
        assert (outcomes(edge, "taken"), outcomes(edge, "refused")) == (3.0, 1.0)
        name = "aeic_edge_picture_process_losses_total"
        assert edge.metrics.registry.get_sample_value(name, {"reason": "crash"}) == 1.0
        assert not edge.restart.is_set() and await edge.problem() == ""
    assert edge.reader.pids == set()
    async with service(tmp_path, tiny_bundle) as edge:  # it does not come again
        folder = watched(edge, inbox)
        await folder.look()
        assert await folder.look() == 0


async def test_a_file_waits_while_no_process_can_be_started_to_read_it(tmp_path: Path, tiny_bundle: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a.png").write_bytes(picture(form="PNG"))
    (inbox / "b.jpg").write_bytes(picture())
    async with service(tmp_path, tiny_bundle) as edge:
        command, edge.reader.command = edge.reader.command, ("/nowhere/python",)
        folder = watched(edge, inbox)
        await folder.look()
        assert await folder.look() == 1
        assert (inbox / "a.png").exists() and folder.status.failures_in_a_row == 0 and outcomes(edge, "refused") == 0
        edge.reader.command = command
        assert await folder.look() == 1
