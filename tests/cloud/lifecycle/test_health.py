"""Readiness, warnings and the restart that an orchestrator should make: they say what is the case."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from aeic.bundle import Bundle
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.inference.decoder import Decoder
from cloud_decoder.lifecycle import maintenance
from cloud_decoder.store import health
from cloud_decoder.store.clock import DAY, accept
from cloud_decoder.store.records import DecodeResult
from cloud_decoder.store.store import Store
from tests.support.cloud.cloud import IngestClient, metric, running_cloud
from tests.support.frames import MakeFrame, claim, new_frame, stored_frame
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _probe_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.0)


async def ready(http: httpx.AsyncClient) -> tuple[int, str]:
    answer = await http.get("/readyz")
    return answer.status_code, answer.json().get("detail", "")


async def test_readiness_makes_a_real_write(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        assert await ready(http) == (200, "")
        read_only = True

        def open_disk(connection: Any, *_: Any) -> None:
            connection.execute(f"PRAGMA query_only = {int(read_only)}")

        sa.event.listen(cloud.store.database.engine, "checkout", open_disk)
        code, detail = await ready(http)
        assert code == 503 and "readonly" in detail
        status = (await http.get("/v1/status")).json()
        assert status["ready"] is False and status["problem"] == detail
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200  # a restart would not help
        read_only = False
        assert await ready(http) == (200, "")


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_nothing_is_acknowledged_once_the_database_file_is_another(
    bundle: Bundle, decoder: Decoder, make_frame: MakeFrame, tmp_path: Path, replaced: bool
) -> None:
    async with running_cloud(decoder, tmp_path, eager="none") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        (tmp_path / "store.db").unlink()
        if replaced:
            Store(f"sqlite:///{tmp_path / 'store.db'}").close()
        code, detail = await ready(http)
        assert code == 503 and "deleted or replaced" in detail and f"/proc/{os.getpid()}/fd" in detail
        async with IngestClient(cloud.grpc) as edge:
            await edge.hello(bundle)
            new = new_frame(make_frame(1))
            await edge.send(new.bitstream, new.id)
            with pytest.raises(Exception, match="deleted or replaced"):
                await edge.ack()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_log_deleted_while_in_use_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    live = tmp_path / "live"
    live.mkdir()
    store = Store(f"sqlite:///{live / 'store.db'}")
    store.frames.add([stored_frame(b"x" * 300) for _ in range(10)], time.time())
    log = live / "store.db-wal"
    log.unlink()
    if replaced:
        log.write_bytes(b"")
    problem = health.StoreHealth(store.database).problem()
    assert "store.db-wal was deleted or replaced" in problem and "start the service again" in problem
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        store.frames.add([stored_frame(b"y" * 300)], time.time())
    killed = shutil.copytree(live, tmp_path / "killed")
    store.close()
    store = Store(f"sqlite:///{killed / 'store.db'}")
    assert store.frames.counts()["received"] == 10
    assert health.StoreHealth(store.database).problem() == ""
    store.close()


async def test_garbage_pages_are_found(decoder: Decoder, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.frames.add([stored_frame(b"x" * 3000) for _ in range(200)], time.time())
    store.close()
    pages = bytearray((tmp_path / "store.db").read_bytes())
    stored = [at for at in range(0, len(pages), 4096) if b"x" * 1000 in pages[at : at + 4096]]
    for at in stored[100:110]:
        pages[at : at + 4096] = b"\xa5" * 4096
    (tmp_path / "store.db").write_bytes(pages)
    async with running_cloud(decoder, tmp_path, eager="none") as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        await until(lambda: bool(cloud.store.database.damage))
        code, detail = await ready(http)
        assert code == 503 and "damaged" in detail and "restore a backup" in detail
        assert metric(cloud.metrics, "maintenance_errors_total", step="check") == 1


async def test_a_store_that_does_not_answer_is_not_ready(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.2)
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        lock = cloud.store.database._write_lock
        assert lock is not None
        with lock:  # a disk that hangs in a commit
            for _ in range(2):
                code, detail = await ready(http)
                assert code == 503 and "has not answered" in detail
        async with asyncio.timeout(10):
            while await ready(http) != (200, ""):
                await asyncio.sleep(0.05)


async def test_a_clock_that_is_refused_prunes_nothing_and_is_shown_everywhere(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    store.trusted_clock.look()
    new = [stored_frame(b"x" * 100) for _ in range(5)]
    store.frames.add(new, time.time())
    store.queue.finish([DecodeResult(one.lease, "", {}) for one in claim(store, 10, time.time())], time.time())
    store.close()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 400 * DAY)
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.05)
    limits: dict[str, Any] = {"retention_days": 30, "retention_grace_hours": 0, "eager": "none"}
    async with running_cloud(decoder, tmp_path, **limits) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        await until(lambda: metric(cloud.metrics, "clock_refused") == 1)
        await until(lambda: cloud.maintenance._checked is not None)
        answer = await http.get("/readyz")
        assert answer.status_code == 200 and "400.0 days ahead" in answer.json()["warnings"][0]
        assert "accept-clock" in (await http.get("/v1/status")).json()["warnings"][0]
        for one in new:
            assert (await http.get(f"/v1/frames/{one.id}/bitstream")).status_code == 200
        cloud.store.frames.add([stored_frame()], time.time(), received=cloud.store.trusted_clock.now())
        assert cloud.store.frames.page("", 1).rows[0].received_ms < (real() + DAY) * 1000
        other = Store(f"sqlite:///{tmp_path / 'store.db'}")  # aeic store accept-clock
        accept(other.database)
        other.close()
        await until(lambda: cloud.store.frames.counts()["pruned"] == 5)
        assert metric(cloud.metrics, "clock_refused") == 0
        await until(lambda: metric(cloud.metrics, "retention_frames_total", step="removed") == 5)
        assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_retention_marks_then_removes_and_its_errors_are_shown(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.05)
    limits: dict[str, Any] = {"retention_bytes": 1000, "eager": "none"}
    async with running_cloud(decoder, tmp_path, **limits) as cloud, httpx.AsyncClient(base_url=cloud.http) as http:
        new = [stored_frame(b"x" * 100) for _ in range(30)]
        cloud.store.frames.add(new, time.time())
        held = claim(cloud.store, 30, time.time())
        cloud.store.queue.finish([DecodeResult(one.lease, "", {}) for one in held], time.time())
        await until(lambda: metric(cloud.metrics, "retention_frames_total", step="removed") == 10)
        assert metric(cloud.metrics, "retention_frames_total", step="marked") == 20
        await until(lambda: metric(cloud.metrics, "deleted_bytes") == 1000)
        assert cloud.store.retention.undelete() == 10  # as many bytes again as the limit

        def fail(*_: object, **__: object) -> int:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(cloud.store.retention, "mark", fail)
        await until(lambda: metric(cloud.metrics, "maintenance_errors_total", step="retention") >= 2)
        assert "retention failed (ZeroDivisionError" in (await http.get("/readyz")).json()["warnings"][0]
        monkeypatch.undo()


async def test_a_task_that_fails_is_named_and_begins_again(decoder: Decoder, tmp_path: Path) -> None:
    async with running_cloud(decoder, tmp_path) as cloud:
        runs: list[int] = []

        async def work() -> None:
            runs.append(1)
            if len(runs) == 1:
                raise ZeroDivisionError("a bug")

        task = cloud.supervisor.start("queue", work, may_end=True)
        await until(lambda: cloud.readiness.warnings)
        assert cloud.readiness.warnings == ["restarting after an error: queue (a bug)"]
        await task
        assert len(runs) == 2 and cloud.readiness.warnings == []
        assert metric(cloud.metrics, "task_restarts_total", task="queue") == 1
