"""The command frames: the newest frames of a cloud, one a line."""

from __future__ import annotations

import json
import sys
from itertools import islice

import httpx

from aeic_client import Client, Problem
from aeic_client.messages import Frame
from aeic_tools.cloud_errors import words


def frames(source: str | None, limit: int, url: str, token: str | None, *, as_json: bool) -> int:
    """Prints id, arrival, bytes, size, state and source of each frame. 0, or 1 where the cloud refused."""
    try:
        with Client(url, token) as cloud:
            for frame in islice(cloud.frames(source=source), limit):
                print(_json(frame) if as_json else _line(frame))
    except (Problem, httpx.TransportError) as error:
        print(words(error, url), file=sys.stderr)
        return 1
    return 0


def _line(frame: Frame) -> str:
    arrival = "-" if frame.received_at is None else frame.received_at.isoformat(timespec="seconds")
    source = "".join(character if character.isprintable() else "?" for character in frame.source)
    size = f"{frame.width}x{frame.height}"
    return f"{frame.id}  {arrival}  {frame.bytes:>7} B  {size:>9}  {frame.kind or frame.state:<8}  {source}"


def _json(frame: Frame) -> str:
    values = {
        "id": str(frame.id),
        "source": frame.source,
        "received_at": None if frame.received_at is None else frame.received_at.isoformat(),
        "bytes": frame.bytes,
        "width": frame.width,
        "height": frame.height,
        "original_width": frame.original_width,
        "original_height": frame.original_height,
        "state": frame.state,
        "parent": None if frame.parent is None else str(frame.parent),
        "kind": frame.kind,
    }
    return json.dumps(values)
