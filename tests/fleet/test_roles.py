"""Front end and worker in one process, each with its own store handle: callers can do what they can do with a cloud on
one machine. Only the database and the cache are shared."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from aeic.bundle import Bundle
from cloud_decoder.events import EventBus
from cloud_decoder.front_end.event_poller import EventPoller
from cloud_decoder.front_end.queue_backend import TRANSIENT_TENANT
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.images.object_cache import ObjectCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from cloud_decoder.store.records import DecodeResult
from cloud_decoder.store.store import FrameState, NewFrame, Store
from cloud_decoder.worker.claimer import Claimer, ClaimSettings
from cloud_decoder.worker.scheduler import Scheduler, SchedulerSettings
from tests.support.cloud.cloud import FakeGenerator, IngestClient
from tests.support.frames import MakeFrame, new_frame

pytest.importorskip("obstore", reason="obstore is not installed (extra fleet)")


def settings(folder: Path, url: str, **more: Any) -> Settings:
    given: dict[str, Any] = {"port": 0, "grpc_port": 0, "data_dir": folder, "database_url": url, "poll_seconds": 0.05}
    return Settings(**given | {"cache_url": f"file://{folder}/pictures"} | more)


async def test_a_front_end_and_a_worker_do_what_one_machine_does(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, store_url: str, tmp_path: Path
) -> None:
    front = Cloud(settings(tmp_path, store_url, role="ingest", bundle=bundle.path))
    worker = Cloud(settings(tmp_path, store_url, role="worker"), decoder)
    await front.start()
    await worker.start()
    assert worker.grpc == ""
    async with httpx.AsyncClient(base_url=front.http, timeout=20) as http, IngestClient(front.grpc) as edge:
        await edge.hello(bundle)
        id, data = uuid4(), make_frame(5)
        await edge.send(data, id)
        await edge.ack()
        image = await http.get(f"/v1/frames/{id}/image?wait=10")
        assert image.status_code == 200 and image.content[:4] == b"\x89PNG"
        for file in (tmp_path / "pictures").rglob("*-png"):
            file.unlink()
        again = await http.get(f"/v1/frames/{id}/image?wait=10")  # its job is made anew
        assert again.content == image.content
        passing = await http.post("/v1/decode?timeout=10", content=make_frame(6, 64, 64))
        assert passing.status_code == 200 and passing.headers["x-latents-digest"]
        assert (await http.post("/v1/decode", content=b"nonsense")).status_code == 422
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get(worker.http + "/readyz")).status_code == 200
        for _ in range(40):
            if sum(front.store.frames.counts(TRANSIENT_TENANT).values()) == 0:
                break
            await asyncio.sleep(0.05)
        assert (
            sum(front.store.frames.counts(TRANSIENT_TENANT).values()) == 0 and front.store.frames.counts()["done"] == 1
        )
    await worker.stop()
    await front.stop()


async def test_without_workers_a_front_end_takes_frames_and_says_that_pictures_wait(
    bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"

    front = Cloud(settings(tmp_path, url, role="ingest", max_queue=1, bundle=bundle.path))
    await front.start()
    new = new_frame(make_frame(1), wanted=False)
    front.store.frames.add([new], time.time())
    async with httpx.AsyncClient(base_url=front.http, timeout=20) as http:
        assert (await http.get(f"/v1/frames/{new.id}/image")).status_code == 202
        assert front.store.queue.waiting(time.time()).ready == 1  # asked for: a job before all others
        both = await asyncio.gather(
            *(http.post("/v1/decode?timeout=0.5", content=make_frame(n, 64, 64)) for n in (2, 3))
        )
        assert sorted(answer.status_code for answer in both) == [429, 504]
        foreign = bytearray(make_frame(1))
        foreign[6] ^= 1
        assert (await http.post("/v1/decode", content=bytes(foreign))).status_code == 409
    await front.stop()


def test_a_front_end_needs_to_know_where_pictures_are(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AEIC_CLOUD_CACHE_URL"):
        Cloud(Settings(role="ingest", data_dir=tmp_path, bundle=bundle.path))


async def test_one_of_many_workers_claims_little_and_by_the_clock_of_the_store(
    store_url: str, decoder: Decoder, make_frame: MakeFrame
) -> None:
    store = Store(store_url)
    start = store.clock() + 10**6  # no clock of this machine
    now = [start]
    store.clock = lambda: now[0]  # type: ignore[method-assign]  # another clock for the test
    new = [new_frame(make_frame(n, *size)) for n, size in enumerate([(128, 96), (64, 64)] * 5)]
    store.frames.add(new, start)
    fingerprint = new[0].fingerprint
    model_pool = ModelPool.of(decoder)
    limits = SchedulerSettings(max_demanded=1, max_batch=4, max_batch_pixels=2**22, aging_seconds=2.0)
    scheduler = Scheduler(Metrics(), model_pool.loaded, limits)
    with ThreadPoolExecutor(2) as threads:
        claimer = Claimer(store, scheduler, threads, model_pool, ClaimSettings(owner="w", max_leased=4))
        await claimer._claim(fingerprint)
        first = list(scheduler)
        assert len(first) == 4 and {job.frame.width for job in first} == {128}
        await claimer._claim(fingerprint)
        assert len(scheduler.jobs) == 4
        claimer._changed.clear()
        await claimer.release(first[:1])
        scheduler.remove(first[0])
        await claimer._claim(fingerprint)
        assert len(scheduler.jobs) == 3 and claimer._changed.is_set()  # not before half is done
        await claimer.fail(first[1], "no")
        scheduler.remove(first[1])
        await claimer._claim(fingerprint)
        assert len(scheduler.jobs) == 4
        others = store.queue.claim("other", fingerprint, 100, start, 60, 3)
        assert len(others) == 5 and others[0].row.state is FrameState.DECODING
        now[0] = start + 30
        claimer._renew(list(first[2].leases.values()))
        assert len(store.queue.claim("third", fingerprint, 100, start + 70, 60, 3)) == 8
    store.close()


def test_a_shared_cache_is_one_place_for_many(tmp_path: Path) -> None:
    url, digest = f"file://{tmp_path}/pictures", "ab" * 32
    one, two = ObjectCache(url, 100), ObjectCache(url, 100)
    assert one.get(digest, "png") is None and not one.has(digest, "png")
    one.put(digest, "png", b"picture")
    assert two.get(digest, "png") == b"picture" and two.has(digest, "png")
    assert DiskCache(tmp_path / "pictures", 10**6).get(digest, "png") == b"picture"  # the same files
    (path,) = (tmp_path / "pictures").rglob("*-png")
    path.write_bytes(path.read_bytes()[:-1])
    assert two.get(digest, "png") is None
    with pytest.raises(ValueError, match="not a cache name"):
        one.get("../../etc/passwd", "png")
    for number in range(4):
        time.sleep(0.01)
        one.put(f"{number}" * 64, "png", b"x" * 10)
    assert two.trim() == 3 and two.total_bytes <= 100
    assert one.get("3" * 64, "png") is not None and one.get("0" * 64, "png") is None


async def test_listeners_of_a_front_end_hear_of_the_workers(store_url: str, make_frame: MakeFrame) -> None:
    store, event_bus = Store(store_url), EventBus()
    poller, new = EventPoller(store, event_bus), [new_frame(make_frame(n)) for n in range(3)]

    with event_bus.subscribe("") as events:
        assert event_bus.tenants == {""}
        await poller.poll()
        assert await events.next(0.1) == {"event": "changed"}
        store.frames.add(new, time.time())
        await poller.poll()
        assert [await events.next(0.1) for _ in range(3)] == [{"event": "received", "id": str(one.id)} for one in new]
        claimed = store.queue.claim("w", new[0].fingerprint, 2, time.time(), 60, 3)
        await poller.poll()
        store.queue.finish([DecodeResult(claimed[0].lease, "", {})], time.time())
        store.queue.fail([claimed[1].lease], "no")
        await poller.poll()
        await poller.poll()
        heard = [await events.next(0.1) for _ in range(3)]
        assert {(one["event"], one["id"]) for one in heard[:2] if one} == {
            ("done", str(new[0].id)),
            ("failed", str(new[1].id)),
        }
        assert heard[2] is None
    store.close()


async def test_a_stream_goes_on_at_another_front_end(
    bundle: Bundle, make_frame: MakeFrame, store_url: str, tmp_path: Path
) -> None:
    fronts = [Cloud(settings(tmp_path, store_url, role="ingest", bundle=bundle.path)) for _ in range(2)]
    worker = Store(store_url)
    for front in fronts:
        await front.start()
    seen: list[tuple[str, str]] = []

    async def follow(front: Cloud, last_id: str, count: int) -> str:
        headers = {"Last-Event-ID": last_id}
        async with (
            asyncio.timeout(20),
            httpx.AsyncClient(base_url=front.http, timeout=20) as http,
            http.stream("GET", "/v1/events", headers=headers) as stream,
        ):
            async for line in stream.aiter_lines():
                if line.startswith("id: "):
                    last_id = line[4:]
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    seen.append((event["event"], event["frame"]["id"]))
                if len(seen) == count:
                    return last_id
        raise AssertionError("the stream has ended")

    def decode(new: NewFrame) -> list[tuple[str, str]]:
        worker.frames.add([new], time.time())
        claimed = worker.queue.claim("w", new.fingerprint, 1, time.time(), 60, 3)
        worker.queue.finish([DecodeResult(one.lease, "", {}) for one in claimed], time.time())
        return [("received", str(new.id)), ("done", str(new.id))]

    new = [new_frame(make_frame(number)) for number in range(3)]
    following = asyncio.create_task(follow(fronts[0], str(worker.events.newest()), 2))
    await asyncio.sleep(0.5)
    expected = await asyncio.to_thread(decode, new[0])  # by another process: no signal reaches the front end
    last_id = await following
    expected += await asyncio.to_thread(decode, new[1])
    last_id = await follow(fronts[1], last_id, 4)
    await fronts[0].stop()
    expected += await asyncio.to_thread(decode, new[2])
    await follow(fronts[1], last_id, 6)
    await fronts[1].stop()
    worker.close()
    assert seen == expected


async def test_a_poisoned_picture_reaches_the_caller_of_a_front_end(
    bundle: Bundle, decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, store_url: str, tmp_path: Path
) -> None:
    front = Cloud(settings(tmp_path, store_url, role="ingest", bundle=bundle.path))
    worker = Cloud(settings(tmp_path, store_url, role="worker"), decoder)
    await front.start()
    await worker.start()
    generator.poison = lambda _: True
    async with httpx.AsyncClient(base_url=front.http, timeout=20) as http:
        answer = await http.post("/v1/decode?timeout=10", content=make_frame(6, 64, 64))
    assert answer.status_code == 422 and "ZeroDivisionError" in answer.text
    await worker.stop()
    await front.stop()
