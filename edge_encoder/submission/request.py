"""The interface between sources and the service: what is requested for a picture, and the result."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from edge_encoder.encoding.encoder import Encoded
from edge_encoder.spool.record import Entry


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """How a picture is to be encoded and sent. `prompt`: a client waits for its delivery."""

    rate: str | None = None
    max_bytes: int | None = None
    target_bytes: int | None = None
    priority: int = 0
    source_id: str = ""
    captured_ms: int = 0
    id: uuid.UUID | None = None
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """A picture that is durably spooled. `encoded` is None when it is not encoded yet, or when the id was `known`
    already."""

    entry: Entry
    encoded: Encoded | None = None
    known: bool = False
