"""What the routes answer, for the OpenAPI description. A test compares it with real answers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FrameBody(_Body):
    """A frame, as far as the edge knows it. Sizes in pixels and bytes; null until it is encoded."""

    id: UUID
    state: Literal["received", "spooled", "delivered", "rejected", "dropped"]
    width: int
    height: int
    original_width: int | None
    original_height: int | None
    bytes: int | None
    bpp: float | None
    rate: int | None
    priority: int
    created_at: datetime | None
    finished_at: datetime | None
    created_unix_ms: int
    finished_unix_ms: int | None
    reason: str | None = None


class PostedBody(FrameBody):
    """A frame that was just posted: what its stages took, or that it had been posted before."""

    encode_ms: float | None = None
    timings_ms: dict[str, float] | None = None
    duplicate: bool = False


class BundleBody(_Body):
    """The names of a bundle."""

    name: str
    fingerprint: str
    digest: str


class RateBody(_Body):
    """A rate point of the bundle."""

    number: int
    name: str
    bpp: float


class EncodingBody(_Body):
    """Pictures that are encoded or wait for it, and how many are encoded at once."""

    pending: int
    workers: int


class ReceivedBody(_Body):
    """Received pictures that wait to be encoded. ``problem``: why the machine cannot encode them now."""

    frames: int
    bytes: int
    max_frames: int
    max_bytes: int
    problem: str | None


class OriginalsBody(_Body):
    """Originals kept for requests of the cloud. ``failures``: those that could not be written."""

    frames: int
    bytes: int
    max_bytes: int
    failures: int


class SpoolBody(_Body):
    """Frames that wait to be sent. ``problem`` says why the spool cannot be written; ``damaged_files`` are kept beside
    it because they could not be read completely. ``verified`` (ok, running, repaired, failed): whether the
    whole file was checked since the start."""

    frames: int
    bytes: int
    max_bytes: int
    full_policy: str
    oldest_seconds: float | None
    unreadable_frames: int
    damaged_files: list[str]
    verified: str
    problem: str | None


class UplinkBody(_Body):
    """The stream to the cloud."""

    cloud: str
    state: str
    detail: str
    since_unix: float
    last_ack_unix: float | None
    failures_in_a_row: int


class SourceBody(_Body):
    """A camera or a watched folder."""

    name: str
    kind: str
    state: str
    detail: str
    taken: int
    refused: int
    failures_in_a_row: int
    since_unix: float
    last_picture_unix: float | None


class TaskBody(_Body):
    """A task of the service. ``error`` is why it failed last."""

    name: str
    state: str
    restarts: int
    error: str


class StagingBody(_Body):
    """The staged bundles, by name."""

    current: str
    previous: str
    trial: str
    starts: int
    refused: str


class StatusBody(_Body):
    """The bundle, the queue, the spool, the uplink, the sources and the tasks."""

    service: Literal["edge"]
    version: str
    source_id: str
    bundle: BundleBody
    rates: list[RateBody]
    default_rate: int
    provider: str
    warnings: list[str]
    encoding: EncodingBody
    received: ReceivedBody
    originals: OriginalsBody
    spool: SpoolBody
    uplink: UplinkBody
    sources: list[SourceBody]
    tasks: list[TaskBody]
    staging: StagingBody | None
    stopping: bool


class LiveBody(_Body):
    """The process works."""

    status: Literal["ok"]


class ReadyBody(_Body):
    """Pictures are accepted. ``sources_down`` has what is wrong with each source that gives none."""

    status: Literal["ready"]
    provider: str
    sources_down: dict[str, str]
    warnings: list[str] | None = None
