"""Frames and batches whose decoding fails: the fault is found, and no other frame suffers from it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from aeic.bitstream import Frame
from aeic.errors import BundleError, Damaged, TooLarge, WrongModel
from cloud_decoder import tiling
from cloud_decoder.errors import HostUnavailable
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.store import FrameState, Store
from cloud_decoder.tiling import tile_shape
from cloud_decoder.worker import pipeline
from tests.support.cloud.cloud import FakeGenerator, metric
from tests.support.cloud.running_worker import Running
from tests.support.frames import MakeFrame, new_frame, stored_frame
from tests.support.waiting import until


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
