"""The watched folder: what appears is taken once, what is no picture is put aside, half-written files wait."""

from __future__ import annotations

import os
from pathlib import Path

from edge_encoder.service import EdgeService
from edge_encoder.sources.watched_folder import WatchedFolder
from edge_encoder.spool.ledger import Limits
from tests.support.edge_fakes import settings
from tests.support.pictures import picture


async def test_pictures_are_taken_once_they_rest(tmp_path: Path, tiny_bundle: Path) -> None:
    inbox = tmp_path / "in"
    inbox.mkdir()

    service = EdgeService(settings(tmp_path / "spool", bundle=tiny_bundle, drain_timeout_seconds=0))
    await service.start()
    folder = WatchedFolder(service, inbox, 0.01, keep=True)
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
    service.spool._ledger.limits = Limits(max_bytes=10)
    folder = WatchedFolder(service, inbox, 0.01, keep=False)
    (inbox / "a.jpg").write_bytes(picture())
    await folder.look()
    assert await folder.look() == 0 and (inbox / "a.jpg").exists()
    service.spool._ledger.limits = Limits()
    assert await folder.look() == 1 and not (inbox / "a.jpg").exists()
    await service.stop()
