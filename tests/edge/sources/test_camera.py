"""A camera as a source: frame rate, motion skip, a file read once and never twice, a source that breaks or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from aeic_service.settings import readable
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from edge_encoder.source_settings import CameraSettings
from edge_encoder.sources import camera
from edge_encoder.sources.camera import Camera
from edge_encoder.sources.capture_process import CaptureJob, Pace, Shot, Wanted, shots
from edge_encoder.sources.motion import Motion
from edge_encoder.spool.record import CapturedFrom
from tests.support.edge.fakes import settings
from tests.support.sources.http_camera import http_camera
from tests.support.waiting import until

DATA = Path(__file__).parent / "data"
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


def job(path: Path, **changes: Any) -> CaptureJob:
    values: dict[str, Any] = {"fps": 2.0, "motion": 0.0, "still_seconds": 0.0, "timeout_seconds": 5.0, "live": False}
    return CaptureJob(str(path), **{**values, **changes})


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
        await Camera(edge, edge.settings.all_cameras()[0]).run()
        assert count(edge, "taken") == 6
        records = edge.spool.lease(10)
        assert {record.source_id for record in records} == {"gate"} and len(records) == 6
        assert [r.captured_ms - records[0].captured_ms for r in records] == [0, 500, 1000, 1500, 2000, 2500]
        await Camera(edge, edge.settings.all_cameras()[0]).run()
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
if number == 0: print(json.dumps({{"error": "no such camera"}})); sys.exit(1)
if number == 1: time.sleep(60)
head = {{"width": 64, "height": 48, "seconds": time.time(), "skipped": 2}}
sys.stdout.buffer.write(json.dumps(head).encode() + b"\\n" + bytes(64 * 48 * 3)); sys.stdout.flush()
time.sleep(60)
"""
    )
    start = asyncio.create_subprocess_exec

    async def replaced(program: str, *arguments: str, **pipes: Any) -> asyncio.subprocess.Process:
        assert program == sys.executable and arguments == ("-m", "edge_encoder.sources.capture_process")
        return await start(program, str(fake), **pipes)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", replaced)

    monkeypatch.setattr(camera, "_START_SECONDS", 0.5)
    changes = {"camera_url": "rtsp://me:s3cret@camera/1", "camera_timeout_seconds": 0.5, "camera_fps": 50.0}
    async with service(tmp_path, tiny_bundle, **changes) as edge:
        running = asyncio.create_task(Camera(edge, edge.settings.all_cameras()[0]).run())
        while not count(edge, "taken"):
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(runs.read_text()) == 3 and count(edge, "still") == 2
        assert "s3cret" not in repr(edge.settings)
    assert "no such camera" in caplog.text and "delivered nothing for 0.5 s" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_camera_that_sends_while_it_is_stopped_does_not_hold_up_the_end(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def blocked(*_: object) -> None:
        entered.set()
        await asyncio.sleep(3600)

    with http_camera() as source:
        changes = {"camera_url": f"{source.url}/stream", "camera_fps": 60.0}
        async with service(tmp_path, tiny_bundle, **changes) as edge:
            monkeypatch.setattr(edge, "take", blocked)
            running = asyncio.create_task(Camera(edge, edge.settings.all_cameras()[0]).run())
            await asyncio.wait_for(entered.wait(), 60)
            await asyncio.sleep(1.0)  # the pipe and its buffer fill
            running.cancel()
            done, _ = await asyncio.wait([running], timeout=20)
            assert done, "its pipe was not read to the end"


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
    assert await process.wait() == 1 and json.loads(out) == {"error": "No such file or directory"}
    assert b"s3cret" not in out + errors


def live(url: str, **changes: object) -> CaptureJob:
    return dataclasses.replace(job(Path("x"), live=True, **changes), url=url)


def until_it_breaks(what: CaptureJob) -> list[Shot]:
    found: list[Shot] = []
    with contextlib.suppress(av.error.FFmpegError):
        for shot in shots(what):
            found.append(shot)
    return found


def test_a_damaged_packet_is_skipped(tmp_path: Path) -> None:
    assert len(list(shots(job(DATA / "one_bad_frame.avi", fps=60.0)))) == 9
    with pytest.raises(av.error.FFmpegError):
        (tmp_path / "none.avi").write_bytes(b"RIFF" + bytes(5000))
        list(shots(job(tmp_path / "none.avi")))


async def test_a_file_with_a_damaged_frame_is_read_once(tmp_path: Path, tiny_bundle: Path) -> None:
    changes = {"camera_url": str(DATA / "one_bad_frame.avi"), "camera_fps": 60.0}
    async with service(tmp_path, tiny_bundle, **changes) as edge:
        source = Camera(edge, edge.settings.all_cameras()[0])
        await asyncio.wait_for(source.run(), 60)
        assert (source.status.state, source.status.taken, count(edge, "taken")) == ("ended", 9, 9)
        records = edge.spool.lease(20)
        assert {record.captured_from for record in records} == {CapturedFrom.FILE} and len(records) == 9


def test_a_rotated_video_comes_upright() -> None:
    rgb = next(shots(job(DATA / "rotated_90.mp4", fps=5.0))).rgb
    assert rgb.shape == (384, 256, 3)
    red = (rgb[:, :, 0] > 180) & (rgb[:, :, 1] < 90)
    assert red[10:60, 200:240].mean() > 0.9  # the square at the top left of the coded picture is at the top right


@pytest.mark.parametrize("stretch", [False, True])
def test_the_grey_levels_of_a_thermal_camera_are_spread_on_request(tmp_path: Path, stretch: bool) -> None:
    path = tmp_path / "thermal.mkv"
    levels = (20_000 + 500 * np.mgrid[:96, :128][1] / 127).astype(np.uint16)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "gray16le"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="gray16le")))
        out.mux(stream.encode(None))
    rgb = next(shots(job(path, stretch=stretch))).rgb
    assert rgb.shape == (96, 128, 3) and (np.ptp(rgb) > 250 if stretch else np.ptp(rgb) < 10)


