"""Deletion over HTTP: pictures are gone from every cache of ours, work in progress ends, and edges may send again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from cloud_decoder.http_api import schemas
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.lifecycle import maintenance
from cloud_decoder.service import Cloud
from cloud_decoder.settings import RetentionPolicy
from tests.support.cloud.cloud import FakeGenerator, IngestClient, metric, running_cloud
from tests.support.frames import MakeFrame, new_frame, stored_frame
from tests.support.waiting import until

TOKENS = "acme:token-of-acme,other:token-of-other"


@asynccontextmanager
async def tenants(
    decoder: Decoder, folder: Path, **changed: Any
) -> AsyncIterator[tuple[Cloud, httpx.AsyncClient, httpx.AsyncClient]]:
    """A cloud with two tenants, and a client of each."""

    def client(cloud: Cloud, name: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer token-of-{name}"}
        return httpx.AsyncClient(base_url=cloud.http, headers=headers)

    async with (
        running_cloud(decoder, folder, tokens=TOKENS, **changed) as cloud,
        client(cloud, "acme") as acme,
        client(cloud, "other") as other,
    ):
        yield cloud, acme, other


async def test_a_deleted_frame_is_gone_everywhere(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aeic.cloud.audit")
    new, twin = new_frame(make_frame(1), tenant="acme"), new_frame(make_frame(1), tenant="other")
    async with tenants(decoder, tmp_path) as (cloud, acme, other):
        cloud.store.frames.add([new, twin], time.time())
        cloud.commits.announce([new, twin])
        url = f"/v1/frames/{new.id}"
        picture = await acme.get(f"{url}/image?wait=20")
        small = await acme.get(f"{url}/image?format=webp&width=32")
        assert (picture.status_code, small.status_code) == (200, 200)
        assert (await acme.get(f"{url}/sizes")).status_code == 200
        same = {"If-None-Match": picture.headers["etag"]}
        assert (await acme.get(f"{url}/image", headers=same)).status_code == 304
        assert (await other.delete(url)).status_code == 404
        for _ in range(2):
            answer = await acme.delete(url)
            assert answer.status_code == 204 and not answer.content
        assert list((tmp_path / "cache").glob(f"??/{new.digest}-*")) == []
        for tail in ("/image", "/image?format=webp&width=32", "/sizes", "/bitstream", "/composed"):
            gone = await acme.get(url + tail, headers=same)
            assert gone.status_code == 410 and "deleted by a client" in gone.json()["detail"], tail
        assert (await acme.get(url)).json()["state"] == "pruned"
        assert (await acme.post(f"{url}/requests", json={"kind": "better"})).status_code == 410
        # The same bytes of another tenant are decoded again, and that does not bring this picture back.
        assert (await other.get(f"/v1/frames/{twin.id}/image?wait=20")).content == picture.content
        assert (await acme.get(f"{url}/image", headers=same)).status_code == 410
        assert metric(cloud.metrics, "retention_frames_total", step="deleted") == 1
    said = [record.getMessage() for record in caplog.records if record.name == "aeic.cloud.audit"]
    assert said == [f"tenant 'acme' deleted frame {new.id}: 1 frames"]


async def test_a_frame_that_is_being_decoded_may_be_deleted(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.05)
    new, following = (new_frame(make_frame(seed), tenant="acme") for seed in (1, 2))
    async with tenants(decoder, tmp_path, retention_grace_hours=1e-4) as (cloud, acme, _):
        generator.gate.clear()
        cloud.store.frames.add([new], time.time())
        cloud.commits.announce([new])
        await until(lambda: generator.entered > 0)
        caller = asyncio.create_task(acme.get(f"/v1/frames/{new.id}/image?wait=20"))
        await asyncio.sleep(0.3)
        assert (await acme.delete(f"/v1/frames/{new.id}")).status_code == 204
        generator.gate.set()
        assert (await caller).status_code in (200, 410)  # it had been asked for before
        cloud.store.frames.add([following], time.time())
        cloud.commits.announce([following])
        assert (await acme.get(f"/v1/frames/{following.id}/image?wait=20")).status_code == 200
        assert (await acme.get(f"/v1/frames/{new.id}")).json()["state"] == "pruned"
        assert (await acme.get(f"/v1/frames/{new.id}/image")).status_code == 410
        await until(lambda: metric(cloud.metrics, "retention_frames_total", step="removed") == 1)
        # What the decoder wrote after the deletion is removed with the bitstream, although no limit is set.
        await until(lambda: not list((tmp_path / "cache").glob(f"??/{new.digest}-*")))


async def test_an_edge_that_delivers_a_deleted_frame_again_is_acknowledged(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    data, id = make_frame(1), uuid4()
    async with tenants(decoder, tmp_path) as (cloud, acme, _):
        statuses = []
        for deliver in range(3):
            async with IngestClient(cloud.grpc) as edge:
                await edge.hello(bundle, token="token-of-acme")
                await edge.send(data, id)
                statuses.append((await edge.ack()).status)
            if deliver == 0:
                await acme.get(f"/v1/frames/{id}/image?wait=20")
                assert (await acme.delete(f"/v1/frames/{id}")).status_code == 204
            if deliver == 1:
                cloud.store.retention.remove(before_ms=2**60)
        assert statuses == [pb.ACK_STATUS_STORED, pb.ACK_STATUS_DUPLICATE, pb.ACK_STATUS_DUPLICATE]
        assert (await acme.get(f"/v1/frames/{id}")).json()["state"] == "pruned"
        assert (await acme.get(f"/v1/frames/{id}/image?wait=1")).status_code == 410
        assert cloud.store.frames.counts()["pruned"] == 1


async def test_a_sources_frames_in_several_requests(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_decoder.http_api.deletion.CALLS", 1)
    async with tenants(decoder, tmp_path, eager="none") as (cloud, acme, other):
        rows = [stored_frame(b"%d" % n, source="box/door", tenant="acme", wanted=False) for n in range(1500)]
        kept = [stored_frame(b"k", tenant=name, wanted=False, source=of) for name, of in
                (("acme", "box"), ("other", "box/door"))]  # fmt: skip
        cloud.store.frames.add([*rows, *kept], time.time())
        assert (await acme.delete("/v1/frames")).status_code == 400  # never all by mistake
        early = await acme.delete("/v1/frames", params={"source": "box/door", "until": "2020-01-01T00:00:00Z"})
        assert early.json()["deleted"] == 0
        path, counts = "/v1/frames?source=box%2Fdoor", []
        while path:
            answer = await acme.delete(path)
            schemas.DeletedBody.model_validate_json(answer.content)
            counts.append(answer.json()["deleted"])
            path = answer.json()["next"]
        assert counts == [1000, 500]
        assert cloud.store.frames.counts("acme")["pruned"] == 1500
        assert [cloud.store.frames.counts(name)["received"] for name in ("acme", "other")] == [1, 1]
        assert (await other.get("/v1/frames?state=pruned")).json()["frames"] == []


@pytest.mark.parametrize(
    ("settings", "status"), [({}, 403), ({"allow_delete": "always"}, 204), ({"allow_delete": "never"}, 403)]
)
async def test_without_tokens_deletion_has_to_be_allowed(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, settings: dict[str, str], status: int
) -> None:
    new = new_frame(make_frame(1), wanted=False)
    async with running_cloud(decoder, tmp_path, **settings) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add([new], time.time())
        answer = await http.delete(f"/v1/frames/{new.id}")
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["type"] == "urn:aeic:deletion-forbidden"
            assert (await http.delete("/v1/frames?source=box-1")).status_code == 403
            assert cloud.store.frames.counts()["pruned"] == 0


async def test_a_policy_decides_how_long_the_frames_of_a_source_are_kept(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.05)
    policies = (
        RetentionPolicy(tenant="acme", source="mast-*", days=0),
        RetentionPolicy(tenant="acme", bytes=30),
        RetentionPolicy(source="door", days=100),
    )
    settings = {"retention_policies": policies, "retention_days": 10.0, "eager": "none"}
    async with tenants(decoder, tmp_path, **settings) as (cloud, _, _):
        day = 86_400.0
        rows = {
            (tenant, source, age): stored_frame(b"%20d" % number, tenant=tenant, source=source)
            for number, (tenant, source, age) in enumerate(
                (tenant, source, age)
                for tenant in ("acme", "other")
                for source in ("mast-1", "door", "yard")
                for age in (50, 5, 1)
            )
        }
        for (_, _, age), new in rows.items():
            now = time.time()
            cloud.store.frames.add([new], now, received=now - age * day)
            claimed = cloud.store.queue.claim("w", "abcdef", 10, now, 60, 3)
            cloud.store.queue.fail([one.lease for one in claimed], "finished")

        def pruned() -> set[tuple[str, str, int]]:
            found = {key: cloud.store.frames.get(new.tenant, new.id) for key, new in rows.items()}
            return {key for key, row in found.items() if row is not None and row.state == "pruned"}

        expected = {("acme", source, age) for source in ("door", "yard") for age in (50, 5)}  # one fits into 30 bytes
        expected |= {("other", "mast-1", 50), ("other", "yard", 50)}
        await until(lambda: pruned() == expected)
        await asyncio.sleep(0.2)
        assert pruned() == expected


async def test_policies_wait_for_a_clock_that_can_be_trusted(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 3600)
    settings = {"retention_policies": (RetentionPolicy(days=10),), "allow_delete": "always", "eager": "none"}
    async with running_cloud(decoder, tmp_path, **settings) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        old, deleted = stored_frame(b"o", wanted=False), stored_frame(b"d", wanted=False)
        cloud.store.frames.add([old, deleted], time.time())
        (claimed,) = [cloud.store.queue.claim_one("", old.id, "w", time.time(), 60, 3)]
        assert claimed is not None
        cloud.store.queue.fail([claimed.lease], "finished")
        assert (await http.delete(f"/v1/frames/{deleted.id}")).status_code == 204
        trusted, wall = cloud.store.trusted_clock, time.time
        monkeypatch.setattr(trusted, "_wall", lambda: wall() + 400 * 86_400)
        await cloud.maintenance.round()
        assert cloud.store.frames.counts()["pruned"] == 1 and cloud.store.retention.marked()[0] == 1
        assert cloud.store.retention.undelete(id=deleted.id) == 1
