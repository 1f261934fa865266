"""The pixels in work are bounded, and a picture that takes too long does not hold the end of the service."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aeic.picture_files.headers import PNG
from aeic_service.errors import Overloaded
from edge_encoder import service as service_module
from edge_encoder.encoding import encode_queue
from edge_encoder.encoding.encode_queue import EncodeQueue
from tests.support.edge.in_process import edge
from tests.support.pictures import picture
from tests.support.waiting import until


async def test_large_pictures_wait_for_each_other_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_queue, "SMALL_PIXELS", 50)
    queue = EncodeQueue(4, 16, max_pixels=100)
    running, most, lock = 0, 0, threading.Lock()
    gate = threading.Event()

    def large() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1

    tasks = [asyncio.create_task(queue.run(large, pixels=pixels)) for pixels in (80, 80, 80, 1000, 1000)]
    await until(lambda: running == 1)
    for _ in range(10):
        await queue.run(lambda: None, pixels=50)
    assert running == 1 and queue.pending == 5 and queue.pixels.held == 80
    tasks += [asyncio.create_task(queue.run(large, pixels=80)) for _ in range(5)]
    await until(lambda: queue.pending == 10)
    with pytest.raises(Overloaded):
        await queue.run(large, pixels=80)
    await queue.run(lambda: None, pixels=50)
    gate.set()
    await asyncio.gather(*tasks)
    assert most == 1 and queue.pending == 0 and queue.pixels.held == 0
    await queue.close()


async def test_large_pictures_leave_a_worker_to_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_queue, "SMALL_PIXELS", 50)
    queue = EncodeQueue(2, 10, max_pixels=10_000)
    gate = threading.Event()
    tasks = [asyncio.create_task(queue.run(lambda: gate.wait(10), pixels=51)) for _ in range(4)]
    await until(lambda: queue.pixels.held == 51)
    await queue.run(lambda: None, pixels=50)
    gate.set()
    assert await asyncio.gather(*tasks) == [True] * 4
    await queue.close()


async def test_pictures_read_apart_leave_a_worker_and_places_in_the_queue_to_others() -> None:
    queue = EncodeQueue(2, 6, max_pixels=10_000)
    gate = threading.Event()
    tasks = [asyncio.create_task(queue.run(lambda: gate.wait(10), pixels=50, apart=True)) for _ in range(6)]
    await until(lambda: queue.pending == 6)
    with pytest.raises(Overloaded):
        await queue.run(lambda: None, pixels=50, apart=True)
    for _ in range(3):
        await queue.run(lambda: None, pixels=50)
    gate.set()
    assert await asyncio.gather(*tasks) == [True] * 6
    for apart in (False, True):  # of one kind, no more than `workers` at a time
        running, most = 0, 0

        def job() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.02)
            running -= 1

        await asyncio.gather(*(queue.run(job, pixels=50, apart=apart) for _ in range(6)))
        assert most == 2
    await queue.close()


async def test_slow_png_do_not_hold_a_jpeg(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with edge(tmp_path, tiny_bundle, encode_workers=1, picture_process="auto") as (client, service):
        gate, load = threading.Event(), service.reader.load

        def slow(data: bytes, **options: Any) -> Any:
            if data.startswith(PNG):
                gate.wait(30)
            return load(data, **options)

        monkeypatch.setattr(service.reader, "load", slow)
        slow_ones = [
            asyncio.create_task(client.post("/v1/frames", content=picture(64 + n, 48, form="PNG"))) for n in range(3)
        ]
        await until(lambda: service.queue.pending == 3)
        assert (await client.post("/v1/frames", content=picture(64, 48, form="JPEG"))).status_code == 202
        assert service.queue.pending == 3
        gate.set()
        assert [(await answer).status_code for answer in slow_ones] == [202] * 3


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_large_pictures_that_are_read_apart_do_not_hold_up_other_large_ones(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(encode_queue, "SMALL_PIXELS", 50)
    queue = EncodeQueue(workers, 8, max_pixels=100 * workers)
    gate = threading.Event()
    slow = [asyncio.create_task(queue.run(lambda: gate.wait(10), pixels=60, apart=True)) for _ in range(8)]
    await until(lambda: queue.pixels.held >= 60)
    large = asyncio.create_task(queue.run(lambda: 1, pixels=40))
    done, _ = await asyncio.wait([large], timeout=5)
    gate.set()
    answers = await asyncio.gather(*slow, return_exceptions=True)
    assert done and await large == 1
    assert answers.count(True) == (8 + workers) // 4
    await queue.close()


async def test_the_service_counts_the_pixels_of_its_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    async with edge(tmp_path, tiny_bundle, max_pixels_at_once=50_000, encode_workers=2) as (client, service):
        assert service.queue.pixels.limit == 50_000
        answers = await asyncio.gather(
            *(client.post("/v1/frames", content=picture(320, 240)) for _ in range(3)),
            client.post("/v1/frames", content=b"no picture"),
        )
        assert [answer.status_code for answer in answers] == [202, 202, 202, 422]
        assert service.queue.pixels.held == 0
        text = (await client.get("/metrics")).text
        assert 'aeic_edge_budget_limit{budget="pixels"} 50000.0' in text


async def test_a_picture_that_takes_too_long_does_not_hold_the_end(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_ENCODING_GRACE_SECONDS", 0.3)
    gate = threading.Event()
    async with edge(tmp_path, tiny_bundle) as (client, service):
        encode = service.encoder.encode

        def slow(*arguments: Any, **options: Any) -> Any:
            gate.wait(20)
            return encode(*arguments, **options)

        monkeypatch.setattr(service.encoder, "encode", slow)
        deferred = await client.post("/v1/frames?wait=received", content=picture(64, 48))
        assert deferred.status_code == 202
        waiting = asyncio.create_task(client.post("/v1/frames", content=picture(64, 48, form="PNG")))
        await until(lambda: service.queue.pending == 2)
        async with asyncio.timeout(10):
            await service.stop()
        assert service.abandoned
        gate.set()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: service.queue.pending == 0)
    async with edge(tmp_path, tiny_bundle) as (client, service):  # what was acknowledged is there
        frame = deferred.json()["id"]
        for _ in range(500):
            if (await client.get(f"/v1/frames/{frame}")).json()["state"] != "received":
                break
            await asyncio.sleep(0.02)
        assert (await client.get(f"/v1/frames/{frame}")).json()["state"] in ("spooled", "sending")
