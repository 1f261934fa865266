"""Processes that die, hang, fail to start or get SIGTERM while they work; see test_faults.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest

from aeic.bundle import Bundle
from cloud_decoder.errors import DecoderDied, DeviceOutOfMemory, DeviceUnavailable
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.subprocess_backend import ChildProcess, ChildState, SubprocessGenerator
from cloud_decoder.store.store import FrameState, Store
from tests.support.cloud.cloud import IngestClient, cloud_process, metric, running_cloud
from tests.support.frames import MakeFrame, new_frame
from tests.support.waiting import until


@pytest.fixture
def isolated(bundle: Bundle) -> Decoder:
    """A decoder whose generator is in a process of its own."""
    generator = SubprocessGenerator(bundle.path, "onnx", 1, batch_seconds=20)
    return Decoder(bundle, generator, settings=DecoderSettings(threads=1, max_batch=4))


def child_of(decoder: Decoder) -> int:
    pid = decoder._generator.pid  # type: ignore[attr-defined]  # it is a SubprocessGenerator
    assert pid is not None
    return int(pid)


async def test_a_decoder_process_killed_in_the_middle_of_a_batch(
    isolated: Decoder, make_frame: MakeFrame, tmp_path: Path
) -> None:
    new = [new_frame(make_frame(seed)) for seed in range(12)]

    async with running_cloud(isolated, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        expected = [isolated.decode([one.bitstream])[0] for one in new[:1]]
        victim = child_of(isolated)
        os.kill(victim, signal.SIGSTOP)  # so that the next batch is surely in it
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        asked = [asyncio.create_task(http.post("/v1/decode", content=make_frame(s))) for s in range(50, 54)]
        await until(lambda: metric(cloud.metrics, "batch_pieces_count") >= 1)
        await asyncio.sleep(0.1)
        assert (await http.get("/healthz")).status_code == 200  # the service itself never waits for it
        os.kill(victim, signal.SIGKILL)
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        await until(lambda: cloud.store.frames.counts()["done"] == len(new))
        assert child_of(isolated) != victim and metric(cloud.metrics, "decoder_deaths_total") == 1
        assert cloud.store.frames.counts()["failed"] == 0
        assert (isolated.decode([new[0].bitstream])[0] == expected[0]).all()
    assert isolated._generator.pid is None  # type: ignore[attr-defined]  # it is a SubprocessGenerator


def test_a_decoder_process_that_hangs_is_killed_and_replaced(bundle: Bundle, make_frame: MakeFrame) -> None:
    generator = SubprocessGenerator(bundle.path, "onnx", 1, batch_seconds=0.5)
    decoder = Decoder(bundle, generator, settings=DecoderSettings(threads=1))
    data = make_frame(1)
    (expected,) = decoder.decode([data])
    os.kill(child_of(decoder), signal.SIGSTOP)
    with pytest.raises(Exception, match="it hung"):
        decoder.decode([data])
    (again,) = decoder.decode([data])
    assert (again == expected).all()
    decoder.close()


def test_a_sticky_cuda_error_ends_the_decoder_process(
    isolated: Decoder, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, generator = child_of(isolated), isolated._generator
    failed = {"failed": "AcceleratorError", "what": "CUDA error: an illegal memory access was encountered"}
    with monkeypatch.context() as patch, pytest.raises(DecoderDied):
        patch.setattr(generator._child.control, "receive", lambda seconds: failed)  # type: ignore[attr-defined]  # it is a SubprocessGenerator
        isolated.decode([make_frame(1)])
    isolated.decode([make_frame(1)])
    assert child_of(isolated) != victim
    isolated.close()


def test_a_decoder_process_that_ends_between_two_batches_is_replaced_without_a_call(isolated: Decoder) -> None:
    generator, victim = isolated._generator, child_of(isolated)
    assert isinstance(generator, SubprocessGenerator) and generator.state is ChildState.READY
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: generator.pid not in (victim, None) and not isolated.problem)
    isolated.close()
    assert generator.state is ChildState.CLOSED
    with pytest.raises(DeviceUnavailable, match="closed"):
        generator.warm_up(1)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_unloaded_child_stays_where_memory_runs_out_while_it_starts(
    isolated: Decoder, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated.warm_up()
    ask, short = SubprocessGenerator._ask, True

    def no_memory(self: SubprocessGenerator, child: ChildProcess, message: dict[str, Any], seconds: float) -> Any:
        if short and "shape" not in message:
            raise DeviceOutOfMemory("cuda does not have the memory for it")
        return ask(self, child, message, seconds)

    monkeypatch.setattr(SubprocessGenerator, "_ask", no_memory)
    os.kill(child_of(isolated), signal.SIGKILL)
    wait_for(lambda: isolated._generator.pid is None)  # type: ignore[attr-defined]  # it is a SubprocessGenerator
    with pytest.raises(DeviceUnavailable, match="memory"):
        isolated.decode([make_frame(1)])
    assert isolated.problem and isolated._generator.pid is None  # type: ignore[attr-defined]  # it is a SubprocessGenerator
    short = False
    wait_for(lambda: not isolated.problem)
    isolated.decode([make_frame(1)])
    isolated.close()


def test_a_failed_start_leaves_no_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("cloud_decoder.inference.subprocess_backend.subprocess.Popen", fails)
        for _ in range(5):
            with pytest.raises(OSError, match="allocate"):
                ChildProcess()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_where_no_decoder_process_starts_callers_get_503_and_frames_stay(
    isolated: Decoder, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [new_frame(make_frame(seed)) for seed in range(6)]

    async with running_cloud(isolated, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        victim = child_of(isolated)
        os.kill(victim, signal.SIGSTOP)
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        asked = [asyncio.create_task(http.post("/v1/decode", content=make_frame(s))) for s in range(50, 54)]
        await until(lambda: metric(cloud.metrics, "batch_pieces_count") >= 1)
        monkeypatch.setattr(SubprocessGenerator, "_spawn", cannot_start)
        os.kill(victim, signal.SIGKILL)
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {503}
        async with asyncio.timeout(10):  # half of batch_seconds: it does not wait for a batch
            answer = await http.post("/v1/decode", content=make_frame(60))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/readyz")).status_code == 503
        await until(lambda: cloud.store.frames.counts()["received"] == len(new))
        assert cloud.store.frames.counts()["failed"] == 0
        assert (await http.get("/healthz")).status_code == 200  # it repairs itself
        monkeypatch.undo()
        async with asyncio.timeout(30):
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.1)
        await until(lambda: cloud.store.frames.counts()["done"] == len(new))


def cannot_start(_: SubprocessGenerator) -> None:
    raise OSError(12, "Cannot allocate memory")


async def test_sigterm_under_load_answers_every_request_and_loses_nothing(
    bundle: Bundle, make_frame: MakeFrame, tmp_path: Path
) -> None:
    sent = {uuid4(): make_frame(seed, 256, 256) for seed in range(40)}
    statuses: list[int] = []

    async def load(addresses: dict[str, str], stop: Callable[[], None]) -> set[UUID]:
        stored: set[UUID] = set()
        async with (
            IngestClient(addresses["grpc"]) as edge,
            httpx.AsyncClient(base_url=addresses["http"], timeout=30) as http,
        ):
            await edge.hello(bundle)

            async def client(number: int) -> None:
                for seed in range(200):
                    try:
                        answer = await http.post("/v1/decode", content=make_frame(1000 * number + seed, 128, 128))
                    except httpx.TransportError:
                        return  # the door is closed: nothing was taken
                    statuses.append(answer.status_code)
                    if answer.status_code == 503:
                        assert int(answer.headers["retry-after"]) >= 1
                        return

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            for id, data in sent.items():
                await edge.send(data, id)
            for _ in range(len(sent) // 2):
                stored.add(UUID(bytes=(await edge.ack()).id))
            # On a slow machine forty frames are stored before the first batch is decoded.
            await until(lambda: 200 in statuses)
            stop()
            try:
                while True:
                    stored.add(UUID(bytes=(await edge.ack()).id))
            except (EOFError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            await asyncio.wait_for(asyncio.gather(*clients), 20)
        return stored

    with cloud_process(bundle, tmp_path) as (running, addresses):
        stored = await load(addresses, lambda: running.send_signal(signal.SIGTERM))
        assert running.wait(20) == 0
    assert set(statuses) <= {200, 503} and 200 in statuses
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    try:
        assert store.frames.counts()["decoding"] == 0 and store.frames.counts()["failed"] == 0
        for id in stored:
            row = store.frames.get("", id)
            assert row is not None and row.state in (FrameState.RECEIVED, FrameState.DONE)
            assert store.frames.bitstream("", id) == sent[id]
    finally:
        store.close()
