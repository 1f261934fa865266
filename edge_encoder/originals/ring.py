"""The ring of originals: the newest picture files, up to a number of bytes and an age, in separate files.

    NUMBER.original:  magic "AEICORI1" | bytes of meta u32 | meta (JSON) | picture | crc32 u32 of all before

A file is named by a number that only counts; ids stand inside. Nothing is promised of an original, so nothing is
synced: a file that a power cut truncated is deleted when it is found. Writing never takes space that the spool may
still need. Blocks; thread safe.
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
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("aeic.edge.originals")

MAGIC = b"AEICORI1"
_LENGTH = struct.Struct("<I")
_MAX_META_BYTES = 4096
_SUFFIX = ".original"


@dataclass(frozen=True, slots=True)
class Kept:
    """An original: the id of its frame, its source, the bytes of a JPEG, PNG or WebP file, and its time of capture in
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
    kept_at: float  # wall clock, seconds


class OriginalRing:
    """Originals in `folder`, of at most `max_bytes` in all, and of at most `source_bytes[source]` for a source named
    there. Older ones than `max_age_seconds` (0: any) are deleted. `spool_needs()` is the space in bytes that the spool
    may still take of the disk."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age_seconds: float = 0.0,
        source_bytes: Mapping[str, int] | None = None,
        spool_needs: Callable[[], int] = lambda: 0,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.failures = 0
        self._folder = folder
        self._max_age_seconds = max_age_seconds
        self._source_bytes = dict(source_bytes or {})
        self._spool_needs = spool_needs
        self._places: dict[uuid.UUID, _Place] = {}  # the oldest first
        self._next = 0
        self._lock = threading.Lock()
        self._scan()

    def __len__(self) -> int:
        return len(self._places)

    def takes(self, source_id: str) -> bool:
        """Whether originals of that source are kept at all."""
        return self._limit(source_id) > 0

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
        head = MAGIC + _LENGTH.pack(len(meta)) + meta
        size = len(head) + len(kept.picture) + _LENGTH.size
        with self._lock:
            if size > self._limit(kept.source_id):
                return False
            self._delete(kept.id)
            self._make_room(kept.source_id, size)
            number = self._next
            path = self._path(number)
            try:
                facts = os.statvfs(self._folder)
                if facts.f_bavail * facts.f_frsize < size + self._spool_needs():
                    return False
                self._next += 1
                crc = zlib.crc32(kept.picture, zlib.crc32(head))
                with path.open("xb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    for part in (head, kept.picture, _LENGTH.pack(crc)):
                        file.write(part)
            except OSError as error:
                if not self.failures:
                    log.warning("originals cannot be kept: %s", error)
                self.failures += 1
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                return False
            self._places[kept.id] = _Place(number, size, kept.source_id, time.time())
            self.bytes += size
        return True

    def read(self, ident: uuid.UUID) -> Kept | None:
        """The original of a frame; None if it is not here any more, or damaged."""
        self.expire()
        with self._lock:
            place = self._places.get(ident)
            if place is None:
                return None
            try:
                raw = self._path(place.number).read_bytes()
                (crc,) = _LENGTH.unpack(raw[-_LENGTH.size :])
                meta, start = _meta(raw[: len(MAGIC) + _LENGTH.size + _MAX_META_BYTES])
                if zlib.crc32(raw[: -_LENGTH.size]) != crc or meta["id"] != ident.hex:
                    raise ValueError("the check value does not match")
                return Kept(
                    id=ident,
                    source_id=str(meta["source_id"]),
                    picture=raw[start : -_LENGTH.size],
                    captured_ms=int(meta["captured_ms"]),
                    captured_from=int(meta["captured_from"]),
                )
            except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
                log.warning("an original is damaged and deleted: %s", error)
                self._delete(ident)
                return None

    def expire(self) -> None:
        """Deletes the originals that are too old, by the wall clock: after a jump of it, more or fewer than that."""
        if not self._max_age_seconds:
            return
        with self._lock:
            oldest = time.time() - self._max_age_seconds
            for ident in [ident for ident, place in self._places.items() if place.kept_at < oldest]:
                self._delete(ident)

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
        """Finds what an earlier process has kept. A file that is not a complete original is deleted."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(path for path in self._folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdigit())
        except OSError as error:
            log.warning("originals cannot be kept: %s", error)
            self.failures += 1
            return
        for path in found:
            number = int(path.stem)
            self._next = max(self._next, number + 1)
            try:
                with path.open("rb") as file:
                    place, ident = _place(file, number)
                self._delete(ident)
                self._places[ident] = place
                self.bytes += place.size
            except (OSError, ValueError, KeyError, TypeError, struct.error):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._make_room("", 0)


def _place(file: BinaryIO, number: int) -> tuple[_Place, uuid.UUID]:
    meta, _ = _meta(file.read(len(MAGIC) + _LENGTH.size + _MAX_META_BYTES))
    size = os.fstat(file.fileno()).st_size
    return _Place(number, size, str(meta["source_id"]), float(meta["kept_at"])), uuid.UUID(hex=meta["id"])


def _meta(head: bytes) -> tuple[dict[str, str], int]:
    """The description of an original, and where its picture begins. ValueError or struct.error for anything else."""
    if head[: len(MAGIC)] != MAGIC:
        raise ValueError("it is not an original")
    (length,) = _LENGTH.unpack_from(head, len(MAGIC))
    start = len(MAGIC) + _LENGTH.size + length
    if start > len(head):
        raise ValueError("its description is cut short")
    found = json.loads(head[len(MAGIC) + _LENGTH.size : start])
    if not isinstance(found, dict):
        raise ValueError("its description is not an object")
    return found, start
