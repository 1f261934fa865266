"""Injected faults: after each of them nothing is lost and every caller is answered in bounded time.

Over real sockets, with the service in this process. Processes that die are in test_fault_processes, halved batches and
quarantine in test_failing_frames, damaged files in test_disk_cache.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import httpx
import pytest

from aeic.bundle import Bundle
from aeic.v1 import ingest_pb2 as pb
from aeic.v1 import ingest_pb2_grpc as pb_grpc
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.service import Cloud
from cloud_decoder.store.store import Store
from tests.support.cloud.cloud import FakeGenerator, IngestClient, full_cloud, jobs_of, metric, running_cloud
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


async def test_overload_is_refused_on_both_wires_while_the_device_stands_still(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with full_cloud(decoder, generator, make_frame, tmp_path) as full:
        for data in full.frames:
            answer = await full.http.post("/v1/decode", content=data)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await full.grpc.Decode(pb.DecodeRequest(bitstream=data))
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert metric(full.cloud.metrics, "sheds_total", reason="queue_full") == 40


async def test_cancelled_and_expired_work_never_reaches_the_device(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with (
        running_cloud(decoder, tmp_path) as cloud,
        httpx.AsyncClient(base_url=cloud.http) as http,
        grpc.aio.insecure_channel(cloud.grpc) as channel,
    ):
        stub = pb_grpc.DecodeServiceStub(channel)
        generator.gate.clear()
        first = asyncio.create_task(http.post("/v1/decode", content=make_frame(0)))
        await until(lambda: generator.entered > len(generator.batches))
        gone = [asyncio.create_task(http.post("/v1/decode", content=make_frame(i))) for i in range(1, 9)]
        late = asyncio.create_task(http.post("/v1/decode?timeout=0.3", content=make_frame(20)))
        late_grpc = stub.Decode(pb.DecodeRequest(bitstream=make_frame(21)), timeout=0.3)
        await until(lambda: len(jobs_of(cloud)) == 11)
        for request in gone:
            request.cancel()
        answer = await late
        assert answer.status_code == 504 and "retry-after" in answer.headers
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await late_grpc
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(jobs_of(cloud)) == 1)
        generator.gate.set()
        assert (await first).status_code == 200
        assert sum(shape[0] for shape in generator.batches[1:]) == 1


async def test_a_second_more_patient_caller_keeps_the_work_alive(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    async with running_cloud(decoder, tmp_path) as cloud:
        generator.gate.clear()
        blocking = asyncio.create_task(cloud.backend.decode(make_frame(0), timeout=20))
        await until(lambda: generator.entered > len(generator.batches))
        impatient = asyncio.create_task(cloud.backend.decode(make_frame(1), timeout=0.2))
        await asyncio.sleep(0.05)
        patient = asyncio.create_task(cloud.backend.decode(make_frame(1), timeout=20))
        assert isinstance((await asyncio.gather(impatient, return_exceptions=True))[0], Exception)
        await asyncio.sleep(0.1)
        generator.gate.set()
        await asyncio.gather(blocking, patient)


async def test_out_of_memory_and_a_poison_frame_under_load(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    new = [new_frame(make_frame(seed)) for seed in range(16)]
    bad = decoder.entropy_decode(new[5].bitstream).y_hat
    generator.poison = lambda y_hat: y_hat.shape == bad.shape and bool((y_hat == bad).all())

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        generator.most = 2
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        asked = [http.post("/v1/decode", content=make_frame(seed)) for seed in range(100, 116)]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        await until(lambda: cloud.store.frames.counts()["done"] == 15 and cloud.store.frames.counts()["failed"] == 1)
        answer = await http.get(f"/v1/frames/{new[5].id}/image")
        assert answer.status_code == 422 and "ZeroDivisionError" in answer.json()["detail"]
        assert metric(cloud.metrics, "batch_splits_total") > 0
        assert (await http.get("/readyz")).status_code == 200


async def test_a_full_disk_under_the_store_refuses_and_takes_frames_again_later(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    """SQLite's own limit on pages stands in for the disk: the same error, on any machine."""
    sent = {uuid4(): make_frame(seed, 256, 256) for seed in range(60)}

    async def deliver(cloud: Cloud) -> set[UUID]:
        stored: set[UUID] = set()
        async with IngestClient(cloud.grpc) as edge:
            await edge.hello(bundle)
            try:
                for id, data in sent.items():
                    await edge.send(data, id)
                for _ in sent:
                    ack = await edge.ack()
                    assert ack.status in (pb.ACK_STATUS_STORED, pb.ACK_STATUS_DUPLICATE)
                    stored.add(UUID(bytes=ack.id))
            except (grpc.aio.AioRpcError, EOFError, asyncio.InvalidStateError):
                pass  # UNAVAILABLE: the edge keeps them and comes again
        return stored

    async with running_cloud(decoder, tmp_path, eager="none") as cloud:
        pages = page_limit(cloud.store, 1)
        acknowledged = await deliver(cloud)
        assert len(acknowledged) < len(sent)
        async with httpx.AsyncClient(base_url=cloud.http) as http:
            for id in acknowledged:
                assert (await http.get(f"/v1/frames/{id}/bitstream")).content == sent[id]
            assert (await http.get("/v1/frames")).status_code == 200  # within httpx's five seconds
        pages(0)
        assert await deliver(cloud) == set(sent)
        assert cloud.store.frames.counts()["received"] == len(sent)


def page_limit(store: Store, more: int) -> Callable[[int], None]:
    """Let SQLite's file grow by ``more`` pages and no further; call the result with 0 to take that back."""
    from sqlalchemy import event

    limit = 0

    @event.listens_for(store.database.engine, "checkout")
    def limited(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {limit or 2**30}")

    with sqlite3.connect(str(store.url.database)) as connection:
        limit = connection.execute("PRAGMA page_count").fetchone()[0] + more

    def change(pages: int) -> None:
        nonlocal limit
        limit = pages

    return change


async def test_a_full_disk_under_the_cache_costs_the_cache_only(
    decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "put", full)
    new = [new_frame(make_frame(seed)) for seed in range(4)]

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        for one in new:
            answer = await http.get(f"/v1/frames/{one.id}/image?wait=10&format=webp&width=32")
            assert answer.status_code == 200
        assert metric(cloud.metrics, "cache_errors_total") >= len(new)


async def test_every_corrupt_cache_file_is_made_again(decoder: Decoder, make_frame: MakeFrame, tmp_path: Path) -> None:
    new = [new_frame(make_frame(seed)) for seed in range(6)]

    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        await until(lambda: cloud.store.frames.counts()["done"] == len(new))
        before = [(await http.get(f"/v1/frames/{one.id}/image")).content for one in new]
        for number, file in enumerate(sorted((tmp_path / "cache").glob("??/*"))):
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes((bytes(data), b"", bytes(data[:20]), os.urandom(300))[number % 4])
        after = [(await http.get(f"/v1/frames/{one.id}/image?wait=10")).content for one in new]
        assert after == before
