"""Health that tells the truth: the disk that fails, the file that is gone, the task that died."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edge_encoder.source_status import SourceStatus
from edge_encoder.uplink.stream import Report
from tests.support.edge.in_process import edge
from tests.support.edge.process import EdgeProcess
from tests.support.edge.spooled import new_received, new_record
from tests.support.pictures import picture
from tests.support.waiting import until


async def test_readiness_and_status_name_what_died(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        assert (await client.get("/readyz")).status_code == 200

        async def dies() -> None:
            raise RuntimeError("planned")

        service.supervisor.start("folder", dies)
        await asyncio.sleep(0.05)
        answer = await client.get("/readyz")
        assert answer.status_code == 503 and "folder (planned)" in answer.json()["detail"]
        tasks = {task["name"]: task for task in (await client.get("/v1/status")).json()["tasks"]}
        assert tasks["folder"]["restarts"] == 1 and tasks["uplink"]["state"] in ("running", "ended")
        assert 'aeic_edge_task_restarts_total{task="folder"} 1.0' in (await client.get("/metrics")).text


async def test_every_drop_is_counted_under_its_cause(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle, spool_max_bytes=1 << 20, spool_full_policy="drop-oldest") as (_, service):
        spool = service.spool

        def counts() -> dict[str, float]:
            (family,) = service.metrics.dropped.collect()
            return {s.labels["reason"]: s.value for s in family.samples if s.name.endswith("_total")}

        assert counts() == {"full": 0, "age": 0, "damaged": 0}
        for number in range(3):  # the third does not fit beside the first
            await asyncio.wrap_future(spool.put(new_record(number, size=400_000)))
        await until(lambda: counts() == {"full": 1, "age": 0, "damaged": 0})

        with contextlib.closing(sqlite3.connect(tmp_path / "spool.sqlite3")) as other, other:
            other.execute("UPDATE frames SET record = x'00' WHERE seq = (SELECT MAX(seq) FROM frames)")
        assert len(spool.lease(9)) == 1
        await until(lambda: counts() == {"full": 1, "age": 0, "damaged": 1})

        await asyncio.wrap_future(spool.receive(new_received()))
        assert await asyncio.wrap_future(spool.expire(-1)) == 2
        await until(lambda: counts() == {"full": 1, "age": 2, "damaged": 1})


async def test_the_report_for_the_cloud_names_what_is_wrong_but_no_address(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        assert await service.report() == Report()
        posted = await client.post("/v1/frames", content=picture(64, 64))
        assert posted.status_code == 202
        report = await service.report()
        assert report.waiting_frames == 1 and report.problem == ""

        async def dies() -> None:
            raise RuntimeError("rtsp://admin:secret@gate")

        service.supervisor.start("camera", dies)
        gate = SourceStatus("gate", "camera")
        gate.set("down", "rtsp://admin:secret@gate did not answer")
        service.sources.append(gate)
        await until(lambda: service.supervisor.problem)
        report = await service.report()
        assert report.problem == "camera restarts after an error; gate cannot be read"


async def test_a_deleted_spool_is_written_again_and_nothing_is_lost(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        first = (await client.post("/v1/frames", content=picture())).json()["id"]
        for path in service.spool.path.parent.iterdir():
            path.unlink()
        second = (await client.post("/v1/frames", content=picture(seed=1))).json()["id"]
        assert (await client.get("/readyz")).status_code == 200 and service.spool.path.exists()
    async with edge(tmp_path, tiny_bundle) as (client, _):
        for ident in first, second:
            assert (await client.get(f"/v1/frames/{ident}")).json()["state"] == "spooled"


async def test_a_disk_that_works_again_is_noticed_without_a_request(tmp_path: Path, tiny_bundle: Path) -> None:
    """A frame would wait for the next picture otherwise: the uplink only reads."""
    async with edge(tmp_path, tiny_bundle) as (_, service):
        writer = service.spool._writer
        writer.failure = "the test's disk failed"
        writer._close_connection()
        assert service.spool.problem
        await until(lambda: not service.spool.problem)
        assert writer._connection is not None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system in a file, mounted at the folder given; only root may make one."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    commands = (
        ["truncate", "-s", "48M", str(image)],
        ["mkfs.ext4", "-q", "-F", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)],
    )
    if os.geteuid() != 0 or any(subprocess.run(command, capture_output=True).returncode for command in commands):
        pytest.skip("no disk can be made here: mounting one needs root and a loop device")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def start(disk: Path, bundle: Path) -> EdgeProcess:
    return EdgeProcess(AEIC_BUNDLE=str(bundle), AEIC_EDGE_DATA_DIR=str(disk / "spool"), AEIC_EDGE_CLOUD_ADDRESS="")


def test_a_disk_turned_read_only_is_named_by_readiness(disk: Path, tiny_bundle: Path) -> None:
    running = start(disk, tiny_bundle)
    try:
        with httpx.Client(base_url=running.url, timeout=20) as client:
            assert client.post("/v1/frames", content=picture()).status_code == 202
            assert client.get("/readyz").status_code == 200
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False)
            device = subprocess.run(["findmnt", "-no", "SOURCE", str(disk)], capture_output=True, text=True).stdout
            Path(f"/sys/fs/ext4/{Path(device.strip()).name}/trigger_fs_error").write_text("1")
            answer = client.post("/v1/frames", content=picture(seed=1))
            assert answer.status_code == 503, answer.text
            answer = client.get("/readyz")
            assert answer.status_code == 503 and "spool" in answer.json()["detail"]
            status = client.get("/v1/status")
            assert status.status_code == 200 and status.json()["spool"]["problem"]
            assert client.get("/metrics").status_code == 200
    finally:
        running.process.kill()
        running.process.communicate()


def test_a_disk_that_is_gone_answers_503_at_once(disk: Path, tiny_bundle: Path) -> None:
    running = start(disk, tiny_bundle)
    try:
        with httpx.Client(base_url=running.url, timeout=8) as client:  # a post that hangs fails here
            assert client.post("/v1/frames", content=picture()).status_code == 202
            handle = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(handle, 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN: every access is EIO from now on
            os.close(handle)
            for seed, wait in enumerate(("", "?wait=received", "")):
                answer = client.post(f"/v1/frames{wait}", content=picture(seed=seed + 1))
                assert answer.status_code == 503, answer.text
                time.sleep(0.6)
            assert client.get("/readyz").status_code == 503
            # The disk is back, and the old files on it with it.
            subprocess.run(["umount", "-l", str(disk)], check=True)
            subprocess.run(["mount", "-o", "loop", str(disk.parent / "image"), str(disk)], check=True)
            deadline = time.monotonic() + 20
            while (answer := client.post("/v1/frames", content=picture(seed=9))).status_code != 202:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.3)
            assert client.get("/readyz").status_code == 200
            assert client.get("/v1/status").json()["spool"]["frames"] == 2
    finally:
        running.process.kill()
        running.process.communicate()
