"""A camera, video file or stream as a source. A capture process delivers its frames, which are encoded and spooled.

    URL -> capture_process.py (own process: decode, frame rate, motion filter) -> pipe -> encode -> spool

A live source that breaks or delivers nothing for timeout_seconds is killed and reopened, without limit and with
exponential backoff; the frame rate and the motion filter continue where they were. Frames that find the encode queue
full are skipped and counted. A file is read once, to its end or to where it cannot be read, and waits for room in the
queue; the ids of its frames derive from its name, modification time and their position, so that a restart sends nothing
twice. Independent of HTTP.

A live source also takes a picture at once, for a request of the cloud (answers/answerer.py): Camera.picture_now.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MAX_SIDE
from aeic.errors import InputError, RateError
from aeic.identifiers import derived_id
from aeic_service.backoff import Backoff
from aeic_service.errors import Overloaded
from edge_encoder.errors import SpoolError
from edge_encoder.service import EdgeService
from edge_encoder.source_settings import CameraSettings
from edge_encoder.source_status import SourceStatus
from edge_encoder.sources.capture_process import CaptureJob, Pace
from edge_encoder.spool.record import CapturedFrom
from edge_encoder.submission.request import EncodeRequest

log = logging.getLogger("aeic.edge.camera")

_PAUSE_SECONDS = 0.2
_START_SECONDS = 15.0  # for the capture process itself, on a slow and busy box
_STABLE_SECONDS = 30.0  # a stream that lasted for this long is reopened after the shortest pause again
_LINE_BYTES = 1 << 16


class Camera:
    """One camera. `run()` until it is cancelled, or a file has ended."""

    def __init__(self, service: EdgeService, settings: CameraSettings) -> None:
        self.name = settings.name
        self.status = SourceStatus(settings.name, "camera")
        self._service = service
        self._settings = settings
        self._request = EncodeRequest.of_source(settings, service.settings.source_id)
        url = settings.url.get_secret_value()
        self._file = Path(url) if "://" not in url and not url.startswith("/dev/") else None
        self.may_end = self._file is not None
        self._job = CaptureJob(
            url=url,
            fps=settings.fps,
            motion=settings.motion,
            still_seconds=settings.still_seconds,
            timeout_seconds=settings.timeout_seconds,
            live=self._file is None,
            stretch=service.settings.stretch if settings.stretch is None else settings.stretch,
        )
        self._pace = Pace()
        self._delivered = False  # the present capture process has sent a line
        self._asked: dict[int, asyncio.Future[NDArray[np.uint8]]] = {}  # pictures to take at once, by a running number
        self._numbers = itertools.count(1)
        self._orders: asyncio.StreamWriter | None = None  # stdin of the present capture process
        box = service.settings
        self._pauses = Backoff(box.backoff_min_seconds, box.backoff_max_seconds)

    @property
    def source_id(self) -> str:
        """Its name in the cloud."""
        return self._request.source_id

    @property
    def live(self) -> bool:
        """Whether it can take a picture at once: it is no video file."""
        return self._job.live

    async def picture_now(self) -> NDArray[np.uint8]:
        """A picture (H, W, 3) RGB that is taken from now on, whatever the frame rate and the motion filter say. While
        the camera is down, this waits."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._order()
            return await self._asked[number]
        finally:
            del self._asked[number]

    def _order(self) -> None:
        """Has the capture process take the pictures that were asked for; the next one does it if this one has died."""
        if self._asked and self._orders is not None:
            self._orders.write(b"now %d\n" % max(self._asked))

    async def run(self) -> None:
        """Until cancelled, or until a file has ended."""
        while True:
            begin = time.monotonic()
            try:
                await self._capture()
                problem = "" if self._file is not None else "its stream ended"
            except (OSError, EOFError, ValueError) as error:
                problem = str(error) or "it delivered nothing in time"
            if self._file is not None and (self._delivered or not problem):
                log.info("camera %s: the video has ended%s", self.name, f" early: {problem}" if problem else "")
                self.status.set("ended", problem)
                return
            self.status.failures_in_a_row += 1
            if self.status.set("down", problem):
                log.warning("camera %s: %s; it is opened again", self.name, problem)
            if time.monotonic() - begin > _STABLE_SECONDS:
                self._pauses.reset()
            await asyncio.sleep(self._pauses.pause())

    async def _capture(self) -> None:
        self._delivered = False
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_encoder.sources.capture_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # of FFmpeg's libraries, which may quote the URL
            limit=_LINE_BYTES,
        )
        assert process.stdin and process.stdout
        try:
            # Not an argument, since it may contain a password and every user can read a process's arguments.
            job = dataclasses.replace(self._job, pace=self._pace)
            process.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            await process.stdin.drain()
            self._orders = process.stdin
            self._order()
            while True:
                line = await asyncio.wait_for(process.stdout.readline(), self._silence())
                if not line:
                    break
                head = json.loads(line)
                if "error" in head:
                    raise EOFError(head["error"])
                self._delivered = True
                self._up()
                if "alive" not in head:
                    await self._take(head, process.stdout)
            if code := await process.wait():
                raise EOFError(f"the capture process ended with {code}")
        except TimeoutError:
            raise EOFError(f"it delivered nothing for {self._settings.timeout_seconds:g} s") from None
        finally:
            self._orders = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            while await process.stdout.read(_LINE_BYTES):
                pass  # wait() returns only when the pipe has been read to its end
            await process.wait()

    def _up(self) -> None:
        self.status.failures_in_a_row = 0
        if self.status.set("up"):
            log.info("camera %s delivers", self.name)

    def _silence(self) -> float | None:
        """Seconds without a line after which a live source counts as hung; None for a file."""
        if not self._job.live:
            return None
        return self._settings.timeout_seconds + (0.0 if self._delivered else _START_SECONDS)

    async def _take(self, head: dict[str, Any], pixels: asyncio.StreamReader) -> None:
        width, height = int(head["width"]), int(head["height"])
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise ValueError(f"the source has frames of {width}x{height}: sides up to {MAX_SIDE} are accepted")
        raw = await asyncio.wait_for(pixels.readexactly(width * height * 3), self._settings.timeout_seconds)
        rgb = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
        if "asked" in head:
            for number, future in self._asked.items():
                if number <= head["asked"] and not future.done():
                    future.set_result(rgb)
            return
        self._count("still", head["skipped"])
        if "pace" in head:
            self._pace = Pace(**head["pace"])
        encode_request = dataclasses.replace(
            self._request,
            captured_ms=int(head["seconds"] * 1000),
            captured_from=CapturedFrom.CLOCK,
            stretch=None,  # the capture process has done it
        )
        if self._file is not None:
            encode_request = self._of_file(encode_request, self._file)
        while True:
            try:
                await self._service.take(rgb, encode_request)
                self._count("taken")
                self.status.took()
                return
            except (InputError, RateError) as error:
                log.warning("camera %s: a frame was refused: %s", self.name, error)
                self._count("refused")
                self.status.refused += 1
                return
            except (Overloaded, SpoolError) as error:
                if self._file is None:
                    self._count("busy")
                    return
                log.debug("camera %s: the video waits: %s", self.name, error)
                await asyncio.sleep(_PAUSE_SECONDS)

    def _count(self, outcome: str, frames: int = 1) -> None:
        self._service.metrics.camera_frames.labels(outcome).inc(frames)
        self._service.metrics.source_frames.labels(self.name, outcome).inc(frames)

    def _of_file(self, encode_request: EncodeRequest, file: Path) -> EncodeRequest:
        """The request for a frame of a video file: its time counts from the file's modification time, and its id is
        the same each time the file is read."""
        facts = file.stat()
        captured = facts.st_mtime_ns // 1_000_000 + encode_request.captured_ms
        name = f"{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{encode_request.captured_ms}"
        return dataclasses.replace(
            encode_request,
            captured_ms=captured,
            captured_from=CapturedFrom.FILE,
            id=derived_id(captured, name.encode(errors="surrogateescape")),
        )
