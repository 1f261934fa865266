"""Frames, events and problems as the API returns them, and the parameters of requests. Makes no network calls."""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from aeic.errors import AeicError

PASSING = (429, 502, 503, 504)
"""Statuses after which the same request may succeed."""
BUDGET_SPENT = "urn:aeic:budget-spent"
"""The type of a 429 that lasts for minutes to an hour."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
MAX_EVENT_CHARACTERS = 1 << 20
MAX_KNOWN = 65536
SLACK = timedelta(minutes=5)


class Problem(AeicError):
    """An error response: ``status``, the server's ``detail``, and ``retry_after`` in seconds if the server gave it.

    ``type`` names the kind of the problem for programs, such as ``urn:aeic:wrong-model``; it is empty if the answer is
    not that of an AEIC service. The reference of the cloud lists the types.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None, type: str = "") -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.http_status = self.status = status
        self.detail, self.retry_after, self.type = detail, retry_after, type


class NotReady(Problem):
    """The frame is stored but not decoded yet. Ask again, or use a longer ``wait``."""


@dataclass(frozen=True)
class Frame:
    """A stored frame: sizes in bytes, bits per pixel of the whole frame, seconds by stage in ``timings``.

    ``original_width`` and ``original_height`` are the picture's before the edge scaled it down, and ``captured_from``
    says where ``captured_at`` comes from: sender, exif, file or clock. None where the edge does not know. ``parent``,
    ``kind`` and ``region`` (x, y, width, height by name) are set where the frame answers a request. ``media_type`` is
    set where the answer is a picture file and no frame.
    """

    id: UUID
    state: str
    source: str
    width: int
    height: int
    bytes: int
    bpp: float
    rate: int
    digest: str
    received_at: datetime | None
    captured_at: datetime | None = None
    available_at: datetime | None = None
    latents_digest: str | None = None
    fingerprint: str = ""
    rate_name: str | None = None
    priority: int = 0
    reason: str | None = None
    timings: Mapping[str, float] | None = None
    original_width: int | None = None
    original_height: int | None = None
    captured_from: str | None = None
    parent: UUID | None = None
    kind: str | None = None
    region: Mapping[str, int] | None = None
    media_type: str | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Frame:
        """A frame from its JSON. Fields that this version does not know are ignored."""
        values = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        for name in ("received_at", "captured_at", "available_at"):
            values[name] = datetime.fromisoformat(values[name]) if values.get(name) else None
        parent = document.get("parent")
        return cls(**values | {"id": UUID(document["id"]), "parent": None if parent is None else UUID(parent)})


@dataclass(frozen=True)
class Request:
    """A request for more of a picture. ``state``: open, answered or refused.

    ``answer`` is the id of the frame that answers it. ``reason`` of a refusal: gone, forbidden, over-budget, expired or
    unsupported; ``detail`` is for people. ``region`` is x, y, width and height by name.
    """

    id: UUID
    frame: UUID
    kind: str
    region: Mapping[str, int] | None
    max_bytes: int
    bytes: int
    state: str
    reason: str | None
    detail: str | None
    answer: UUID | None
    created_at: datetime
    deadline_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Request:
        """A request from its JSON. Fields that this version does not know are ignored."""
        values = {field.name: document[field.name] for field in fields(cls)}
        for name in ("created_at", "deadline_at", "finished_at"):
            values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
        for name in ("id", "frame", "answer"):
            values[name] = None if values[name] is None else UUID(values[name])
        return cls(**values)


def asked(kind: str, region: tuple[int, int, int, int] | None, max_bytes: int, deadline: float) -> dict[str, Any]:
    """The body of a request."""
    body: dict[str, Any] = {"kind": kind, "max_bytes": max_bytes, "deadline_seconds": deadline}
    if region is not None:
        body["region"] = dict(zip(("x", "y", "width", "height"), region, strict=True))
    return body


