"""The interface between sources and the service: what is requested for a picture, and the result."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from edge_encoder.encoding import Preset
from edge_encoder.encoding.encoder import Encoded
from edge_encoder.encoding.scaling import PRESETS
from edge_encoder.source_settings import SourceSettings
from edge_encoder.spool.record import CapturedFrom, Entry


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Bytes of a frame, and the longest side in pixels, as in Encoder.encode; None where nothing is asked for."""

    max_bytes: int | None = None
    target_bytes: int | None = None
    max_side: int | None = None

    @classmethod
    def of(
        cls,
        preset: Preset | None = None,
        max_bytes: int | None = None,
        target_bytes: int | None = None,
        max_side: int | None = None,
    ) -> SizeLimits:
        """A preset (scaling.py), with what is given besides it."""
        if preset is None:
            return cls(max_bytes, target_bytes, max_side)
        size = PRESETS[preset]
        return cls(max_bytes, target_bytes or size.target_bytes, max_side or size.max_side)

    def otherwise(self, default: SizeLimits) -> SizeLimits:
        """These limits, with the default's bytes where these have none, and its side likewise."""
        own = self.max_bytes is not None or self.target_bytes is not None
        given = self if own else default
        side = default.max_side if self.max_side is None else self.max_side
        return SizeLimits(given.max_bytes, given.target_bytes, side)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """How a picture is to be encoded and sent. `captured_from` says where `captured_ms` comes from (capture_time.py).
    `prompt`: a client waits for its delivery. `stretch` as in Encoder.encode; None where the box decides."""

    rate: str | None = None
    limits: SizeLimits = SizeLimits()
    priority: int = 0
    source_id: str = ""
    captured_ms: int = 0
    captured_from: CapturedFrom = CapturedFrom.SENDER
    id: uuid.UUID | None = None
    prompt: bool = False
    stretch: bool | None = None

    @classmethod
    def of_source(cls, source: SourceSettings, box: str) -> EncodeRequest:
        """What the settings ask for every picture of a source of the box of that name."""
        return cls(
            rate=source.rate,
            limits=SizeLimits.of(source.preset, source.max_bytes, source.target_bytes, source.max_side),
            priority=source.priority,
            source_id=source.id_at(box),
            stretch=source.stretch,
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """A picture that is durably spooled. `encoded` is None when it is not encoded yet, or when the id was `known`
    already."""

    entry: Entry
    encoded: Encoded | None = None
    known: bool = False
