"""A camera on RTSP, against a real server: frame rate, passwords, and a camera that loses its power."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_encoder.service import EdgeService
from edge_encoder.sources.camera import Camera
from edge_encoder.sources.capture_process import CaptureJob, shots
from tests.support.edge.fakes import settings
from tests.support.sources.rtsp_server import missing, rtsp_server
from tests.support.waiting import until

pytest.importorskip("av", reason="PyAV comes with the extra edge-camera")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
SECRET = "s3cret"


@contextlib.asynccontextmanager
async def reading(folder: Path, bundle: Path, url: str, **changes: object) -> AsyncIterator[tuple[EdgeService, Camera]]:
    one = {"name": "gate", "url": url, "timeout_seconds": 5.0, **changes}
    given = settings(folder / "spool", bundle=bundle, drain_timeout_seconds=0, backoff_max_seconds=0.5, cameras=[one])
    edge = EdgeService(given)
    await edge.start()
    camera = Camera(edge, given.cameras[0])
    task = asyncio.create_task(camera.run())
    try:
        yield edge, camera
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await edge.stop()


def test_frames_come_at_the_rate_asked_for() -> None:
    with rtsp_server(SECRET) as server:
        begin = time.monotonic()
        got = list(itertools.islice(shots(CaptureJob(server.url(SECRET), 2.0, 0.0, 0.0, 10.0, live=True)), 4))
        seconds = time.monotonic() - begin
    assert seconds > 1.4  # three steps of half a second
    assert {shot.rgb.shape for shot in got} == {(120, 160, 3)}
    assert all(shot.rgb.max() > 200 and shot.rgb.min() < 50 for shot in got)  # the ball on black


async def test_a_camera_that_loses_its_power_comes_back_and_sends_no_more_than_was_asked_for(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rtsp_server(SECRET) as server:
        async with reading(tmp_path, tiny_bundle, server.url(SECRET), fps=0.01) as (edge, camera):
            await until(lambda: camera.status.taken == 1, 90)
            for _ in range(2):
                await asyncio.to_thread(server.stop)
                await until(lambda: camera.status.state == "down", 90)
                await asyncio.to_thread(server.start)
                await until(lambda: camera.status.state == "up", 90)
            assert camera.status.taken == 1 and edge.spool.pending_frames == 1
    assert SECRET not in caplog.text


async def test_a_wrong_password_is_shown_and_not_written(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rtsp_server(SECRET) as server:
        async with reading(tmp_path, tiny_bundle, server.url("wr0ng")) as (_, camera):
            await until(lambda: camera.status.state == "down", 90)
            assert "401" in camera.status.detail
    assert "wr0ng" not in caplog.text + repr(camera.status)
