"""What the routes answer, for the OpenAPI description. The serializers write it; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from aeic_service import problems
from cloud_decoder.images import formats
from cloud_decoder.store.store import FrameState

_PROBLEMS = {
    400: "max: Input should be less than or equal to 200",
    401: "a valid bearer token is needed: Authorization: Bearer TOKEN",
    404: "there is no frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e",
    408: "the body came too slowly",
    410: "frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e was pruned by retention",
    413: "the body is larger than 16777216 bytes",
    422: "this is no AEIC bitstream",
    429: "too many pictures wait to be decoded: try again in a moment",
    502: "the edge does not answer",
    503: "the service is stopping",
    507: "the store cannot write: its disk is full",
}
Answers = dict[int | str, dict[str, Any]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FrameBody(_Body):
    """A stored frame. Sizes in pixels and bytes; ``timings`` in seconds by stage."""

    id: UUID
    state: FrameState
    source: str
    width: int
    height: int
    original_width: int | None
    original_height: int | None
    bytes: int
    bpp: float
    rate: int
    rate_name: str | None
    fingerprint: str
    digest: str
    latents_digest: str | None
    priority: int
    captured_at: datetime | None
    captured_from: str | None
    received_at: datetime | None
    available_at: datetime | None
    reason: str | None
    timings: dict[str, float] | None


class FrameListBody(_Body):
    """A page of frames, the newest arrival first."""

    frames: list[FrameBody]
    next_cursor: str | None
    next: str | None


class SizesBody(_Body):
    """Bytes of the frame, and of its reconstruction in other formats."""

    frame: int
    png: int
    jpeg: int


class SourceBody(_Body):
    """What sends frames, how many of them wait to be decoded, and the last one where it was asked for."""

    source: str
    frames: int
    bytes: int
    waiting: int
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    connected: bool
    newest: FrameBody | None


class SourceListBody(_Body):
    """The sources, the latest first."""

    sources: list[SourceBody]


class RateBody(_Body):
    """A rate point of a bundle."""

    number: int
    name: str
    bpp: float


class BundleNameBody(_Body):
    """The names of a bundle."""

    name: str
    fingerprint: str
    digest: str


class BundleBody(BundleNameBody):
    """A bundle that this cloud decodes, and whether it is in memory."""

    rates: list[RateBody]
    loaded: bool


class StatusBody(_Body):
    """The models, the device and how full everything is. ``frames`` by state, ``waiting`` by stage."""

    version: str
    bundle: BundleNameBody
    rates: list[RateBody]
    bundles: list[BundleBody]
    device: str
    runtime: str
    frames: dict[str, int]
    waiting: dict[str, int]
    ready: bool
    problem: str | None
    warnings: list[str]
    grafana: str | None


class EdgeBody(_Body):
    """The edge that encodes for the page. ``detail`` says why there is none, or why it does not answer."""

    configured: bool
    reachable: bool | None = None
    detail: str | None = None
    source: str | None = None
    waiting: int | None = None
    waiting_bytes: int | None = None
    oldest_seconds: float | None = None
    link: str | None = None


class EncodedBody(_Body):
    """The frame that the edge made and will send."""

    id: UUID
    width: int
    height: int
    bytes: int
    bpp: float
    rate: int
    encode_ms: float


class HealthBody(_Body):
    """What a probe answers."""

    status: Literal["ok", "ready"]
    warnings: list[str] | None = None


def json_of(model: type[BaseModel], *statuses: int, success: int = 200) -> Answers:
    """A JSON body of that form, and these problems."""
    return {success: {"model": model, "description": _first_line(model)}, **refusals(*statuses)}


def file_of(*media_types: str, description: str, statuses: tuple[int, ...]) -> Answers:
    """A file of one of these types, and these problems."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {200: {"content": content, "description": description}, **refusals(*statuses)}


def pictures(*statuses: int) -> Answers:
    """A picture in any format that is served, and these problems."""
    return file_of(*(kind for kind, _ in formats.FORMATS.values()), description="The picture.", statuses=statuses)


def refusals(*statuses: int) -> Answers:
    """These problems."""
    return problems.responses(_PROBLEMS, *statuses)


def body_of(description: str, *media_types: str) -> dict[str, Any]:
    """``openapi_extra`` of a route whose body is a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]
