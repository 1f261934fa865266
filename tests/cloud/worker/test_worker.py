"""The worker: each caller gets a picture or a reason, and nothing is lost."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from uuid import uuid4

import pytest

from aeic_service.errors import Draining
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.store import RequestKind, Store
from tests.support.cloud.cloud import FakeGenerator, metric
from tests.support.cloud.running_worker import Running
from tests.support.frames import MakeFrame, new_frame
from tests.support.requests import new_request
from tests.support.waiting import until


async def test_a_stored_frame_becomes_a_picture(
    running: Running, decoder: Decoder, store: Store, make_frame: MakeFrame, tmp_path: Path
) -> None:
    new = new_frame(make_frame(1))

    async with running() as worker:
        store.frames.add([new], time.time())
        worker.wake()
        await until(lambda: store.frames.counts()["done"] == 1)
        count = "end_to_end_seconds_count"  # after the commit
        await until(lambda: metric(worker.metrics, count, since="capture") == 1)
        assert metric(worker.metrics, count, since="arrival") == 0
    row = store.frames.get("", new.id)
    assert row is not None and row.timings is not None and row.available_ms is not None
    assert set(row.timings) == {"queue", "entropy", "device_wait", "synthesis", "image"}
    assert row.latents_digest == decoder.entropy_decode(new.bitstream).digest
    assert DiskCache(tmp_path / "cache", 10**8).has(new.digest, "png")


@pytest.mark.parametrize(
    ("captured_ms", "captured_from", "since"),
    [
        (None, None, "arrival"),
        (1_000, "exif", "arrival"),
        (1_000, "file", "arrival"),
        (1_000, "sender", "capture"),
        (1_000, "clock", "capture"),
    ],
)
async def test_a_frame_without_a_live_capture_time_is_timed_from_its_arrival(
    running: Running,
    store: Store,
    make_frame: MakeFrame,
    captured_ms: int | None,
    captured_from: str | None,
    since: str,
) -> None:
    """A picture of an SD card may be years old; its series is that of arrivals."""
    async with running() as worker:
        store.frames.add(
            [new_frame(make_frame(1), captured_ms=captured_ms or 0, captured_from=captured_from)], time.time()
        )
        worker.wake()
        await until(lambda: metric(worker.metrics, "end_to_end_seconds_count", since=since) == 1)
        other = "capture" if since == "arrival" else "arrival"
        assert metric(worker.metrics, "end_to_end_seconds_count", since=other) == 0
        seconds = metric(worker.metrics, "end_to_end_seconds_sum", since=since)
        assert seconds < 60 if since == "arrival" else seconds > 1e6


@pytest.mark.parametrize(
    ("kind", "region", "since"),
    [
        (RequestKind.REGION, [0, 0, 128, 96], "arrival"),
        (RequestKind.BETTER, None, "arrival"),
        (RequestKind.NOW, None, "capture"),
    ],
)
async def test_an_answer_is_timed_from_its_arrival_unless_it_is_a_new_picture(
    running: Running, store: Store, make_frame: MakeFrame, kind: RequestKind, region: list[int] | None, since: str
) -> None:
    """An answer has the time of capture of its parent, which may be hours old when a person asks."""
    request = new_request(uuid4(), kind=kind, region=region)
    assert store.requests.add(request, 20_000) is not None
    captured_ms = int((time.time() - 7200) * 1000)
    answer = new_frame(make_frame(2), request.id, source="s", captured_ms=captured_ms, captured_from="clock")
    async with running() as worker:
        store.frames.add([answer], time.time())
        worker.wake()
        await until(lambda: store.frames.counts()["done"] == 1)
        await until(lambda: metric(worker.metrics, "end_to_end_seconds_count", since=since) == 1)
        other = "capture" if since == "arrival" else "arrival"
        assert metric(worker.metrics, "end_to_end_seconds_count", since=other) == 0
        seconds = metric(worker.metrics, "end_to_end_seconds_sum", since=since)
        assert seconds < 60 if since == "arrival" else seconds > 7000
    row = store.frames.get("", request.id)
    assert row is not None and row.kind == kind and row.repeats_parent == (since == "arrival")


def test_one_frame_is_not_a_list_of_them(decoder: Decoder, make_frame: MakeFrame) -> None:
    with pytest.raises(TypeError, match=r"decode\(\[frame\]\)"):
        decoder.decode(make_frame(3, 64, 64))  # type: ignore[arg-type]  # wrong on purpose


async def test_the_worker_makes_the_same_picture_as_the_bare_decoder(
    running: Running, decoder: Decoder, make_frame: MakeFrame
) -> None:
    data = make_frame(3, 200, 120)

    async with running() as worker:
        (expected,) = decoder.decode([data])
        decoded = await worker.decode(data, timeout=5)
        assert (decoded.picture == expected).all()


async def test_stopping_gives_back_what_it_has_not_begun(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    store.frames.add([new_frame(make_frame(i)) for i in range(12)], time.time())

    async with running() as worker:
        generator.gate.clear()  # after the warm-up, before its tasks have had a turn
        await until(lambda: generator.entered > len(generator.batches))  # the device holds the first batch
        waiting = asyncio.create_task(worker.decode(make_frame(77), timeout=20))
        await until(lambda: hashlib.sha256(make_frame(77)).hexdigest() in worker.scheduler.jobs)
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.05)
        generator.gate.set()
        await stopping
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await worker.decode(make_frame(78), timeout=1)
    counts = store.frames.counts()
    assert counts["decoding"] == 0 and counts["done"] + counts["received"] == 12 and counts["done"] > 0


async def test_a_full_cache_disk_loses_nothing(
    running: Running, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "put", full)
    store.frames.add([new_frame(make_frame(1))], time.time())

    async with running() as worker:
        await until(lambda: store.frames.counts()["done"] == 1)
        assert metric(worker.metrics, "cache_errors_total") == 1
