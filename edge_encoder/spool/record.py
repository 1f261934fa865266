"""What the spool stores: frames and received pictures, each self-describing and with a check value, and their entries.

A frame is one run of bytes:

    magic "AEICREC1" | length u32 | header (fixed) | source id (utf-8) | bitstream | crc32 u32 of all before

The magic and the length let recovery.py find frames in a file whose tables are gone; the CRC-32 distinguishes a frame
from damaged bytes. A received picture (its file as it was sent) is stored with `meta`, one line of JSON, and a
CRC-32 over both. Nothing here knows SQLite or Pillow.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import Any, Literal

FullPolicy = Literal["refuse", "drop-oldest", "drop-lowest-priority"]
"""What happens when the spool's cap is reached."""

MAGIC = b"AEICREC1"
_LENGTH = struct.Struct("<I")
# id, picture crc, width, height, rate, priority, created ms, captured ms, bytes of source id
_HEADER = struct.Struct("<16sIHHBIQQB")
_FIXED = len(MAGIC) + _LENGTH.size + _HEADER.size + 4
MAX_RECORD_BYTES = 8 << 20
_MAX_MS = 1 << 62  # SQLite's integers are signed


class State(enum.IntEnum):
    """The state of a frame. The numbers are stored in the spool, so they never change. SENDING is never stored, and
    RECEIVED is the state of the rows of the table `originals`."""

    SPOOLED = 0
    DELIVERED = 1
    REJECTED = 2
    DROPPED = 3
    SENDING = 4
    FAILED = 5
    RECEIVED = 6


CLOCK_IS_SET_MS = 1_735_689_600_000
"""2025-01-01 in milliseconds since 1970: a machine without a battery-backed clock starts at 1970, or at the date of its
system image, and an earlier time means that it is not set yet."""


class CapturedFrom(enum.IntEnum):
    """Where a time of capture comes from. The numbers are those of CaptureTimeSource in protos/aeic/v1/ingest.proto and
    are stored in the spool, so they never change."""

    UNKNOWN = 0
    SENDER = 1
    EXIF = 2
    FILE = 3
    CLOCK = 4


class DropCause(enum.StrEnum):
    """Why a frame was dropped. The values are those of the label `reason` of aeic_edge_dropped_total, which alerts and
    dashboards use, so they never change; the text in Entry.reason is for people."""

    FULL = "full"
    AGE = "age"
    DAMAGED = "damaged"


FINAL = (State.DELIVERED, State.REJECTED, State.DROPPED, State.FAILED)


class DamagedRecord(ValueError):
    """The bytes are not a whole record, or the check value does not match."""


