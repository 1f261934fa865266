"""A camera as a source: frame rate, motion skip, a file read once and never twice, a source that breaks or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from edge_encoder.service import EdgeService
from edge_encoder.sources.camera import Camera
from edge_encoder.sources.capture_process import Job, shots
from edge_encoder.sources.motion import Motion
from tests.support.edge_fakes import settings

av = pytest.importorskip("av", reason="PyAV comes with the extra edge-camera")


def video(path: Path, seconds: float = 3.0, fps: int = 10, moving_from: float = 0.0) -> Path:
    """A grey picture in which, from a moment on, a bright square wanders."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv420p", 2_000_000
        for number in range(round(seconds * fps)):
            rgb = np.full((96, 128, 3), 90, np.uint8)
            if number / fps >= moving_from:
                left = 4 * number % 100
                rgb[20:60, left : left + 28] = 250
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def job(path: Path, **changes: object) -> Job:
    values = {"fps": 2.0, "motion": 0.0, "still_seconds": 0.0, "timeout_seconds": 5.0, "live": False}
    return Job(str(path), **{**values, **changes})  # type: ignore[arg-type]


def test_motion_adds_up_slow_changes_and_ignores_noise() -> None:
    motion, rng = Motion(0.02, 30.0), np.random.default_rng(0)
    grey = np.full((36, 64), 100, np.uint8)
    assert motion.is_new(grey, 0.0)
    assert not any(motion.is_new(grey + rng.integers(0, 5, grey.shape).astype(np.uint8), n) for n in range(1, 20))
    assert [motion.is_new(grey + np.uint8(3 * n), 20.0) for n in range(1, 5)] == [False, False, False, True]
    assert not motion.is_new(grey + np.uint8(12), 49.0)
    assert motion.is_new(grey + np.uint8(12), 50.0)  # a sign of life
    every = Motion(0.0, 0.0)
    assert every.is_new(grey, 0) and every.is_new(grey, 1)


def test_frames_come_at_the_rate_asked_for(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4")
    times = [round(shot.seconds, 2) for shot in shots(job(path))]
    assert times == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert len(list(shots(job(path, fps=60.0)))) == 30
    assert next(shots(job(path))).rgb.shape == (96, 128, 3)


def test_frames_without_anything_new_are_left_out_and_counted(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", moving_from=2.0)
    got = [(round(shot.seconds, 1), shot.skipped) for shot in shots(job(path, motion=0.01))]
    assert got == [(0.0, 0), (2.0, 3), (2.5, 0)]


@contextlib.asynccontextmanager
async def service(folder: Path, bundle: Path, **changes: object) -> AsyncIterator[EdgeService]:
    edge = EdgeService(settings(folder / "spool", bundle=bundle, drain_timeout_seconds=0.0, **changes))
    await edge.start()
    yield edge
    await edge.stop()


def count(edge: EdgeService, outcome: str) -> float:
    return edge.metrics.registry.get_sample_value("aeic_edge_camera_frames_total", {"outcome": outcome}) or 0.0


async def test_a_file_is_read_once_and_a_restart_sends_nothing_twice(tmp_path: Path, tiny_bundle: Path) -> None:
    path = video(tmp_path / "v.mp4")

    changes = {"camera_url": str(path), "camera_fps": 2.0, "camera_source_id": "gate", "encode_queue_frames": 1}
    async with service(tmp_path, tiny_bundle, **changes) as edge:
        await Camera(edge, edge.settings).run()
        assert count(edge, "taken") == 6
        records = edge.spool.lease(10)
        assert {record.source_id for record in records} == {"gate"} and len(records) == 6
        assert [r.captured_ms - records[0].captured_ms for r in records] == [0, 500, 1000, 1500, 2000, 2500]
        await Camera(edge, edge.settings).run()
        assert edge.spool.pending_frames == 6


async def test_a_source_that_breaks_or_hangs_is_opened_again(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The capture process is replaced: it fails, then hangs, then sends a frame."""
    fake, runs = tmp_path / "capture.py", tmp_path / "runs"
    fake.write_text(
        f"""
import json, pathlib, sys, time
runs = pathlib.Path({str(runs)!r}); number = len(runs.read_text()) if runs.exists() else 0
runs.write_text("x" * (number + 1))
job = json.loads(sys.stdin.readline())
if number == 0: sys.exit("no such camera")
if number == 1: time.sleep(60)
head = {{"width": 64, "height": 48, "seconds": time.time(), "skipped": 2}}
sys.stdout.buffer.write(json.dumps(head).encode() + b"\\n" + bytes(64 * 48 * 3)); sys.stdout.flush()
time.sleep(60)
"""
    )
    start = asyncio.create_subprocess_exec

    async def replaced(program: str, *arguments: str, **pipes: object) -> asyncio.subprocess.Process:
        assert program == sys.executable and arguments == ("-m", "edge_encoder.sources.capture_process")
        return await start(program, str(fake), **pipes)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", replaced)

    changes = {"camera_url": "rtsp://me:s3cret@camera/1", "camera_timeout_seconds": 0.5, "camera_fps": 50.0}
    async with service(tmp_path, tiny_bundle, **changes) as edge:
        running = asyncio.create_task(Camera(edge, edge.settings).run())
        while not count(edge, "taken"):
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(runs.read_text()) == 3 and count(edge, "still") == 2
        assert "s3cret" not in repr(edge.settings)
    assert "no such camera" in caplog.text and "delivered nothing in time" in caplog.text
    assert "s3cret" not in caplog.text


async def test_the_capture_process_says_what_is_wrong_without_the_address(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_encoder.sources.capture_process",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )  # fmt: skip
    wanted = {"url": str(tmp_path / "s3cret.mp4"), "fps": 1, "motion": 0, "still_seconds": 0, "live": False}
    assert process.stdin is not None
    process.stdin.write(json.dumps({**wanted, "timeout_seconds": 5}).encode() + b"\n")
    # Not communicate(): that closes stdin, and the process leaves at once, with its parent.
    assert process.stdout is not None and process.stderr is not None
    out, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
    assert await process.wait() == 1 and out == b"" and b"s3cret" not in errors and b"No such file" in errors
