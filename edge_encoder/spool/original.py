"""A picture as it was posted, kept in the spool until it is encoded, with what was asked for it.

Everything but the picture is one line of JSON, `meta`; `check` is a CRC-32 over both, so that a flipped bit is told
from a picture. Nothing here knows SQLite or Pillow.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
import zlib
from dataclasses import dataclass

from edge_encoder.spool.record import DamagedRecord


@dataclass(frozen=True, slots=True)
class Original:
    """`picture` is a JPEG, PNG or WebP file, `picture_crc` its CRC-32, `width` and `height` what its header says; times
    are milliseconds since 1970 UTC. `rate`, `max_bytes` and `target_bytes` as in Encoder.encode."""

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

    def meta(self) -> bytes:
        """All but the picture, as it lies in the spool."""
        facts = {name: getattr(self, name) for name in _FACTS}
        return json.dumps({**facts, "id": self.id.hex}, separators=(",", ":")).encode()

    def check(self, meta: bytes) -> int:
        """The check value that lies beside `meta`."""
        return zlib.crc32(meta, self.picture_crc)

    @classmethod
    def parse(cls, meta: bytes, check: int, picture: bytes) -> Original:
        """The original of a row; DamagedRecord when it is not what was written."""
        if zlib.crc32(meta, zlib.crc32(picture)) != check:
            raise DamagedRecord("the check value does not fit")
        facts = json.loads(meta)
        return cls(**{**facts, "id": uuid.UUID(hex=facts["id"])}, picture=picture)


_FACTS = tuple(field.name for field in dataclasses.fields(Original) if field.name not in ("id", "picture"))