@dataclass(frozen=True)
class Source:
    """What sends frames: how many it has sent, their bytes, and how many of them wait to be decoded.

    ``connected``: whether its edge has a stream to the cloud now.
    """

    source: str
    frames: int
    bytes: int
    waiting: int
    first_seen_at: datetime
    last_seen_at: datetime
    connected: bool

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Source:
        """A source from its JSON. Fields that this version does not know are ignored."""
        values = {field.name: document[field.name] for field in fields(cls)}
        for name in ("first_seen_at", "last_seen_at"):
            values[name] = datetime.fromisoformat(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Event:
    """``received``, ``done``, ``failed`` or ``pruned`` with its frame as it is now, or ``request``.

    ``open`` comes first of all. ``lost``: the cloud does not keep all events since the one that was asked for. ``id``
    is what to ask for; it is empty with a cloud of an earlier release.
    """

    kind: str
    frame: Frame | None = None
    id: str = ""


class Known:
    """The frames that a follower has received, so that each is returned once even if the stream breaks."""

    def __init__(self) -> None:
        self._had: OrderedDict[UUID, bool] = OrderedDict()  # False: it was there before the follower began
        self._newest: datetime | None = None

    @property
    def since(self) -> datetime | None:
        """The arrival time from which missed frames are listed: before the newest, because some decodes take longer."""
        return None if self._newest is None else self._newest - SLACK

    def take(self, frame: Frame, *, logged: bool = False) -> bool:
        """Whether ``frame`` is new. From now on it is known.

        ``logged``: its event is in the cloud's log, where each is once. So it is new even if it was passed over: it was
        decoded just when the follower began.
        """
        new = frame.id not in self._had or (logged and not self._had[frame.id])
        self._remember(frame, True)
        return new

    def pass_over(self, frame: Frame) -> None:
        """A frame that was decoded before the follower began."""
        self._remember(frame, False)

    def _remember(self, frame: Frame, returned: bool) -> None:
        if frame.received_at and (self._newest is None or frame.received_at > self._newest):
            self._newest = frame.received_at
        self._had[frame.id] = returned or self._had.get(frame.id, False)
        while len(self._had) > MAX_KNOWN:
            self._had.popitem(last=False)


class EventParser:
    """Parses server-sent events from pieces of text of any length."""

    def __init__(self) -> None:
        self._text = ""
        self.id = ""
        """Of the last event."""

    def feed(self, text: str) -> Iterator[Event]:
        """The events that this piece completes."""
        self._text += text
        if len(self._text) > MAX_EVENT_CHARACTERS:
            raise Problem(502, "an event without an end: this is not an AEIC cloud")
        *whole, self._text = self._text.split("\n\n")
        for block in whole:
            lines = block.split("\n")
            for line in lines:
                if line.startswith("id: "):
                    self.id = line[4:]
            data = "\n".join(line[6:] for line in lines if line.startswith("data: "))
            if data:
                try:
                    document = json.loads(data)
                except (ValueError, RecursionError):  # the second for JSON that is too deep
                    raise Problem(502, "an event that is not JSON: this is not an AEIC cloud") from None
                frame = document.get("frame")
                yield Event(document.get("event", ""), Frame.of(frame) if frame else None, self.id)


def headers(token: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def query(**asked: Any) -> dict[str, str]:
    """Parameters without those that are None; times in RFC 3339. A time without a zone is a local one, as in Python."""
    text = {name: _rfc3339(value) if isinstance(value, datetime) else str(value) for name, value in asked.items()}
    return {name: text[name] for name, value in asked.items() if value is not None}


def _rfc3339(time: datetime) -> str:
    return (time if time.tzinfo else time.astimezone()).isoformat()


def checked(answer: httpx.Response) -> httpx.Response:
    """Return a successful response; raise its :class:`Problem` otherwise. Its body must have been read."""
    if answer.is_success:
        return answer
    try:
        document = answer.json()
        detail, kind = str(document["detail"]), str(document.get("type", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, kind = answer.text[:200], ""
    raise Problem(answer.status_code, detail, _seconds(answer), kind)


def passes(answer: httpx.Response) -> bool:
    """Whether the same request may succeed within a minute or so. The body of the answer must have been read."""
    if answer.status_code not in PASSING:
        return False
    try:
        return bool(answer.json()["type"] != BUDGET_SPENT)
    except (ValueError, KeyError, TypeError):
        return True


def decoded(answer: httpx.Response) -> httpx.Response:
    """Return the response with a picture; raise :class:`NotReady` if there is none yet."""
    if answer.status_code == 202:
        raise NotReady(202, "the picture is not decoded yet", _seconds(answer))
    return answer


def pause(attempt: int, answer: httpx.Response | None) -> float:
    """Seconds until a request is sent again: what the server asks for, else twice as long each time, varied by half."""
    asked = _seconds(answer) if answer is not None else None
    wait = FIRST_PAUSE_SECONDS * 2**attempt if asked is None else asked
    return min(LONGEST_PAUSE_SECONDS, wait) * random.uniform(1.0, 1.5)


def _seconds(answer: httpx.Response) -> float | None:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdigit() else None
