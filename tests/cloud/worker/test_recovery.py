"""A worker whose store or loop fails: results come later, and it begins again or says that it cannot."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloud_decoder.errors import DeviceUnavailable, StoreUnavailable
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.store.store import Store
from cloud_decoder.tiling import Picture
from cloud_decoder.worker import worker as worker_module
from cloud_decoder.worker.completion import Completion
from cloud_decoder.worker.job import DecodeJob
from tests.support.cloud.cloud import FakeGenerator, metric
from tests.support.cloud.running_worker import Running
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


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

    def write(self: Completion, job: DecodeJob, picture: Picture) -> None:
        if failures:
            raise failures.pop()
        real(self, job, picture)

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
