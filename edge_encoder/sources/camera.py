"""A camera, video file or stream as a source. A capture process delivers its frames, which are encoded and spooled.

    URL -> capture_process.py (own process: decode, frame rate, motion filter) -> pipe -> encode -> spool

A live source that breaks or delivers nothing for timeout_seconds is killed and reopened, without limit and with growing
pauses; frames that find the encode queue full are skipped and counted. A file is read once, to its end, and waits for
room in the queue; the ids of its frames derive from its name, modification time and their position, so that a restart
sends nothing twice. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import sys
from pathlib import Path

import numpy as np

from aeic.bitstream import MAX_SIDE
from aeic.errors import InputError
from aeic.identifiers import derived_id
from aeic_service.errors import Overloaded
from edge_encoder.backoff import Backoff
from edge_encoder.errors import SpoolError
from edge_encoder.service import EdgeService
from edge_encoder.settings import EdgeSettings
from edge_encoder.sources.capture_process import Job
from edge_encoder.submission.request import EncodeRequest

log = logging.getLogger("aeic.edge.camera")

_PAUSE_SECONDS = 0.2


class Camera:
    """The source that settings.camera_url names."""

    name = "camera"

    def __init__(self, service: EdgeService, settings: EdgeSettings) -> None:
        assert settings.camera_url is not None
        self._service = service
        url = settings.camera_url.get_secret_value()
        self._file = Path(url) if "://" not in url and not url.startswith("/dev/") else None
        self.may_end = self._file is not None
        self._timeout = settings.camera_timeout_seconds
        self._job = Job(
            url=url,
            fps=settings.camera_fps,
            motion=settings.camera_motion,
            still_seconds=settings.camera_still_seconds,
            timeout_seconds=self._timeout,
            live=self._file is None,
        )
        self._pauses = Backoff(settings.backoff_min_seconds, settings.backoff_max_seconds)

    async def run(self) -> None:
        """Until cancelled, or until a file has ended."""
        while True:
            try:
                await self._capture()
                if self._file is not None:
                    log.info("the video %s has ended", self._file.name)
                    return
                log.warning("the camera's stream ended; reopening it")
            except (OSError, EOFError, ValueError) as error:
                log.warning("the camera cannot be read: %s", str(error) or "it delivered nothing in time")
            await asyncio.sleep(self._pauses.pause())

    async def _capture(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_encoder.sources.capture_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin and process.stdout and process.stderr
        try:
            # Not an argument, since it may contain a password and every user can read a process's arguments.
            process.stdin.write(json.dumps(dataclasses.asdict(self._job)).encode() + b"\n")
            await process.stdin.drain()
            while True:
                line = await asyncio.wait_for(process.stdout.readline(), self._silence())
                if not line:
                    break
                await self._take(json.loads(line), process.stdout)
                self._pauses.reset()
            if await process.wait():
                raise EOFError((await process.stderr.read()).decode(errors="replace").strip()[-300:])
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _silence(self) -> float | None:
        """Seconds without data after which a live source counts as hung; None where there is no such limit."""
        if not self._job.live or (self._job.motion and not self._job.still_seconds):
            return None
        still = self._job.still_seconds if self._job.motion else 0.0
        return self._timeout + still + 2 / self._job.fps

    async def _take(self, head: dict[str, float], pixels: asyncio.StreamReader) -> None:
        width, height = int(head["width"]), int(head["height"])
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise ValueError(f"the source has frames of {width}x{height}: sides up to {MAX_SIDE} are accepted")
        count = self._service.metrics.camera_frames
        count.labels("still").inc(head["skipped"])
        raw = await asyncio.wait_for(pixels.readexactly(width * height * 3), self._timeout)
        rgb = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
        encode_request = EncodeRequest(
            captured_ms=int(head["seconds"] * 1000), source_id=self._service.settings.camera_source_id
        )
        if self._file is not None:
            encode_request = self._of_file(encode_request, self._file)
        while True:
            try:
                await self._service.take(rgb, encode_request)
                count.labels("taken").inc()
                return
            except InputError as error:
                log.warning("a frame of the camera was refused: %s", error)
                count.labels("refused").inc()
                return
            except (Overloaded, SpoolError) as error:
                if self._file is None:
                    count.labels("busy").inc()
                    return
                log.debug("the video waits: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _of_file(self, encode_request: EncodeRequest, file: Path) -> EncodeRequest:
        """The request for a frame of a video file: its time counts from the file's modification time, and its id is
        the same each time the file is read."""
        facts = file.stat()
        captured = facts.st_mtime_ns // 1_000_000 + encode_request.captured_ms
        name = f"{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{encode_request.captured_ms}"
        return dataclasses.replace(encode_request, captured_ms=captured, id=derived_id(captured, name.encode()))
