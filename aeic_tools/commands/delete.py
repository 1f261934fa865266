"""The command delete: frames of a cloud, by their ids or by their source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import httpx

from aeic_client import Client, Problem
from aeic_tools.cloud_errors import words
from aeic_tools.files import UsageError


def delete(
    frames: Sequence[UUID],
    source: str | None,
    since: datetime | None,
    until: datetime | None,
    url: str,
    token: str | None,
) -> int:
    """Deletes and prints the number of frames. 0, or 1 where the cloud refused."""
    if bool(frames) == (source is not None):
        raise UsageError("give the ids of frames, or --source")
    if source is None and (since or until):
        raise UsageError("--since and --until choose among the frames of a --source")
    try:
        with Client(url, token) as cloud:
            if source is None:
                for id in frames:
                    cloud.delete(id)
                count = len(frames)
            else:
                count = cloud.delete_frames(source, since=_aware(since), until=_aware(until))
    except (Problem, httpx.TransportError) as error:
        print(words(error, url), file=sys.stderr)
        return 1
    print(count)
    return 0


def _aware(time: datetime | None) -> datetime | None:
    """A time without a zone is the local one."""
    return time if time is None or time.tzinfo else time.astimezone()
