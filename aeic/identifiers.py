"""Names of frames and sources.

A frame id is a UUIDv7 (RFC 9562): ids sort by time, so an index of them grows at its end.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0  # the last (milliseconds << 12 | counter) given out


def new_id() -> uuid.UUID:
    """A fresh UUIDv7; within this process each is larger than the one before, whatever the clock does."""
    global _last
    with _lock:
        now = (time.time_ns() // 1_000_000) << 12
        # Behind the last id (same millisecond, or a clock set back): count on from it.
        _last = now if now > _last else _last + 1
        stamp = _last
    value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)


def derived_id(milliseconds: int, content: bytes) -> uuid.UUID:
    """A UUIDv7 of that time since 1970 whose other bits come from `content`: the same things, the same id."""
    random = int.from_bytes(hashlib.sha256(content).digest()[:10], "big")
    value = (max(0, milliseconds) & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return uuid.UUID(int=value)


def parse_id(text: str) -> uuid.UUID:
    """A UUID in its canonical text form; ValueError for anything else (braces, urn:, missing hyphens)."""
    value = uuid.UUID(text)
    if str(value) != text.lower():
        raise ValueError(f"{text[:64]!r} is not a UUID in the form 8-4-4-4-12")
    return value


def is_name(text: str) -> bool:
    """Whether `text` can name a source: 1 to 128 printable characters, at most 255 bytes of UTF-8.

    A cloud rejects frames of any other name, and a spooled record has no room for it.
    """
    return 1 <= len(text) <= 128 and text.isprintable() and len(text.encode()) <= 255