@dataclass(frozen=True, slots=True)
class Record:
    """A frame to be delivered. `data` is the whole .aeic file; times are milliseconds since 1970 UTC; `picture_crc` is
    the CRC-32 of the picture file, by which a reused id is recognised. `original_width` and `original_height` are the
    picture's before it was scaled down, 0 where they are unknown; with `captured_from` they describe the picture and
    are no part of to_bytes(), so that earlier releases read the record."""

    id: uuid.UUID
    data: bytes
    width: int
    height: int
    rate: int
    priority: int = 0
    created_ms: int = 0
    captured_ms: int = 0
    picture_crc: int = 0
    source_id: str = ""
    original_width: int = 0
    original_height: int = 0
    captured_from: CapturedFrom = CapturedFrom.UNKNOWN

    def to_bytes(self) -> bytes:
        """The record as it is stored."""
        source = self.source_id.encode()[:255]
        header = _HEADER.pack(
            self.id.bytes,
            self.picture_crc,
            self.width,
            self.height,
            self.rate,
            self.priority,
            self.created_ms,
            self.captured_ms,
            len(source),
        )
        length = _FIXED + len(source) + len(self.data)
        start = MAGIC + _LENGTH.pack(length) + header + source + self.data
        return start + _LENGTH.pack(zlib.crc32(start))

    @classmethod
    def parse(cls, raw: Any) -> Record:
        """The record at the start of `raw`; bytes behind it are ignored. DamagedRecord for anything else, of whatever
        type."""
        if not isinstance(raw, bytes | memoryview) or len(raw) < _FIXED or bytes(raw[:8]) != MAGIC:
            raise DamagedRecord("there is no record")
        (length,) = _LENGTH.unpack_from(raw, 8)
        if not _FIXED <= length <= min(MAX_RECORD_BYTES, len(raw)):
            raise DamagedRecord(f"the record claims {length} bytes of {len(raw)}")
        (crc,) = _LENGTH.unpack_from(raw, length - 4)
        if zlib.crc32(raw[: length - 4]) != crc:
            raise DamagedRecord("the check value does not match")
        ident, picture_crc, width, height, rate, priority, created, captured, named = _HEADER.unpack_from(raw, 12)
        start = 12 + _HEADER.size
        if start + named > length - 4 or max(created, captured) >= _MAX_MS:
            raise DamagedRecord("the header does not match the record")
        return cls(
            id=uuid.UUID(bytes=ident),
            data=bytes(raw[start + named : length - 4]),
            width=width,
            height=height,
            rate=rate,
            priority=priority,
            created_ms=created,
            captured_ms=captured,
            picture_crc=picture_crc,
            source_id=bytes(raw[start : start + named]).decode(errors="replace"),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of a frame. `size` is the bytes of the .aeic file, 0 where the received picture was not
    encoded; times are milliseconds since 1970; the original size is 0 if it is unknown."""

    id: uuid.UUID
    state: State
    width: int
    height: int
    size: int
    rate: int
    priority: int
    picture_crc: int
    created_ms: int
    finished_ms: int | None
    reason: str
    original_width: int = 0
    original_height: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """The new state of a frame or received picture, and why, as a text; `drop` is set for DROPPED and for no other."""

    id: uuid.UUID
    state: State
    reason: str = ""
    drop: DropCause | None = None


@dataclass(frozen=True, slots=True)
class ReceivedPicture:
    """A picture that is not encoded yet, with what was requested for it. `picture` is a picture file as it was sent,
    `picture_crc` its CRC-32, `width` and `height` are from its header; times are milliseconds since 1970 UTC, and
    `captured_ms` is 0 unless the sender named it. `rate`, `max_bytes`, `target_bytes` and `max_side` as in
    Encoder.encode."""

    id: uuid.UUID
    picture: bytes
    picture_crc: int
    width: int
    height: int
    priority: int = 0
    created_ms: int = 0
    captured_ms: int = 0
    source_id: str = ""
    rate: str | None = None
    max_bytes: int | None = None
    target_bytes: int | None = None
    max_side: int | None = None

    def meta(self) -> bytes:
        """Everything but the picture, as it is stored."""
        facts = {name: getattr(self, name) for name in _FACTS}
        if self.max_side is None:
            del facts["max_side"]  # earlier releases do not know it
        return json.dumps({**facts, "id": self.id.hex}, separators=(",", ":")).encode()

    def check(self, meta: bytes) -> int:
        """The check value that is stored beside `meta`."""
        return zlib.crc32(meta, self.picture_crc)

    @classmethod
    def parse(cls, meta: Any, check: Any, picture: Any) -> ReceivedPicture:
        """The picture of a row. DamagedRecord when it is not what was written, of whatever types the values are."""
        if not isinstance(meta, bytes) or not isinstance(picture, bytes):
            raise DamagedRecord("there is no picture")
        if zlib.crc32(meta, zlib.crc32(picture)) != check:
            raise DamagedRecord("the check value does not match")
        try:
            facts = json.loads(meta)
            return cls(**{**facts, "id": uuid.UUID(hex=facts["id"])}, picture=picture)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedRecord(f"the description cannot be read: {error}") from None


_FACTS = tuple(field.name for field in dataclasses.fields(ReceivedPicture) if field.name not in ("id", "picture"))
