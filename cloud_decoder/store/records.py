"""Values that go into the store and come out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

DEMAND_PRIORITY = 10
"""The priority of frames that a caller waits for. Frames from edges have at most one less."""


class FrameState(StrEnum):
    """The state of a frame. ``decoding`` follows from the lease of its job; the others are stored with the frame."""

    RECEIVED = "received"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


class DeletedBy(StrEnum):
    """Who deleted a pruned frame. Pictures of a frame that a client deleted are not served from the cache."""

    RETENTION = "retention"
    CLIENT = "client"


class Added(StrEnum):
    """The result for a frame of :meth:`cloud_decoder.store.frames.Frames.add`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class NewFrame:
    """A frame that passed the checks of ingest. ``wanted``: decode it before a caller asks for it.

    ``original_width`` and ``original_height`` are the picture's before the edge scaled it down, ``captured_from`` says
    where ``captured_ms`` comes from (sender, exif, file, clock); None where the edge does not say. ``box`` delivered
    the frame; None if that is the source itself. ``media_type``: ``bitstream`` is not a frame but such a picture file,
    which is never decoded. ``reason``: why it cannot be decoded now, which puts it into quarantine.
    """

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
    original_width: int | None = None
    original_height: int | None = None
    captured_from: str | None = None
    box: str | None = None
    media_type: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class StoredFrame:
    """A stored frame without its bitstream. ``attempts``: services that ended while this frame was being decoded.

    ``parent``, ``kind`` and ``region`` (x, y, width, height in pixels of the parent's original) are set where the frame
    answers a request. ``box`` delivered the frame; None if that is the source itself. ``media_type`` is set where it is
    a picture file, which is never decoded.
    """

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
    state: FrameState
    wanted: bool
    attempts: int
    reason: str | None
    latents_digest: str | None
    timings: dict[str, float] | None
    original_width: int | None = None
    original_height: int | None = None
    captured_from: str | None = None
    box: str | None = None
    parent: UUID | None = None
    kind: str | None = None
    region: list[int] | None = None
    media_type: str | None = None
    deleted_by: str | None = None

    @property
    def erased(self) -> bool:
        """Whether a client deleted it. Its picture must not be served, even where a cache still has it."""
        return self.state is FrameState.PRUNED and self.deleted_by == DeletedBy.CLIENT

    @property
    def repeats_parent(self) -> bool:
        """Whether it shows what its parent shows, and has the parent's time of capture.

        So does every answer except one of the kind ``now``, which is a new picture.
        """
        return self.parent is not None and self.kind != RequestKind.NOW


class RequestKind(StrEnum):
    """What is asked for: the whole picture in better quality, a region of it, its file, or a new picture now."""

    BETTER = "better"
    REGION = "region"
    ORIGINAL = "original"
    NOW = "now"


class RequestState(StrEnum):
    """The state of a request. It leaves ``open`` once."""

    OPEN = "open"
    ANSWERED = "answered"
    REFUSED = "refused"


class RefusalReason(StrEnum):
    """Why a request has no answer."""

    GONE = "gone"
    FORBIDDEN = "forbidden"
    OVER_BUDGET = "over-budget"
    EXPIRED = "expired"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class NewRequest:
    """A request that passed the checks of the API. ``region``: x, y, width, height in pixels of the original."""

    tenant: str
    id: UUID
    parent: UUID
    source: str
    box: str
    kind: RequestKind
    region: list[int] | None
    max_bytes: int
    created_ms: int
    deadline_ms: int


@dataclass(frozen=True)
class StoredRequest(NewRequest):
    """A stored request. The answer is the frame of the same id; ``bytes`` are charged to the source's hour."""

    seq: int
    bytes: int
    state: RequestState
    finished_ms: int | None
    reason: RefusalReason | None
    detail: str | None


@dataclass(frozen=True)
class OpenRequest:
    """An open request, as far as it matters for whose turn it is."""

    seq: int
    tenant: str
    box: str
    source: str
    kind: RequestKind


@dataclass(frozen=True)
class Deleted:
    """What a call of :meth:`Retention.delete <cloud_decoder.store.retention.Retention.delete>` has deleted.

    ``frames``: id and digest of each frame, answers to requests about deleted frames included. ``requests``: those that
    it has ended. ``after``: the last ``seq`` that was looked at; None where there are no further frames to delete.
    ``parents``: digests of frames that stay, in whose composed pictures a deleted answer may be painted.
    """

    frames: list[tuple[UUID, str]]
    requests: list[StoredRequest]
    after: int | None = None
    parents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Frames of a list, and ``next``, the ``seq`` before which the list goes on; None at its end.

    A page may be short, or empty, before the end: a search looks at a limited number of frames at a time.
    """

    rows: list[StoredFrame]
    next: int | None


@dataclass(frozen=True)
class Lease:
    """One claim of one frame. ``token`` names the owner and the claim: no other claim has the same one.

    A worker passes the lease with every change of the frame. A change under a lease that has since been taken by
    another worker has no effect.
    """

    seq: int
    token: str


@dataclass(frozen=True)
class LeasedFrame:
    """A frame under the lease of a worker, with its bitstream."""

    row: StoredFrame
    bitstream: bytes
    lease: Lease


@dataclass(frozen=True)
class DecodeResult:
    """The result of a decoded frame, which is recorded only while ``lease`` holds."""

    lease: Lease
    latents_digest: str
    timings: dict[str, float]


@dataclass(frozen=True)
class Backlog:
    """The number of jobs that are ready and of those under a lease, and how long the oldest ready one has waited."""

    ready: int
    leased: int
    oldest_seconds: float