@pytest.mark.parametrize(("aspect", "size"), [("2:1", (96, 256)), ("1:2", (192, 128)), ("1:1", (96, 128))])
def test_pixels_become_square(tmp_path: Path, aspect: str, size: tuple[int, int]) -> None:
    path = tmp_path / "anamorphic.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        across, down = map(int, aspect.split(":"))
        stream.codec_context.sample_aspect_ratio = Fraction(across, down)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 90, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    assert next(shots(job(path))).rgb.shape == (*size, 3)


@pytest.mark.parametrize("path", ["stream", "missing-first", "damaged"])
def test_motion_jpeg_as_cameras_send_it(path: str) -> None:
    with http_camera() as source:
        got = list(itertools.islice(shots(live(f"{source.url}/{path}", fps=60.0)), 12))
        assert source.hits[path] <= 2
    assert {shot.rgb.shape for shot in got} == {(120, 160, 3)}
    # Half a JPEG would have its lower part grey (128) and not 90.
    assert all(abs(float(shot.rgb[-20:].mean()) - 90) < 3 for shot in got)


def test_a_snapshot_url_is_asked_at_its_rate() -> None:
    with http_camera() as source:
        begin = time.monotonic()
        got = list(itertools.islice(shots(live(f"{source.url}/snap.jpg", fps=4.0)), 4))
        seconds = time.monotonic() - begin
        assert source.hits["snap.jpg"] == 4 and len(got) == 4
    assert seconds > 0.7


@pytest.mark.parametrize("path", ["snap.jpg", "stream"])
def test_a_picture_that_is_asked_for_comes_at_once_and_changes_no_pace(path: str) -> None:
    wanted = Wanted()
    with http_camera() as source:
        frames = shots(live(f"{source.url}/{path}", fps=0.01, motion=0.0), wanted=wanted)
        first = next(frames)
        assert not first.asked
        for number in (3, 4):
            wanted.ask(number)
            shot = next(frames)  # the one that is due would come in 100 seconds, and would not be `asked`
            assert shot.asked == number and shot.rgb.shape == first.rgb.shape
        assert not wanted.wait(0)
        frames.close()  # type: ignore[attr-defined]  # an iterator by its type, a generator in fact


def test_rate_and_motion_filter_continue_in_a_new_process() -> None:
    with http_camera() as source:
        first = next(shots(live(f"{source.url}/stream", fps=0.01)))
        # The next frame is due much later, whether or not the stream broke in between.
        again = live(f"{source.url}/ends", fps=0.01, pace=first.pace)
        assert until_it_breaks(again) == []
        still = dataclasses.replace(first.pace, due=0.001)
        url = f"{source.url}/snap.jpg"
        seen = next(shots(live(url, motion=0.01, pace=still)))
        assert seen.skipped == 0  # the picture has changed
        quiet = live(
            f"{source.url}/ends", motion=0.9, fps=60.0, pace=Pace(0.001, time.monotonic(), seen.pace.thumbnail)
        )
        assert until_it_breaks(quiet) == []


