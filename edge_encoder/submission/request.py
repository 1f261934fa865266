"""What is asked for with a picture, and what became of it: the border between a source and the service."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from edge_encoder.encoding.encoder import Encoded
from edge_encoder.spool.record import Entry


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """What a client or another source asks for with a picture."""

    rate: str | None = None
    max_bytes: int | None = None
    target_bytes: int | None = None
    priority: int = 0
    source_id: str = ""
    captured_ms: int = 0
    id: uuid.UUID | None = None
    prompt: bool = False  # somebody waits for its delivery


@dataclass(frozen=True, slots=True)
class Accepted:
    """A picture that is safely spooled. `encoded` is None when it is not encoded yet, or when the id was `known` and
    nothing had to be done."""

    entry: Entry
    encoded: Encoded | None = None
    known: bool = False
