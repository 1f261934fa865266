"""A folder as a source: new pictures in it are encoded and spooled, then moved or deleted.

    in/boat.jpg -> (unchanged between two scans) -> spooled -> in/done/boat.jpg, or deleted
                                                 -> not an accepted picture -> in/refused/boat.jpg, and a log line

A crash between spooling and moving does no harm: the id derives from the file's name, time and bytes, so the next scan
finds the frame in the spool. While the encoder is busy or the spool is full, files stay where they are. Writers should
write to a name that starts with a dot and rename. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aeic.errors import InputError
from aeic.identifiers import derived_id
from aeic_service.errors import Overloaded
from edge_encoder.errors import IdTaken, SpoolError
from edge_encoder.service import EdgeService
from edge_encoder.submission.request import EncodeRequest

log = logging.getLogger("aeic.edge.folder")

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class WatchedFolder:
    """Scans `folder` every `seconds`; `keep` moves taken files into done/, otherwise they are deleted."""

    name = "folder"
    may_end = False

    def __init__(self, service: EdgeService, folder: Path, seconds: float, keep: bool) -> None:
        self._service = service
        self._folder = folder
        self._seconds = seconds
        self._keep = keep
        self._seen: dict[Path, tuple[int, int]] = {}  # size and time at the last scan

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except OSError as error:
                log.error("the folder %s cannot be read: %s", self._folder, error)
            await asyncio.sleep(self._seconds)

    async def look(self) -> int:
        """One scan: takes every file that has not changed since the previous one. Returns how many were taken."""
        taken = 0
        present = await asyncio.to_thread(self._list)
        still = [path for path, mark in present.items() if self._seen.get(path) == mark]
        self._seen = present
        for path in sorted(still, key=lambda path: (present[path][1], path.name)):
            try:
                taken += await self._take(path, present[path])
            except (Overloaded, SpoolError) as error:
                log.info("%s waits: %s", path.name, error)
                break
        return taken

    def _list(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self._folder.iterdir():
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file():
                facts = path.stat()
                found[path] = (facts.st_size, facts.st_mtime_ns)
        return found

    async def _take(self, path: Path, mark: tuple[int, int]) -> bool:
        size, time_ns = mark
        try:
            if size > self._service.settings.max_body_bytes:
                raise InputError(f"the file has {size} bytes: raise AEIC_EDGE_MAX_BODY_BYTES or send smaller ones")
            data = await asyncio.to_thread(path.read_bytes)
            encode_request = EncodeRequest(
                captured_ms=max(0, time_ns // 1_000_000),
                id=derived_id(time_ns // 1_000_000, f"{path.name}\0{time_ns}\0".encode() + data),
            )
            await self._service.take(data, encode_request)
        except (InputError, IdTaken) as error:
            log.warning("%s is refused: %s", path.name, error)
            self._service.metrics.folder_files.labels("refused").inc()
            await asyncio.to_thread(_move, path, self._folder / "refused")
            return False
        self._service.metrics.folder_files.labels("taken").inc()
        if self._keep:
            await asyncio.to_thread(_move, path, self._folder / "done")
        else:
            await asyncio.to_thread(path.unlink, True)
        self._seen.pop(path, None)
        return True


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    path.replace(folder / path.name)