async def test_a_stream_that_breaks_often_sends_no_more_than_was_asked_for(tmp_path: Path, tiny_bundle: Path) -> None:
    with http_camera() as source:
        one = {"name": "gate", "url": f"{source.url}/ends", "fps": 0.2, "timeout_seconds": 5.0}
        async with service(tmp_path, tiny_bundle, cameras=[one]) as edge:
            gate = Camera(edge, edge.settings.all_cameras()[0])
            running = asyncio.create_task(gate.run())
            await until(lambda: source.hits["ends"] >= 3, 60)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert gate.status.taken == 1
            (record,) = edge.spool.lease(10)
            assert record.source_id == "mast-7/gate" and record.captured_from is CapturedFrom.CLOCK


@pytest.mark.parametrize("secret", ["se\\cret", "s%5Ccret", "p@ss'w\"rd", "päss wörd"])
async def test_a_password_is_in_no_log_however_it_is_written(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    caplog.set_level("DEBUG")
    changes = {"camera_url": f"rtsp://us:{secret}@127.0.0.1:1/x?token={secret}", "camera_timeout_seconds": 2.0}
    async with service(tmp_path, tiny_bundle, **changes) as edge:
        source = Camera(edge, edge.settings.all_cameras()[0])
        running = asyncio.create_task(source.run())
        await until(lambda: source.status.failures_in_a_row > 0, 60)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        written = caplog.text + repr(source.status) + repr(edge.settings)
        assert "Connection refused" in written
        for spelling in (secret, repr(secret)[1:-1], urllib.parse.quote(secret), urllib.parse.unquote(secret)):
            assert spelling not in written


def test_cameras_of_a_file_have_settings_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(
        """
        source_id = "mast"
        camera_url = "/dev/video0"
        [[cameras]]
        name = "gate"
        url = "rtsp://user:s3cret@10.0.0.7/1"
        fps = 0.1
        preset = "300B"
        [[cameras]]
        name = "quay"
        url = "http://10.0.0.8/snap.jpg"
        motion = 0.02
        source_id = "the quay"
        """
    )
    monkeypatch.setenv("AEIC_EDGE_CONFIG", str(file))
    found = EdgeSettings()
    assert [(c.name, c.fps, c.motion, c.source_id) for c in found.all_cameras()] == [
        ("camera", 1.0, 0.0, "mast"),
        ("gate", 0.1, 0.0, ""),
        ("quay", 1.0, 0.02, "the quay"),
    ]
    assert "s3cret" not in repr(found) + str(found.model_dump())
    file.write_text(file.read_text().replace('"quay"', '"gate"'))
    with pytest.raises(ValidationError, match="two sources are called gate"):
        EdgeSettings()
    good: dict[str, Any] = {"name": "gate", "url": "rtsp://user:s3cret@x"}
    for bad in ({"name": "Gate 1"}, {"colour": "red"}, {"fps": 0}, {"preset": "1MB"}):
        with pytest.raises(ValidationError) as caught:
            CameraSettings(**good | bad)
        assert "s3cret" not in readable(caught.value)


async def test_a_picture_taken_now_survives_the_capture_process(tmp_path: Path, tiny_bundle: Path) -> None:
    """Of a camera whose next frame is due much later; a second one after its process was killed."""
    with http_camera() as source:
        one = {"name": "gate", "url": f"{source.url}/snap.jpg", "fps": 0.01, "timeout_seconds": 30.0}
        async with service(tmp_path, tiny_bundle, cameras=[one]) as edge:
            gate = Camera(edge, edge.settings.cameras[0])
            assert gate.live and gate.source_id == "mast-7/gate"
            asked = asyncio.create_task(gate.picture_now())  # before there is a process
            running = asyncio.create_task(gate.run())
            try:
                assert (await asyncio.wait_for(asked, 30)).shape == (120, 160, 3)
                both = await asyncio.wait_for(asyncio.gather(gate.picture_now(), gate.picture_now()), 30)
                assert all(rgb.shape == (120, 160, 3) for rgb in both)
                assert gate._orders is not None and not gate._asked
                gate._orders.close()  # it leaves with its parent
                asked = asyncio.create_task(gate.picture_now())
                assert (await asyncio.wait_for(asked, 30)).shape == (120, 160, 3)
                assert gate.status.taken <= 1, "only the first one was due"
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    assert not Camera(edge, CameraSettings(name="file", url="/tmp/none.mp4")).live
