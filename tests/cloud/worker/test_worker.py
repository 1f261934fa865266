"""The worker: each caller gets a picture or a reason, the device gets full batches, and nothing is lost."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.errors import BundleError, Damaged, TooLarge, WrongModel
from aeic_service.errors import Draining, Overloaded
from cloud_decoder import tiling
from cloud_decoder.errors import DeviceUnavailable, Expired, HostUnavailable, StoreUnavailable
from cloud_decoder.events import EventBus
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.inference.model_pool import ModelPool
from cloud_decoder.metrics import Metrics
from cloud_decoder.store.store import FrameState, RequestKind, Store
from cloud_decoder.tiling import tile_shape
from cloud_decoder.worker import pipeline
from cloud_decoder.worker import worker as worker_module
from cloud_decoder.worker.completion import Completion
from cloud_decoder.worker.job import DecodeJob
from cloud_decoder.worker.worker import Worker, WorkerSettings
from tests.support.cloud.cloud import FakeGenerator, metric
from tests.support.frames import MakeFrame, new_frame, stored_frame
from tests.support.requests import new_request
from tests.support.waiting import until

Running = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture
def running(decoder: Decoder, generator: FakeGenerator, store: Store, tmp_path: Path) -> Running:
    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Worker]:
        cache = DiskCache(tmp_path / "cache", 10**8)
        worker = Worker(ModelPool.of(decoder), store, cache, Metrics(), EventBus(), WorkerSettings(**options))
        await worker.start()
        try:
            yield worker
        finally:
            generator.gate.set()
            await worker.stop()

    return run


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


async def test_a_backlog_leaves_in_full_batches_of_one_shape(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    store.frames.add([new_frame(make_frame(i, 128, 96 if i % 2 else 160)) for i in range(24)], time.time())

    async with running():
        await until(lambda: store.frames.counts()["done"] == 24)
    sizes = [shape[0] for shape in generator.batches[1:]]  # the first is the warm-up
    assert sum(sizes) == 24 and max(sizes) == 4 and np.mean(sizes) >= 3.6


def test_one_frame_is_not_a_list_of_them(decoder: Decoder, make_frame: MakeFrame) -> None:
    with pytest.raises(TypeError, match=r"decode\(\[frame\]\)"):
        decoder.decode(make_frame(3, 64, 64))  # type: ignore[arg-type]


async def test_the_worker_makes_the_same_picture_as_the_bare_decoder(
    running: Running, decoder: Decoder, make_frame: MakeFrame
) -> None:
    data = make_frame(3, 200, 120)

    async with running() as worker:
        (expected,) = decoder.decode([data])
        decoded = await worker.decode(data, timeout=5)
        assert (decoded.picture == expected).all()


async def test_out_of_memory_halves_the_batch_and_every_caller_is_served(
    running: Running, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    async with running() as worker:
        generator.most = 1
        done = await asyncio.gather(*(worker.decode(make_frame(i), timeout=10) for i in range(8)))
        assert len(done) == 8
        assert metric(worker.metrics, "batch_splits_total") > 0
        generator.most = 0
        with pytest.raises(HostUnavailable, match="memory"):
            await worker.decode(make_frame(99), timeout=10)
        generator.most = None
        await worker.decode(make_frame(99), timeout=10)


async def test_a_poison_frame_goes_to_quarantine_alone(
    running: Running, decoder: Decoder, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    new = [new_frame(make_frame(i)) for i in range(8)]
    bad = decoder.entropy_decode(new[5].bitstream).y_hat
    generator.poison = lambda y_hat: y_hat.shape == bad.shape and bool((y_hat == bad).all())
    store.frames.add(new, time.time())

    async with running():
        await until(lambda: store.frames.counts()["done"] == 7 and store.frames.counts()["failed"] == 1)
    row = store.frames.get("", new[5].id)
    assert row is not None and row.state is FrameState.FAILED and "ZeroDivisionError" in str(row.reason)


async def test_a_tile_that_is_not_finite_fails_alone_and_no_other_is_added_twice(
    running: Running,
    decoder: Decoder,
    generator: FakeGenerator,
    store: Store,
    make_frame: MakeFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = [new_frame(make_frame(i, 512, 512)) for i in range(4)]
    expected = decoder.decode([one.bitstream for one in new])
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", 256 * 320)
    tiling._tile_shape.cache_clear()
    tall, wide = tile_shape(Frame.parse(new[3].bitstream))
    bad = decoder.entropy_decode(new[3].bitstream).y_hat[:, :tall, :wide]
    inner = generator._inner

    def infinite(y_hat: np.ndarray) -> np.ndarray:
        images = inner(y_hat)
        images[[np.array_equal(one, bad) for one in y_hat]] = np.inf
        return images

    generator._inner = infinite
    store.frames.add(new, time.time())
    try:
        async with running() as worker:
            await until(lambda: store.frames.counts()["done"] + store.frames.counts()["failed"] == 4)
            assert store.frames.counts()["failed"] == 1
            for one, picture in zip(new, expected[:3], strict=False):
                decoded = await worker.decode(one.bitstream, timeout=10)
                assert np.abs(decoded.picture.astype(int) - picture).mean() < 2
    finally:
        tiling._tile_shape.cache_clear()


async def test_a_frame_that_was_on_the_device_when_a_service_ended_is_there_alone(
    running: Running, decoder: Decoder, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    new = [new_frame(make_frame(i)) for i in range(8)]
    suspect = decoder.entropy_decode(new[5].bitstream).y_hat
    seen: list[tuple[int, bool]] = []

    def note(y_hat: np.ndarray) -> bool:
        if y_hat.shape == suspect.shape:
            seen.append((generator.batches[-1][0], bool((y_hat == suspect).all())))
        return False

    store.frames.add(new, time.time())
    held = store.queue.claim("cloud", new[0].fingerprint, 8, time.time(), 60, 3)
    store.queue.begin([one.lease for one in held if one.row.id == new[5].id])
    generator.poison = note
    async with running():
        await until(lambda: store.frames.counts()["done"] == 8)
    assert [size for size, was_suspect in seen if was_suspect] == [1]
    assert max(size for size, _ in seen) > 1


async def test_a_stored_frame_that_cannot_be_parsed_does_not_stop_the_others(
    running: Running, store: Store, make_frame: MakeFrame
) -> None:
    data = make_frame(1)
    good = new_frame(make_frame(2))
    store.frames.add([stored_frame(b"no frame", fingerprint=good.fingerprint), good, new_frame(data)], time.time())
    async with running() as worker:
        await until(lambda: store.frames.counts()["done"] == 2)
        assert not worker.problem and store.frames.counts()["failed"] == 1


async def test_errors_of_the_host_leave_frames_in_the_queue(
    running: Running, decoder: Decoder, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [OSError(24, "Too many open files"), BundleError("cannot be loaded"), MemoryError()]
    decode = decoder.entropy_decode

    def fails_at_first(data: bytes) -> Any:
        if errors:
            raise errors.pop()
        return decode(data)

    monkeypatch.setattr(decoder, "entropy_decode", fails_at_first)
    store.frames.add([new_frame(make_frame(i)) for i in range(3)], time.time())
    async with running():
        await until(lambda: store.frames.counts()["done"] == 3)
    assert store.frames.counts()["failed"] == 0 and not errors


async def test_a_frame_for_which_the_memory_does_not_suffice_waits_and_is_decoded_later(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "OUT_OF_MEMORY_SECONDS", 0.5)
    async with running() as worker:
        generator.most = 0
        store.frames.add([new_frame(make_frame(1))], time.time())
        worker.wake()
        await until(lambda: len(generator.batches) >= 3)  # the warm-up, and two tries
        assert store.frames.counts()["failed"] == 0
        generator.most = None
        await until(lambda: store.frames.counts()["done"] == 1)


async def test_a_frame_that_ends_the_service_in_entropy_decoding_counts_an_attempt(
    running: Running, decoder: Decoder, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [new_frame(make_frame(i)) for i in range(6)]
    counted: dict[Any, int] = {}

    def note(data: bytes) -> Any:
        for one in new:
            if one.bitstream == data:
                row = store.frames.get("", one.id)
                counted[one.id] = row.attempts if row else -1
        return decode(data)

    decode = decoder.entropy_decode
    monkeypatch.setattr(decoder, "entropy_decode", note)
    store.frames.add(new, time.time())
    async with running():
        await until(lambda: store.frames.counts()["done"] == 6)
    assert counted == {one.id: 1 for one in new}


async def test_nothing_is_decoded_beside_a_suspect(
    running: Running, decoder: Decoder, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [new_frame(make_frame(i)) for i in range(8)]
    suspects = {new[2].bitstream, new[5].bitstream}
    inside: list[bytes] = []
    crowds: list[int] = []
    decode = decoder.entropy_decode

    def note(data: bytes) -> Any:
        inside.append(data)
        time.sleep(0.02)
        if suspects & set(inside):
            crowds.append(len(inside))
        found = decode(data)
        inside.remove(data)
        return found

    monkeypatch.setattr(decoder, "entropy_decode", note)
    store.frames.add(new, time.time())
    held = store.queue.claim("cloud", new[0].fingerprint, 8, time.time(), 60, 3)
    store.queue.begin([one.lease for one in held if one.bitstream in suspects])
    async with running():
        await until(lambda: store.frames.counts()["done"] == 8)
    assert crowds == [1, 1]


async def test_a_store_that_is_away_when_frames_are_finished_gets_their_results_later(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True
    real = store.queue.finish

    def finish(*arguments: Any) -> set[int]:
        if away:
            raise StoreUnavailable("the disk is full")
        return real(*arguments)

    monkeypatch.setattr(store.queue, "finish", finish)
    store.frames.add([new_frame(make_frame(i)) for i in range(3)], time.time())
    async with running(lease_seconds=600) as worker:
        await until(lambda: metric(worker.metrics, "decodes_total", result="done") == 3)
        assert store.frames.counts()["done"] == 0
        away = False
        await until(lambda: store.frames.counts()["done"] == 3)
    assert sum(shape[0] for shape in generator.batches[1:]) == 3  # none was decoded twice


async def test_frames_whose_completion_fails_return_to_the_queue_at_once(
    running: Running, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ZeroDivisionError("a bug")]
    real = Completion._write_picture

    def write(self: Completion, job: DecodeJob) -> None:
        if failures:
            raise failures.pop()
        real(self, job)

    monkeypatch.setattr(Completion, "_write_picture", write)
    new = new_frame(make_frame(1))
    store.frames.add([new], time.time())
    async with running(lease_seconds=600):
        await until(lambda: store.frames.counts()["done"] == 1)
    assert not failures


async def test_a_worker_whose_loop_dies_begins_again(
    running: Running, store: Store, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ZeroDivisionError("a bug")]
    async with running() as worker:
        real = worker.scheduler.take_batch

        def take() -> Any:
            if failures:
                raise failures.pop()
            return real()

        monkeypatch.setattr(worker.scheduler, "take_batch", take)
        store.frames.add([new_frame(make_frame(i)) for i in range(4)], time.time())
        worker.wake()
        await until(lambda: store.frames.counts()["done"] == 4)
        assert metric(worker.metrics, "task_restarts_total", task="worker") == 1
        assert not worker.problem and not worker.failure and store.frames.counts()["failed"] == 0


async def test_liveness_fails_only_where_the_worker_does_not_come_back(
    running: Running, decoder: Decoder, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FAILURE_SECONDS", 0.3)
    monkeypatch.setattr(worker_module, "REVIVE_SECONDS", 0.05)
    async with running() as worker:

        def broken(*_: Any, **__: Any) -> Any:
            raise DeviceUnavailable("no device")

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "run", broken)
            with pytest.raises(DeviceUnavailable):
                await worker.decode(make_frame(1), timeout=10)
            assert worker.problem and not worker.failure
            await until(lambda: "has not worked" in worker.failure)
            with pytest.raises(DeviceUnavailable):
                await worker.decode(make_frame(1), timeout=10)
        await until(lambda: not worker.problem)
        assert not worker.failure
        await worker.decode(make_frame(1), timeout=10)


async def test_a_worker_that_cannot_renew_its_leases_says_so(
    running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(lease_seconds=0.3) as worker:

        def away(*_: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(store.queue, "renew", away)
            await until(lambda: "leases" in worker.problem)
        await until(lambda: not worker.problem)
        assert worker._renewing is not None
        worker._renewing.cancel()
        await until(lambda: "leases" in worker.failure)


async def test_each_kind_of_damage_has_its_error(running: Running, store: Store, make_frame: MakeFrame) -> None:
    data = make_frame(1)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    new = new_frame(bytes(flipped))
    store.frames.add([new], time.time())

    async with running(max_pixels=128 * 96) as worker:
        with pytest.raises(Damaged):
            await worker.decode(bytes(flipped), timeout=5)
        foreign = bytearray(data)
        foreign[6] ^= 1
        with pytest.raises(WrongModel, match="was made with bundle"):
            await worker.decode(bytes(foreign), timeout=5)
        with pytest.raises(TooLarge):
            await worker.decode(make_frame(1, 256, 256), timeout=5)
        await until(lambda: store.frames.counts()["failed"] == 1)
        await worker.decode(data, timeout=5)
    row = store.frames.get("", new.id)
    assert row is not None and str(row.reason).startswith("Damaged")


async def test_same_bytes_are_decoded_once(running: Running, generator: FakeGenerator, make_frame: MakeFrame) -> None:
    async with running() as worker:
        await asyncio.gather(*(worker.decode(make_frame(1), timeout=5) for _ in range(10)))
    assert sum(shape[0] for shape in generator.batches[1:]) == 1


async def test_full_queue_cancelled_and_expired_work(
    running: Running, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    async with running(max_queue=6) as worker:
        generator.gate.clear()
        first = asyncio.create_task(worker.decode(make_frame(0), timeout=20))
        await until(lambda: generator.entered == 2)
        cancelled = [asyncio.create_task(worker.decode(make_frame(i), timeout=20)) for i in range(1, 4)]
        late = asyncio.create_task(worker.decode(make_frame(4), timeout=0.2))
        patient = asyncio.create_task(worker.decode(make_frame(5), timeout=20))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as full:
            await worker.decode(make_frame(6), timeout=20)
        assert full.value.retry_after  # and the device is still at a standstill
        for task in cancelled:
            task.cancel()
        with pytest.raises(Expired):
            await late
        generator.gate.set()
        await asyncio.gather(first, patient)
        assert metric(worker.metrics, "decodes_total", result="cancelled") == 4
        assert metric(worker.metrics, "sheds_total", reason="queue_full") == 1
    assert sum(shape[0] for shape in generator.batches[1:]) == 2


async def test_a_caller_with_a_deadline_does_not_take_a_stored_frame_with_it(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    data = make_frame(2)

    async with running() as worker:
        generator.gate.clear()
        blocking = asyncio.create_task(worker.decode(make_frame(0), timeout=20))
        await asyncio.sleep(0.05)
        impatient = asyncio.create_task(worker.decode(data, timeout=0.3))
        await asyncio.sleep(0.05)
        store.frames.add([new_frame(data)], time.time())
        worker.wake()
        with pytest.raises(Expired):
            await impatient
        generator.gate.set()
        await blocking
        await until(lambda: store.frames.counts()["done"] == 1)


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


async def test_tiles_of_two_large_pictures_of_one_size_share_batches(
    running: Running, decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    """Their rows have one tile each, so a batch of two holds a tile of either."""
    sizes = [(1600, 1664), (1600, 1664)]

    async with running() as worker:
        data = [make_frame(i, *size) for i, size in enumerate(sizes)]
        done = await asyncio.gather(*(worker.decode(one, timeout=20) for one in data))
        for one, expected in zip(done, decoder.decode(data), strict=True):
            assert (one.picture == expected).all()
    tile = tile_shape(Frame(1600, 1664, 0, "000000", b""))
    assert tile[1] == 50, "a row of tiles is one tile"
    assert {shape[2:] for shape in generator.batches[1:]} == {tile}
    assert max(shape[0] for shape in generator.batches[1:]) == 2


async def test_a_small_frame_does_not_wait_for_the_entropy_decoding_of_a_large_one(
    running: Running, decoder: Decoder, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TURN_PIXELS", 128 * 128)
    large, small = make_frame(1, 512, 512), make_frame(2, 128, 128)
    entered, leave = threading.Event(), threading.Event()
    decode_many = decoder.entropy_decode_many

    def held_up(frames: Sequence[bytes]) -> Any:
        if large in frames:
            entered.set()
            leave.wait(20)
        return decode_many(frames)

    monkeypatch.setattr(decoder, "entropy_decode_many", held_up)
    async with running() as worker:
        waiting = asyncio.create_task(worker.decode(large, timeout=30))
        await until(entered.is_set)
        try:
            assert (await worker.decode(small, timeout=10)).picture.shape == (128, 128, 3)
            assert not waiting.done()
        finally:
            leave.set()
        assert (await waiting).picture.shape == (512, 512, 3)


async def test_a_small_picture_goes_before_the_remaining_rows_of_a_large_one(
    running: Running, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    large, small = make_frame(1, 1600, 3200), make_frame(2, 128, 128)
    async with running() as worker:
        generator.batches.clear()
        generator.entered = 0
        generator.gate.clear()
        waiting = asyncio.create_task(worker.decode(large, timeout=40))
        await until(lambda: generator.entered > len(generator.batches))  # the first row is on the device
        later = asyncio.create_task(worker.decode(small, timeout=60))
        await until(lambda: worker.scheduler.waiting["entropy"] == 1)
        generator.gate.set()
        await later
        await waiting
    first, *others = [shape[2:] for shape in generator.batches]
    assert first == tile_shape(Frame(1600, 3200, 0, "000000", b"")) and len(others) >= 3
    assert (4, 4) in others[:2], "it waits for the row on the device, and for one that it may have met in the queue"


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


async def test_overlapped_stages_on_a_device_of_its_own(
    running: Running, decoder: Decoder, store: Store, make_frame: MakeFrame
) -> None:
    decoder.device, decoder.entropy_workers = "cuda:fake", 2
    store.frames.add([new_frame(make_frame(i)) for i in range(12)], time.time())

    async with running():
        await until(lambda: store.frames.counts()["done"] == 12)


async def test_no_frame_is_begun_while_the_pixels_in_work_are_used_up(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    async with running(max_pixels_at_once=2 * 128 * 128) as worker:
        generator.gate.clear()
        store.frames.add([new_frame(make_frame(number)) for number in range(12)], time.time())
        worker.wake()
        await until(lambda: sum(job.assembler is not None for job in worker.scheduler) == 2)
        await asyncio.sleep(0.2)
        assert sum(job.assembler is not None for job in worker.scheduler) == 2
        generator.gate.set()
        await until(lambda: store.frames.counts().get("done") == 12)
