"""A folder as a source: new pictures in it are encoded and spooled, then moved or deleted.

    in/boat.jpg -> (unchanged for settle_seconds) -> spooled -> in/done/boat.jpg, or deleted
                                                  -> not an accepted picture -> in/refused/boat.jpg, and a log line

A crash between spooling and moving does no harm: the id derives from the file's name, time and bytes, so the next scan
finds the frame in the spool. While the encoder is busy or the spool is full, files stay where they are. A file that
looks cut short may still be written, so it is refused only after PATIENCE_SECONDS without a change. A file that cannot
be read is reported once and left; one that cannot be moved is remembered (taken_files.py).

The folder is scanned and not watched with inotify. Network file systems report nothing to inotify, events that are lost
when its queue overflows need a scan all the same, and writers that reopen a file (FTP's resume, rsync --append) close
it before it is complete. Size and times that stay the same over several looks cover all of these. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

from aeic.errors import InputError, RateError, Unreadable
from aeic.identifiers import derived_id
from aeic.pixels import SUFFIXES
from aeic_service.errors import Overloaded
from edge_encoder.errors import IdTaken, PictureReaderLost, SpoolError, is_of_the_machine
from edge_encoder.service import EdgeService
from edge_encoder.source_settings import FolderSettings
from edge_encoder.source_status import SourceStatus
from edge_encoder.sources.taken_files import TakenFiles
from edge_encoder.spool.record import CapturedFrom
from edge_encoder.submission.request import EncodeRequest

log = logging.getLogger("aeic.edge.folder")

PATIENCE_SECONDS = 30.0
LOOKS = 2
"""Scans in which a file must have been the same, whatever the settings say."""
_UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp", ".download")
_OURS = ("done", "refused")
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)


@dataclass(slots=True)
class _Sight:
    """A file as it was seen: size, times of content and of everything, and inode."""

    mark: tuple[int, int, int, int]
    since: float  # monotonic
    looks: int = 1


class WatchedFolder:
    """Scans one folder. `look()` is one scan."""

    may_end = False

    def __init__(self, service: EdgeService, settings: FolderSettings) -> None:
        self.name = settings.name
        self.status = SourceStatus(settings.name, "folder")
        self._service = service
        self._settings = settings
        self._request = EncodeRequest.of_source(settings, service.settings.source_id)
        self._folder = settings.path
        self._seen: dict[Path, _Sight] = {}
        self._reported: dict[Path, tuple[int, int, int, int]] = {}  # files that cannot be read, as they were then
        self._taken: TakenFiles | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
                if self.status.set("up"):
                    log.info("folder %s: %s is scanned", self.name, self._folder)
            except OSError as error:
                if self.status.set("down", f"the folder cannot be read: {error.strerror or error}"):
                    log.error("folder %s: %s: %s", self.name, self._folder, self.status.detail)
            await asyncio.sleep(self._settings.seconds)

    async def look(self) -> int:
        """One scan: takes every file that has not changed for a while. Returns how many were taken."""
        if self._taken is None:
            path = self._service.settings.data_dir / f"folder-{self.name}.taken"
            self._taken = await asyncio.to_thread(TakenFiles, path)
        present = await asyncio.to_thread(self._list)
        now = time.monotonic()
        ready = []
        for path, mark in present.items():
            sight = self._seen.get(path)
            if sight is None or sight.mark != mark:
                self._seen[path] = _Sight(mark, now)
                continue
            sight.looks += 1
            if sight.looks >= LOOKS and now - sight.since >= self._settings.settle_seconds:
                ready.append(path)
        self._seen = {path: sight for path, sight in self._seen.items() if path in present}
        self._reported = {path: mark for path, mark in self._reported.items() if present.get(path) == mark}
        taken = 0
        for path in sorted(ready, key=lambda path: (present[path][1], os.fsencode(path))):
            if path in self._reported or self._key(path, present[path]) in self._taken:
                continue
            try:
                taken += await self._take(path, present[path])
                self.status.failures_in_a_row = 0
            except (Overloaded, SpoolError) as error:
                log.info("folder %s: %s waits: %s", self.name, path.name, error)
                break
            except Exception as error:  # the other files go on
                if isinstance(error, OSError) and error.errno not in _SHORTAGES:
                    self._cannot_be_read(path, present[path], error)
                    continue
                if is_of_the_machine(error):  # not of the file, which is taken later
                    self.status.failures_in_a_row += 1
                    if self.status.failures_in_a_row == 1:
                        log.error("folder %s: %s waits: the machine cannot encode it now: %r", self.name, path, error)
                    continue
                log.exception("folder %s: %s cannot be encoded and is skipped", self.name, path.name)
                self._reported[path] = present[path]
                self._service.metrics.source_frames.labels(self.name, "unreadable").inc()
        return taken

    def _list(self) -> dict[Path, tuple[int, int, int, int]]:
        """Every file that may be a picture, with its mark. OSError when the folder itself cannot be read."""
        found: dict[Path, tuple[int, int, int, int]] = {}
        folders = [self._folder]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(folder))
            except OSError:
                if folder is self._folder:
                    raise
                continue  # it was deleted meanwhile, or is another user's
            names = {entry.name for entry in entries}
            for entry in entries:
                if entry.name.startswith(".") or (folder == self._folder and entry.name in _OURS):
                    continue
                path = folder / entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if self._settings.recursive:
                            folders.append(path)
                    elif (
                        path.suffix.lower() in SUFFIXES
                        and not any(entry.name + suffix in names for suffix in _UNFINISHED)
                        and entry.is_file()
                    ):
                        facts = entry.stat()
                        found[path] = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
                except OSError:
                    continue
        return found

    async def _take(self, path: Path, mark: tuple[int, int, int, int]) -> bool:
        size, time_ns, *_ = mark
        most = self._service.settings.max_body_bytes
        try:
            if size > most:
                raise InputError(f"the file has {size} bytes: raise AEIC_EDGE_MAX_BODY_BYTES or send smaller ones")
            data = await asyncio.to_thread(_read, path, most, mark)
            if data is None:  # it is written or replaced just now
                self._seen.pop(path, None)
                return False
            name = os.fsencode(path.name)
            encode_request = replace(
                self._request,
                captured_ms=max(0, time_ns // 1_000_000),
                captured_from=CapturedFrom.FILE,
                id=derived_id(time_ns // 1_000_000, name + f"\0{time_ns}\0".encode() + data),
            )
            await self._service.take(data, encode_request)
        except PictureReaderLost as error:  # not once more: each try costs a process
            await self._refuse(path, mark, error)
            return False
        except Unreadable as error:
            waited = time.monotonic() - self._seen[path].since
            if waited < max(PATIENCE_SECONDS, self._settings.settle_seconds):
                log.debug("folder %s: %s may be incomplete: %s", self.name, path.name, error)
                return False
            await self._refuse(path, mark, error)
            return False
        except (InputError, RateError, IdTaken) as error:
            await self._refuse(path, mark, error)
            return False
        self._service.metrics.folder_files.labels("taken").inc()
        self._service.metrics.source_frames.labels(self.name, "taken").inc()
        self.status.took()
        await self._put_away(path, mark, "done" if self._settings.keep else None)
        return True

    async def _refuse(self, path: Path, mark: tuple[int, int, int, int], error: Exception) -> None:
        log.warning("folder %s: %s is refused: %s", self.name, path.name, error)
        self._service.metrics.folder_files.labels("refused").inc()
        self._service.metrics.source_frames.labels(self.name, "refused").inc()
        self.status.refused += 1
        await self._put_away(path, mark, "refused")

    async def _put_away(self, path: Path, mark: tuple[int, int, int, int], folder: str | None) -> None:
        """Moves the file into the folder, or deletes it; if that is impossible, remembers it.

        A file that was replaced or changed since it was read stays, and is taken at a later scan.
        """
        self._seen.pop(path, None)
        try:
            if not await asyncio.to_thread(_put_away, path, mark, self._folder, folder):
                log.info("folder %s: %s has changed since it was read and is taken again", self.name, path.name)
        except OSError as error:
            assert self._taken is not None
            if not self._taken.used:
                log.warning(
                    "folder %s: files cannot be moved or deleted (%s); they stay, and %s records them",
                    self.name, error.strerror or error, self._taken.path,
                )  # fmt: skip
            await asyncio.to_thread(self._taken.add, self._key(path, mark))

    def _cannot_be_read(self, path: Path, mark: tuple[int, int, int, int], error: OSError) -> None:
        if not path.exists():
            return  # its owner has taken it back
        log.warning("folder %s: %s cannot be read (%s) and is skipped", self.name, path.name, error.strerror or error)
        self._service.metrics.source_frames.labels(self.name, "unreadable").inc()
        self._reported[path] = mark

    def _key(self, path: Path, mark: tuple[int, int, int, int]) -> bytes:
        relative = os.fsencode(path.relative_to(self._folder))
        return relative + f"\0{mark[0]}\0{mark[1]}".encode()


def _read(path: Path, most: int, mark: tuple[int, int, int, int]) -> bytes | None:
    """The whole file; None if it is not the one of that mark. OSError if it is longer than `most`, whatever its size
    was said to be."""
    with path.open("rb") as file:
        data = file.read(most + 1)
        same = _is(os.fstat(file.fileno()), mark)
    if not same:
        return None
    if len(data) > most:
        raise OSError(f"it has more than {most} bytes")
    return data


def _is(facts: os.stat_result, mark: tuple[int, int, int, int]) -> bool:
    """Whether it is the file of that mark, with the same content. A rename changes the ctime, which does not count."""
    size, time_ns, _, inode = mark
    return (facts.st_size, facts.st_mtime_ns, facts.st_ino) == (size, time_ns, inode)


def _put_away(path: Path, mark: tuple[int, int, int, int], root: Path, folder: str | None) -> bool:
    """Moves the file to the same place under `root`/`folder`, or deletes it. False if it is not the one of that mark.

    It gets another name first and is looked at again under that name: until then it may be replaced.
    """
    try:
        if not _is(path.stat(), mark):
            return False
        if folder is None:
            aside = _free(path.with_name(f".{path.name}.taken"))
        else:
            place = root / folder / path.parent.relative_to(root)
            place.mkdir(parents=True, exist_ok=True)
            aside = _free(place / path.name)
        path.rename(aside)
    except FileNotFoundError:
        return True  # its owner has taken it back
    facts = aside.lstat()  # without the inode, which a rename may change on some file systems
    if not stat.S_ISLNK(facts.st_mode) and (facts.st_size, facts.st_mtime_ns) != mark[:2]:
        aside.rename(_free(path))
        return False
    if folder is None:
        aside.unlink()
    return True


def _free(path: Path) -> Path:
    """The path, or one with a number where that is taken."""
    target, number = path, 0
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return target
