"""Which work is decoded next and in which batches, and how waiting work is dropped once no caller wants it."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.colour_statistics import ColourStatistics
from aeic.pixels import load_picture
from aeic_service.errors import Overloaded
from cloud_decoder.errors import Expired
from cloud_decoder.images import formats
from cloud_decoder.images.disk_cache import DiskCache
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.store import Store
from cloud_decoder.tiling import tile_shape
from cloud_decoder.worker import worker as worker_module
from tests.support.cloud.cloud import FakeGenerator, metric
from tests.support.cloud.running_worker import Running
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


async def test_a_backlog_leaves_in_full_batches_of_one_shape(
    running: Running, generator: FakeGenerator, store: Store, make_frame: MakeFrame
) -> None:
    store.frames.add([new_frame(make_frame(i, 128, 96 if i % 2 else 160)) for i in range(24)], time.time())

    async with running():
        await until(lambda: store.frames.counts()["done"] == 24)
    sizes = [shape[0] for shape in generator.batches[1:]]  # the first is the warm-up
    assert sum(sizes) == 24 and max(sizes) == 4 and np.mean(sizes) >= 3.6


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


async def test_tiles_of_two_large_pictures_of_one_size_share_batches(
    running: Running, decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    """Their rows have one tile each, so a batch of two holds a tile of either."""
    sizes = [(1600, 2048), (1600, 2048)]

    async with running() as worker:
        data = [make_frame(i, *size) for i, size in enumerate(sizes)]
        done = await asyncio.gather(*(worker.decode(one, timeout=20) for one in data))
        for one, expected in zip(done, decoder.decode(data), strict=True):
            assert (one.picture == expected).all()
    tile = tile_shape(Frame(1600, 2048, 0, "000000", b""))
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


@pytest.mark.parametrize("stored", [False, True])
async def test_the_device_is_free_while_colours_are_corrected(
    running: Running,
    decoder: Decoder,
    store: Store,
    make_frame: MakeFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: bool,
) -> None:
    coloured, plain = make_frame(1, colour=ColourStatistics((20000, 30000, 45000), (9000, 5000, 12000))), make_frame(2)
    (expected,) = decoder.decode([coloured])
    entered, leave = threading.Event(), threading.Event()
    correct = ColourStatistics.correct

    def held_up(statistics: ColourStatistics, picture: np.ndarray) -> None:
        entered.set()
        leave.wait(20)
        correct(statistics, picture)

    monkeypatch.setattr(ColourStatistics, "correct", held_up)
    async with running() as worker:
        if stored:
            store.frames.add([new_frame(coloured)], time.time())
            worker.wake()
        else:
            waiting = asyncio.create_task(worker.decode(coloured, timeout=30))
        await until(entered.is_set)
        try:
            await worker.decode(plain, timeout=10)
            assert store.frames.counts()["done"] == 0 if stored else not waiting.done()
        finally:
            leave.set()
        if stored:
            await until(lambda: store.frames.counts()["done"] == 1)
            file = DiskCache(tmp_path / "cache", 10**8).get(hashlib.sha256(coloured).hexdigest(), formats.MASTER)
            assert file is not None
            picture = load_picture(file)
        else:
            picture = (await waiting).picture
    assert (picture == expected).all()


async def test_a_small_picture_goes_before_the_remaining_rows_of_a_large_one(
    running: Running, generator: FakeGenerator, make_frame: MakeFrame
) -> None:
    large, small = make_frame(1, 1600, 4800), make_frame(2, 128, 128)
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
    assert first == tile_shape(Frame(1600, 4800, 0, "000000", b"")) and len(others) >= 3
    assert (4, 4) in others[:2], "it waits for the row on the device, and for one that it may have met in the queue"


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
