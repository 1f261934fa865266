"""Settings: which frames are decoded without a request, how long frames are kept, and how lists are filtered."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from aeic.bundle import Bundle
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.lifecycle import maintenance
from cloud_decoder.store.clock import DAY
from cloud_decoder.store.requests import new_request_id
from cloud_decoder.store.store import NewRequest, RequestKind
from tests.support.cloud.cloud import FakeGenerator, IngestClient, running_cloud
from tests.support.frames import MakeFrame, new_frame


@pytest.mark.parametrize(("policy", "decoded"), [("all", {"a", "b"}), ("none", set()), ("b, c", {"b"})])
async def test_only_what_the_policy_names_is_decoded_unasked(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, policy: str, decoded: set[str]
) -> None:
    async with running_cloud(decoder, tmp_path, eager=policy) as cloud, httpx.AsyncClient() as http:
        ids = {}
        for seed, source in enumerate(("a", "b")):
            async with IngestClient(cloud.grpc) as edge:
                await edge.hello(bundle, source=source)
                ids[source] = uuid4()
                await edge.send(make_frame(seed), ids[source])
                await edge.ack()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if cloud.store.frames.counts()["done"] == len(decoded):
                break
        await asyncio.sleep(0.1)
        for source, id in ids.items():
            frame = (await http.get(f"{cloud.http}/v1/frames/{id}")).json()
            assert (frame["state"] == "done") == (source in decoded), source
            image = await http.get(f"{cloud.http}/v1/frames/{id}/image?wait=10")  # on demand all the same
            assert image.status_code == 200


@pytest.mark.parametrize("limit", [{"retention_days": 1e-9}, {"retention_bytes": 1}])
async def test_retention_empties_what_is_old_or_too_much_and_says_so(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, float]
) -> None:
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.05)
    old = [new_frame(make_frame(seed)) for seed in range(3)]

    async with (
        running_cloud(decoder, tmp_path, cache_bytes=0, **limit) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        cloud.store.frames.add(old, time.time())
        cloud.backend.wake()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if cloud.store.frames.counts()["pruned"] >= 2:
                break
        frame = (await http.get(f"/v1/frames/{old[0].id}")).json()
        assert frame["state"] == "pruned"
        assert (await http.get(f"/v1/frames/{old[0].id}/bitstream")).status_code == 410
        assert (await http.get(f"/v1/frames/{old[0].id}/image")).status_code == 410


async def test_requests_that_ended_long_ago_are_removed(decoder: Decoder, tmp_path: Path) -> None:
    """Also where nothing limits frames."""
    async with running_cloud(decoder, tmp_path) as cloud:
        now_ms = int(time.time() * 1000)
        asked = []
        for age in (31, 29, 0):
            ended_ms = now_ms - int(age * DAY * 1000)
            given: dict[str, Any] = {
                "tenant": "",
                "parent": uuid4(),
                "source": "s",
                "box": "s",
                "kind": RequestKind.BETTER,
                "region": None,
            }
            times: dict[str, Any] = {"created_ms": ended_ms, "deadline_ms": ended_ms if age else now_ms + 60_000}
            new = NewRequest(id=new_request_id(), max_bytes=500, **given, **times)
            assert cloud.store.requests.add(new, 90_000)
            cloud.store.requests.expire(ended_ms)
            asked.append(new.id)
        await cloud.maintenance.round()
        assert [cloud.store.requests.get("", id) is not None for id in asked] == [False, True, True]


async def test_lists_are_filtered_by_source_time_rate_and_state(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with (
        running_cloud(decoder, tmp_path, eager="none") as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        for seed, (source, rate, arrived) in enumerate((("a", 0, 1000.0), ("b", 1, 2000.0), ("a", 1, 3000.0))):
            frame = new_frame(make_frame(seed, rate=rate), source=source, wanted=False)
            cloud.store.frames.add([frame], arrived)

        async def count(**query: str) -> int:
            return len((await http.get("/v1/frames", params=query)).json()["frames"])

        assert await count(source="a") == 2 and await count(source="c") == 0
        assert await count(rate="1") == 2 and await count(rate="1", source="a") == 1
        assert await count(since="1970-01-01T00:30:00Z") == 2
        assert await count(since="1970-01-01T00:30:00Z", until="1970-01-01T00:45:00Z") == 1
        assert await count(state="received") == 3 and await count(state="done") == 0
