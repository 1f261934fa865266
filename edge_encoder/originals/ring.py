"""The ring of originals: the newest picture files, up to a number of bytes and an age, in separate files.

A file, NUMBER.original, is named by a number that only counts; ids stand inside, in a description in JSON. It is plain
(file_format.py) or encrypted (cipher.py). Nothing is promised of an original, so nothing is synced: a file that a power
cut truncated is deleted when it is found, and so is one that the present key does not open, or that was kept without a
key although there is one now. Originals never take space that the spool may still need: the oldest are deleted where
the disk fills up. Blocks; thread safe.

submission/submitter.py keeps an original once its frame is spooled; answers/answerer.py reads it for a request;
EdgeService calls `expire` once a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge_encoder.originals.file_format import HEAD_BYTES, FileFormat, Plain

log = logging.getLogger("aeic.edge.originals")

CAMERA_QUALITY = 92
"""The JPEG quality of originals that come from a camera."""
_SUFFIX = ".original"
_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Kept:
    """An original: the id of its frame, its source, the bytes of a picture file, and its time of capture in
    milliseconds since 1970 with where that comes from (CapturedFrom)."""

    id: uuid.UUID
    source_id: str
    picture: bytes
    captured_ms: int = 0
    captured_from: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    number: int
    size: int
    source_id: str
    kept_at: float  # by _uptime()


class OriginalRing:
    """Originals in `folder`, of at most `max_bytes` in all, and of at most `source_bytes[source]` for a source named
    there. 0 keeps none, and deletes those of an earlier process. Older ones than `max_age_seconds` (0: any) are
    deleted. `spool_needs()` is the space in bytes that the spool may still take of the disk. With a `cipher` they are
    encrypted. Call `expire()` every now and then."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age_seconds: float = 0.0,
        source_bytes: Mapping[str, int] | None = None,
        spool_needs: Callable[[], int] = lambda: 0,
        cipher: FileFormat | None = None,
    ) -> None:
        self._format: FileFormat = cipher or Plain()
        self.max_bytes = max_bytes
        self.bytes = 0
        self.failures = 0
        self._no_room = False  # and that was logged
        self._folder = folder
        self._max_age_seconds = max_age_seconds
        self._source_bytes = dict(source_bytes or {})
        self._spool_needs = spool_needs
        self._places: dict[uuid.UUID, _Place] = {}  # the oldest first
        self._next = 0
        self._lock = threading.Lock()
        self._expected: Counter[uuid.UUID] = Counter()
        self._expected_lock = threading.Lock()
        self._scan()

    def __len__(self) -> int:
        return len(self._places)

    def takes(self, source_id: str) -> bool:
        """Whether originals of that source are kept at all."""
        return self._limit(source_id) > 0

    @contextlib.contextmanager
    def expecting(self, ident: uuid.UUID) -> Iterator[None]:
        """While the block runs, `expects(ident)`: the frame is spooled, and then its original is kept."""
        with self._expected_lock:
            self._expected[ident] += 1
        try:
            yield
        finally:
            with self._expected_lock:
                self._expected[ident] -= 1
                if not self._expected[ident]:
                    del self._expected[ident]

    def expects(self, ident: uuid.UUID) -> bool:
        """Whether the original of a frame is about to be kept."""
        return ident in self._expected

    def source(self, ident: uuid.UUID) -> str | None:
        """The source of an original; None if it is not here."""
        with self._lock:
            place = self._places.get(ident)
        return None if place is None else place.source_id

    def keep(self, kept: Kept) -> bool:
        """Stores an original, in place of the oldest ones if there is no room. False if it cannot be kept: it is
        too large, or the disk is full or fails."""
        meta = json.dumps(
            {
                "id": kept.id.hex,
                "source_id": kept.source_id,
                "captured_ms": kept.captured_ms,
                "captured_from": kept.captured_from,
                "kept_at": round(time.time(), 3),
            }
        ).encode()
        parts = self._format.pack(meta, kept.picture)
        size = sum(map(len, parts))
        with self._lock:
            if size > self._limit(kept.source_id):
                return False
            self._delete(kept.id)
            self._make_room(kept.source_id, size)
            number = self._next
            path = self._path(number)
            try:
                if not self._leave_room(size):
                    if not self._no_room:
                        log.warning(
                            "originals are not kept: all that is free on the disk is kept free for the spool; make room"
                            " on it, or lower AEIC_EDGE_SPOOL_MAX_BYTES and AEIC_EDGE_RECEIVED_MAX_BYTES"
                        )
                    self._no_room = True
                    return False
                self._no_room = False
                self._next += 1
                with path.open("xb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    for part in parts:
                        file.write(part)
            except OSError as error:
                if not self.failures:
                    log.warning("originals cannot be kept: %s", error)
                self.failures += 1
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                return False
            self._places[kept.id] = _Place(number, size, kept.source_id, _uptime())
            self.bytes += size
        return True

    def read(self, ident: uuid.UUID) -> Kept | None:
        """The original of a frame; None if it is not here any more, or damaged."""
        with self._lock:
            self._delete_old()
            place = self._places.get(ident)
            if place is None:
                return None
            try:
                packed, picture = self._format.unpack(self._path(place.number).read_bytes())
                meta = _parsed(packed)
                if meta["id"] != ident.hex:
                    raise ValueError("it is of another frame")
                return Kept(
                    id=ident,
                    source_id=str(meta["source_id"]),
                    picture=picture,
                    captured_ms=int(meta["captured_ms"]),
                    captured_from=int(meta["captured_from"]),
                )
            except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
                log.warning("an original is damaged and deleted: %s", error)
                self._delete(ident)
                return None

    def expire(self) -> None:
        """Deletes the originals that are too old. Where the spool may need more space than the disk has, deletes the
        oldest for it."""
        with self._lock:
            self._delete_old()
            with contextlib.suppress(OSError):
                self._leave_room(0)

    def _delete_old(self) -> None:
        if not self._max_age_seconds:
            return
        oldest = _uptime() - self._max_age_seconds
        for ident in [ident for ident, place in self._places.items() if place.kept_at < oldest]:
            self._delete(ident)

    def _leave_room(self, size: int) -> bool:
        """Deletes the oldest originals until the disk has `size` bytes besides what the spool may need; False if it
        never has. What they took counts as free, since a file system may free it a moment later. OSError."""
        facts = os.statvfs(self._folder)
        missing = size + self._spool_needs() - facts.f_bavail * facts.f_frsize
        while missing > 0 and self._places:
            ident, place = next(iter(self._places.items()))
            missing -= place.size
            self._delete(ident)
        return missing <= 0

    def _limit(self, source_id: str) -> int:
        return min(self.max_bytes, self._source_bytes.get(source_id, self.max_bytes))

    def _make_room(self, source_id: str, size: int) -> None:
        own = [(ident, place) for ident, place in self._places.items() if place.source_id == source_id]
        held = sum(place.size for _, place in own)
        for ident, place in own:
            if held + size <= self._limit(source_id):
                break
            held -= place.size
            self._delete(ident)
        while self._places and self.bytes + size > self.max_bytes:
            self._delete(next(iter(self._places)))

    def _delete(self, ident: uuid.UUID) -> None:
        place = self._places.pop(ident, None)
        if place is not None:
            self.bytes -= place.size
            with contextlib.suppress(OSError):
                self._path(place.number).unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:016d}{_SUFFIX}"

    def _scan(self) -> None:
        """Finds what an earlier process has kept. A file that is not a complete original of this format is deleted."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(path for path in self._folder.iterdir() if _is_ours(path))
        except OSError as error:
            log.warning("originals cannot be kept: %s", error)
            self.failures += 1
            return
        deleted = 0
        for path in found:
            number = int(path.stem)
            self._next = max(self._next, number + 1)
            try:
                with path.open("rb") as file:
                    place, ident = self._place(file, number)
                self._delete(ident)
                self._places[ident] = place
                self.bytes += place.size
            except (OSError, ValueError, KeyError, TypeError, struct.error):
                deleted += 1
                with contextlib.suppress(OSError):
                    path.unlink()
        if deleted:
            log.warning("%d originals were incomplete, or kept under another key or without one: deleted", deleted)
        for source_id in {place.source_id for place in self._places.values()}:  # a smaller limit holds from the start
            self._make_room(source_id, 0)

    def _place(self, file: BinaryIO, number: int) -> tuple[_Place, uuid.UUID]:
        meta = _parsed(self._format.meta(file.read(HEAD_BYTES)))
        size = os.fstat(file.fileno()).st_size
        kept_at = _uptime() - max(0.0, time.time() - float(meta["kept_at"]))
        return _Place(number, size, str(meta["source_id"]), kept_at), uuid.UUID(hex=meta["id"])


def _uptime() -> float:
    """Seconds since the machine was started. The wall clock may jump while the process runs: it only counts the time
    between two processes, and an original of its future is one of now."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _is_ours(path: Path) -> bool:
    number = path.stem
    return path.suffix == _SUFFIX and number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS


def _parsed(meta: bytes) -> dict[str, str]:
    """The description of an original. ValueError for anything else."""
    try:
        found = json.loads(meta)
    except RecursionError:
        raise ValueError("its description is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("its description is not an object")
    return found
