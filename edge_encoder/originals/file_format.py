"""How an original is written to its file: a description and a picture, with a check that neither has changed."""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

MAGIC = b"AEICORI1"
LENGTH = struct.Struct("<I")
MAX_META_BYTES = 4096
HEAD_BYTES = MAX_META_BYTES + 128
"""The start of a file in which all of its description is."""


class FileFormat(Protocol):
    """Files of one format. What is of another one, changed or cut short is a ValueError or struct.error."""

    def pack(self, meta: bytes, picture: bytes) -> list[bytes]:
        """The file of a description, of at most MAX_META_BYTES, and a picture; in parts."""
        ...

    def meta(self, head: bytes) -> bytes:
        """The description, from the first HEAD_BYTES of a file."""
        ...

    def unpack(self, raw: bytes) -> tuple[bytes, bytes]:
        """The description and the picture of a whole file."""
        ...


class Plain:
    """magic "AEICORI1" | bytes of meta u32 | meta | picture | crc32 u32 of all before"""

    def pack(self, meta: bytes, picture: bytes) -> list[bytes]:
        """As in FileFormat."""
        head = MAGIC + LENGTH.pack(len(meta)) + meta
        return [head, picture, LENGTH.pack(zlib.crc32(picture, zlib.crc32(head)))]

    def meta(self, head: bytes) -> bytes:
        """As in FileFormat."""
        return part(head, MAGIC, len(MAGIC))[0]

    def unpack(self, raw: bytes) -> tuple[bytes, bytes]:
        """As in FileFormat."""
        (crc,) = LENGTH.unpack(raw[-LENGTH.size :])
        if zlib.crc32(memoryview(raw)[: -LENGTH.size]) != crc:
            raise ValueError("the check value does not match")
        meta, start = part(raw, MAGIC, len(MAGIC))
        return meta, raw[start : -LENGTH.size]


def part(raw: bytes, magic: bytes, at: int, more: int = 0) -> tuple[bytes, int]:
    """The part whose length less `more` stands at `at`, and where it ends. ValueError or struct.error if `raw` does not
    begin with `magic`, or is shorter."""
    if not raw.startswith(magic):
        raise ValueError("it is not an original, or not one of this format")
    (length,) = LENGTH.unpack_from(raw, at)
    start = at + LENGTH.size
    end = start + length + more
    if length > MAX_META_BYTES or end > len(raw):
        raise ValueError("its description is truncated")
    return bytes(raw[start:end]), end
