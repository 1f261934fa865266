"""What goes into the store and what comes out of it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

DEMAND_PRIORITY = 10
"""Somebody is waiting for it; edges reach at most one less."""


class State(StrEnum):
    """Where a frame stands. ``decoding`` is told by its job's lease, the others are written in the frame's row."""

    RECEIVED = "received"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


class Added(StrEnum):
    """What became of a frame given to :meth:`cloud_decoder.store.store.Store.add`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class NewFrame:
    """A frame that passed its checks."""

    tenant: str
    id: UUID
    source: str
    captured_ms: int
    priority: int
    width: int
    height: int
    rate: int
    fingerprint: str
    digest: str
    bitstream: bytes
    wanted: bool = True


@dataclass(frozen=True)
class StoredFrame:
    """A stored frame without its bitstream. ``attempts`` counts the claims of a frame that is not decoded yet."""

    seq: int
    tenant: str
    id: UUID
    source: str
    captured_ms: int
    received_ms: int
    available_ms: int | None
    priority: int
    width: int
    height: int
    rate: int
    fingerprint: str
    bytes: int
    digest: str
    state: State
    wanted: bool
    attempts: int
    reason: str | None
    latents_digest: str | None
    timings: dict[str, float] | None


@dataclass(frozen=True)
class LeasedFrame:
    """A frame that is now this worker's to decode."""

    row: StoredFrame
    bitstream: bytes


@dataclass(frozen=True)
class DecodeResult:
    """What a worker says about a frame that it decoded."""

    seq: int
    latents_digest: str
    timings: dict[str, float]


@dataclass(frozen=True)
class Backlog:
    """What waits for a worker: jobs nobody holds, jobs under a lease, and how long the oldest of the first has waited
    (seconds)."""

    ready: int
    leased: int
    oldest_seconds: float
