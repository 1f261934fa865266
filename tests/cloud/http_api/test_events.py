"""The event stream: a client that connects again misses nothing that is kept, and learns if it did."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_decoder.http_api.routers import events as router
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from tests.support.cloud.cloud import running_cloud
from tests.support.frames import MakeFrame, new_frame, stored_frame


class Reader:
    """Reads events from the lines of a stream."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.id = ""

    async def next(self) -> dict[str, Any]:
        """The next event."""
        async for line in self._lines:
            if line.startswith("id: "):
                self.id = line[4:]
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line[6:])
                return found
        raise EOFError

    async def some(self, count: int) -> list[tuple[str, str]]:
        """Kinds and frames of so many events."""
        async with asyncio.timeout(20):
            return [(event["event"], event["frame"]["id"]) for event in [await self.next() for _ in range(count)]]


@asynccontextmanager
async def listening(http: httpx.AsyncClient, last_id: str | None = None) -> AsyncIterator[Reader]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with http.stream("GET", "/v1/events", headers=headers) as stream:
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        reader = Reader(lines)
        reader.id = (await anext(lines)).removeprefix("id: ")
        yield reader


def put(cloud: Cloud, *data: bytes) -> list[str]:
    new = [new_frame(one) for one in data]
    cloud.store.frames.add(new, time.time())
    cloud.commits.announce(new)
    return [str(one.id) for one in new]


async def test_nothing_is_missed_over_pauses_and_a_restart(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        async with listening(http) as reader:
            start = reader.id
            (first,) = put(cloud, make_frame(1))
            assert await reader.some(2) == [("received", first), ("done", first)]
        (second,) = put(cloud, make_frame(2))
        async with listening(http, reader.id) as reader:
            assert await reader.some(2) == [("received", second), ("done", second)]
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        (third,) = put(cloud, make_frame(3))
        async with listening(http, reader.id) as again:
            assert await again.some(2) == [("received", third), ("done", third)]
        async with listening(http, start) as replay:
            seen = await replay.some(6)
        assert seen == [(kind, id) for id in (first, second, third) for kind in ("received", "done")]


async def test_many_readers_of_a_burst_get_every_event(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    """More than a subscription's queue holds."""
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        listening(http) as one,
        listening(http) as two,
    ):
        rows = [stored_frame(b"%d" % number, wanted=False) for number in range(700)]
        cloud.store.frames.add(rows, time.time())
        cloud.commits.announce(rows)
        expected = [("received", str(row.id)) for row in rows]
        assert await one.some(700) == expected
        assert await two.some(700) == expected


async def test_a_client_learns_that_events_are_not_kept(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none", events_kept=1000) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        async with listening(http) as reader:
            old = reader.id
        for part in range(3):
            rows = [stored_frame(b"%d %d" % (part, number), wanted=False) for number in range(500)]
            cloud.store.frames.add(rows, time.time())
        await cloud.maintenance.round()
        async with listening(http, old) as reader:
            assert await reader.next() == {"event": "lost"}
            after = reader.id
            new = stored_frame(b"new", wanted=False)
            cloud.store.frames.add([new], time.time())
            cloud.commits.announce([new])
            assert await reader.some(1) == [("received", str(new.id))]
        async with listening(http, after) as reader:
            assert await reader.some(1) == [("received", str(new.id))]


async def test_an_id_is_checked_and_an_empty_one_means_now(decoder: Decoder, tmp_path: Path) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        for wrong in ("abc", "1", "-1-1", "1-" + "9" * 19, "1-1; DROP"):
            answer = await http.get("/v1/events", headers={"Last-Event-ID": wrong})
            assert answer.status_code == 400 and answer.json()["type"] == "urn:aeic:invalid-parameter", wrong
        cloud.store.frames.add([stored_frame(b"before", wanted=False)], time.time())
        async with listening(http, "") as reader:
            new = stored_frame(b"after", wanted=False)
            cloud.store.frames.add([new], time.time())
            cloud.commits.announce([new])
            assert await reader.some(1) == [("received", str(new.id))]


async def test_what_retention_and_deletion_do_is_published(decoder: Decoder, tmp_path: Path) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none", allow_delete="always") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        listening(http) as reader,
    ):
        new = stored_frame(wanted=False)
        cloud.store.frames.add([new], time.time())
        assert (await http.delete(f"/v1/frames/{new.id}")).status_code == 204
        assert await reader.some(2) == [("received", str(new.id)), ("pruned", str(new.id))]


async def test_a_quiet_stream_stays_open(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "KEEP_ALIVE_SECONDS", 0.3)
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        async with asyncio.timeout(10), http.stream("GET", "/v1/events") as stream:
            lines = stream.aiter_lines()
            found = [await anext(lines) for _ in range(7)]
        assert found.count(": still here") == 2
