"""What the routes answer, for the OpenAPI description. The serializers write it; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aeic_service.http import problems
from aeic_service.http.parameters import json_number
from cloud_decoder.images import formats
from cloud_decoder.store.store import FrameState, RefusalReason, RequestKind, RequestState

_PROBLEMS = {
    400: "max: Input should be less than or equal to 200",
    401: "a valid bearer token is needed: Authorization: Bearer TOKEN",
    403: "this cloud does not let clients delete frames",
    404: "there is no frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e",
    406: "Accept excludes every picture format",
    408: "the body arrived too slowly",
    409: "019acb2e-6f5d-8c30-9d0e-3f3a2b1c4d5e is a picture file: get it from its /file",
    410: "frame 019acb2e-6f5d-7c30-9d0e-3f3a2b1c4d5e was pruned by retention",
    413: "the body is larger than 16777216 bytes",
    422: "this is not an AEIC bitstream",
    429: "too many pictures are waiting to be decoded: try again in a moment",
    502: "the edge does not answer",
    503: "the service is stopping",
    507: "the store cannot write: its disk is full",
}
Answers = dict[int | str, dict[str, Any]]
FRAME_BYTES = 1 << 20
"""Most bytes of a frame that answers a request."""


def _a_number(value: object) -> object:
    """A number as JSON has it. Pydantic would also take the string "1500", and true for 1; 1500.0 is an integer."""
    if isinstance(value, str):
        raise ValueError("give a number, and not a string")
    return json_number(value)


Whole = Annotated[int, BeforeValidator(_a_number)]
"""An integer in a body of JSON."""
Real = Annotated[float, BeforeValidator(_a_number)]
"""A number in a body of JSON."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RegionBody(_Body):
    """A part of a picture, in pixels of the original."""

    x: Whole = Field(ge=0, le=1 << 20)
    y: Whole = Field(ge=0, le=1 << 20)
    width: Whole = Field(ge=16, le=1 << 20)
    height: Whole = Field(ge=16, le=1 << 20)


class FrameBody(_Body):
    """A stored frame. Sizes in pixels and bytes; ``timings`` in seconds by stage.

    ``parent``, ``kind`` and ``region`` are set where the frame answers a request about its parent. ``media_type`` is
    set where the answer is a picture file and no frame: its ``/file`` has it.
    """

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
    parent: UUID | None
    kind: RequestKind | None
    region: RegionBody | None
    media_type: str | None


class FrameListBody(_Body):
    """A page of frames, the newest arrival first."""

    frames: list[FrameBody]
    next_cursor: str | None
    next: str | None


class DeletedBody(_Body):
    """How many frames were deleted. ``next`` is the path of the next request, null at the end."""

    deleted: int
    next_cursor: str | None
    next: str | None


class AskBody(_Body):
    """What is asked of a box."""

    kind: RequestKind
    region: RegionBody | None = Field(None, description="For the kind region, and for a part of an original.")
    max_bytes: Whole = Field(
        1500, ge=64, le=1 << 24, description="Maximum bytes of the answer. Only an original may have more than 1 MiB."
    )
    deadline_seconds: Real = Field(
        60.0, ge=1, le=86400, allow_inf_nan=False, description="After this time without an answer, the request expires."
    )

    @model_validator(mode="after")
    def _belong_together(self) -> AskBody:
        if self.kind is RequestKind.REGION and self.region is None:
            raise ValueError("the kind region needs a region")
        if self.kind not in (RequestKind.REGION, RequestKind.ORIGINAL) and self.region is not None:
            raise ValueError("give a region with the kinds region and original, and with no other")
        if self.kind is not RequestKind.ORIGINAL and self.max_bytes > FRAME_BYTES:
            raise ValueError(f"a frame has at most {FRAME_BYTES} bytes")
        return self


class RequestBody(_Body):
    """A request for more of a picture. ``answer`` is the frame that answers it.

    ``bytes`` count towards the hour of the source.
    """

    id: UUID
    frame: UUID
    kind: RequestKind
    region: RegionBody | None
    max_bytes: int
    bytes: int
    state: RequestState
    reason: RefusalReason | None
    detail: str | None
    answer: UUID | None
    created_at: datetime | None
    deadline_at: datetime | None
    finished_at: datetime | None


class RequestListBody(_Body):
    """The requests about a frame, the newest first.

    ``max_bytes`` is the most that the box answers with: 0 where it takes no requests, null where it is not connected
    here. ``original_max_bytes`` is the same for originals. ``hour_bytes_left`` may still be asked of the source now.
    ``bytes_per_second`` is the speed of the last answers about the source, null if there were none within a day.
    """

    requests: list[RequestBody]
    max_bytes: int | None
    original_max_bytes: int | None
    hour_bytes_left: int
    bytes_per_second: float | None


class SizesBody(_Body):
    """Bytes of the frame, and of its reconstruction in other formats."""

    frame: int
    png: int
    jpeg: int


class ReportBody(_Body):
    """The health of a box, as it reports it: what waits in its spool, for how long, and what keeps it from its work."""

    waiting_frames: int
    oldest_seconds: int
    problem: str


class BoxBody(_Body):
    """A box that is connected: its program, and its last report; null for an older one, which makes none.

    ``warning``: what the cloud has noticed about it, with the remedy; empty if nothing.
    """

    software: str
    report: ReportBody | None
    warning: str


class SourceBody(_Body):
    """What sends frames, how many of them wait to be decoded, and the last one where it was asked for."""

    source: str
    frames: int
    bytes: int
    waiting: int
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    connected: bool
    box: BoxBody | None
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
    every = tuple(sorted({406, *statuses}))
    return file_of(*(kind for kind, _ in formats.FORMATS.values()), description="The picture.", statuses=every)


def refusals(*statuses: int) -> Answers:
    """These problems."""
    return problems.responses(_PROBLEMS, *statuses)


def body_of(description: str, *media_types: str) -> dict[str, Any]:
    """``openapi_extra`` of a route whose body is a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def json_body_of(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route whose body is JSON of that form."""
    schema = model.model_json_schema(mode="validation")
    definitions = schema.pop("$defs", {})
    return {
        "requestBody": {
            "required": True,
            "description": _first_line(model),
            "content": {"application/json": {"schema": _inlined(schema, definitions)}},
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, since the description of a body cannot add components."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in schema.items()}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]
