"""Reads a camera: `python -m edge_encoder.sources.capture_process`, started and supervised by camera.py.

It is a separate process because a read from a camera may never return and can only be killed. Decodes with PyAV (the
extra `edge-camera`): a video file, an RTSP or HTTP URL, or /dev/video0. Takes `fps` frames a second and skips those
without motion (motion.py). Frames are turned as their stream says and have square pixels. A packet that cannot be
decoded is skipped. A live source never waits: while the service is busy, the newest frame replaces the one that is
pending. A file waits, so that none of its frames is lost. An HTTP URL that delivers one picture and ends is a snapshot
URL: it is asked again when the next frame is due.

stdin: one line of JSON (CaptureJob), then `now NUMBER` for each picture that is asked for at once.

stdout: lines of JSON. {width, height, seconds, skipped, pace} is followed by the pixels, height * width * 3 bytes RGB;
`seconds` is the frame's time in a file, or the wall-clock time of its arrival. {width, height, seconds, asked} is the
same for the next frame after `now`, due or not; `asked` is the NUMBER, and the frame rate and the motion filter do not
count this frame.
{alive} says about once a second that a live source delivers. {error} is the last line when the source cannot be opened
or breaks; it never contains the URL, which may hold a password.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from aeic.bitstream import MAX_SIDE
from aeic.errors import remedy
from aeic.pixels import to_eight_bits, used_levels
from edge_encoder.sources.motion import CELLS, Motion

_ALIVE_SECONDS = 1.0
_LEAST_RATIO = 1 / 8
_MAX_DAMAGED_PACKETS = 64  # one after another
_DEEP_GREY = tuple(f"gray{bits}{order}" for bits in (9, 10, 12, 14, 16) for order in ("le", "be"))
_HTTP = ("http://", "https://")


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """Where the frame rate and the motion filter stand, so that a new process continues there: the monotonic times at
    which the next frame is `due` and at which the last was sent, and its thumbnail, base64 of (36, 64) uint8."""

    due: float = 0.0
    sent_at: float = 0.0
    thumbnail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureJob:
    """What to read and which frames to take. `live`: frames are dropped rather than delayed. `stretch`: the grey levels
    of frames with more than 8 bits are spread."""

    url: str
    fps: float
    motion: float
    still_seconds: float
    timeout_seconds: float
    live: bool
    pace: Pace = Pace()
    stretch: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """One frame: rgb (H, W, 3) uint8, its time in seconds, the number of frames skipped before it, and the pace after
    it. `asked` is the number of the request that it was taken for at once, 0 for a frame that was due."""

    rgb: NDArray[np.uint8]
    seconds: float
    skipped: int
    pace: Pace
    asked: int = 0


class Wanted:
    """The number of the latest picture that was asked for at once. Thread safe."""

    def __init__(self) -> None:
        self._number = 0
        self._changed = threading.Condition()

    def ask(self, number: int) -> None:
        """The next frame is wanted, and counts for this number and all before it."""
        with self._changed:
            self._number = number
            self._changed.notify_all()

    def take(self) -> int:
        """The number to answer with the frame at hand; 0 where none was asked for."""
        with self._changed:
            number, self._number = self._number, 0
        return number

    def wait(self, seconds: float) -> bool:
        """Whether a picture is asked for now or within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._number > 0, seconds)


def shots(job: CaptureJob, alive: Callable[[], None] = lambda: None, wanted: Wanted | None = None) -> Iterator[Shot]:
    """The frames worth sending, and those that are `wanted` at once. `alive` is called for every frame that arrives and
    while a snapshot is waited for. av.FFmpegError when the source cannot be opened or breaks."""
    wanted = wanted or Wanted()
    state = _State(job)
    while True:
        count = 0
        for frame, pixel_width in _frames(job):
            count += 1
            alive()
            if number := wanted.take():
                yield Shot(_upright(frame, pixel_width, job.stretch), time.time(), 0, Pace(), number)
            if (shot := state.take(frame, pixel_width)) is not None:
                yield shot
        if count != 1 or not job.url.startswith(_HTTP):
            return
        while (rest := state.due - time.monotonic()) > 0:
            alive()
            if wanted.wait(min(rest, _ALIVE_SECONDS)):
                break


class _State:
    """Which frames are due and new."""

    def __init__(self, job: CaptureJob) -> None:
        self.due = job.pace.due if job.live else 0.0
        self._job = job
        self._skipped = 0
        self._first = not self.due
        self._motion = Motion(job.motion, job.still_seconds)
        if job.live and job.pace.thumbnail:
            grey = np.frombuffer(base64.b64decode(job.pace.thumbnail), np.uint8).reshape(CELLS)
            self._motion.is_new(grey, job.pace.sent_at)

    def take(self, frame: Any, pixel_width: float) -> Shot | None:
        """The shot of a frame of PyAV, if it is due and new."""
        # Times of frames are their file's; those of a camera may jump.
        now = time.monotonic() if self._job.live else float(frame.time or 0.0)
        if not self._first and now < self.due - 1e-6:
            return None
        step = 1 / self._job.fps
        # Keeps the frame rate without falling behind.
        self.due = now + step if self._first else max(self.due + step, now + 0.5 * step)
        self._first = False
        grey: NDArray[Any] = frame.reformat(width=CELLS[1], height=CELLS[0], format="gray").to_ndarray()
        if not self._motion.is_new(grey, now):
            self._skipped += 1
            return None
        skipped, self._skipped = self._skipped, 0
        pace = Pace(self.due, now, base64.b64encode(np.ascontiguousarray(grey).tobytes()).decode())
        seconds = time.time() if self._job.live else now
        return Shot(_upright(frame, pixel_width, self._job.stretch), seconds, skipped, pace)


def _frames(job: CaptureJob) -> Iterator[tuple[Any, float]]:
    """Every frame of the source that can be decoded, and the width of its pixels, whose height is 1."""
    import av

    live_options = {"rtsp_transport": "tcp"} if job.url.startswith("rtsp") else {}
    form = "v4l2" if job.url.startswith("/dev/") else None
    with contextlib.ExitStack() as stack:
        try:
            opened = av.open(job.url, format=form, options=live_options, timeout=job.timeout_seconds)
        except av.error.InvalidDataError:
            if not job.url.startswith(_HTTP):
                raise
            # Motion JPEG without a first boundary, or with other boundaries than it says: a search for pictures.
            quick = {"probesize": "32768", "analyzeduration": "100000"}  # more would take as long as the timeout
            opened = av.open(job.url, format="mjpeg", options=quick, timeout=job.timeout_seconds)
        source = stack.enter_context(opened)
        stream = source.streams.video[0]
        stream.thread_type = "NONE"  # the other cores encode
        if stream.codec_context.name == "mjpeg":
            # Half a JPEG is no frame.
            stream.codec_context.options = {"err_detect": "explode"}
        count, damage = 0, None
        for packet in _packets(source, stream):
            try:
                decoded = packet.decode()
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:  # damaged on the way: the next one may be whole
                damage = error
                continue
            for frame in decoded:
                if not frame.is_corrupt:
                    count += 1
                    yield frame, _pixel_width(stream)
        if damage is not None and not count:
            raise damage


def _packets(source: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, behind damage too."""
    import av

    failures = 0
    while True:
        try:
            for packet in source.demux(stream):
                failures = 0
                yield packet
            return
        except av.error.InvalidDataError:
            failures += 1
            if failures > _MAX_DAMAGED_PACKETS:
                raise


def _pixel_width(stream: Any) -> float:
    ratio = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return ratio if _LEAST_RATIO <= ratio <= 1 / _LEAST_RATIO else 1.0


def _upright(frame: Any, pixel_width: float, stretch: bool) -> NDArray[np.uint8]:
    """(H, W, 3) RGB with square pixels, enlarged in one direction where they were not, and turned by quarters as the
    stream's display matrix says."""
    width = min(MAX_SIDE, round(frame.width * max(1.0, pixel_width)))
    height = min(MAX_SIDE, round(frame.height * max(1.0, 1 / pixel_width)))
    rgb: NDArray[np.uint8]
    if stretch and frame.format.name in _DEEP_GREY:
        grey = frame.to_ndarray(format="gray16le", width=width, height=height)
        levels = used_levels(np.bincount(grey.ravel(), minlength=65536))
        rgb = np.repeat(to_eight_bits(grey, levels)[:, :, None], 3, axis=2)
    else:
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(rgb, round(frame.rotation / 90))  # both count counter-clockwise


class _Newest:
    """Writes frames in a thread; a newer frame replaces a pending one. One that was asked for goes first."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._shot: Shot | None = None
        self._asked: Shot | None = None
        self._alive = False
        self._told = 0.0
        self._ready = threading.Condition()
        threading.Thread(target=self._loop, daemon=True).start()

    def put(self, shot: Shot) -> None:
        with self._ready:
            if shot.asked:
                self._asked = shot
            else:
                self._shot = shot
            self._ready.notify()

    def alive(self) -> None:
        """The source delivers."""
        if time.monotonic() - self._told >= _ALIVE_SECONDS:
            with self._ready:
                self._told = time.monotonic()
                self._alive = True
                self._ready.notify()

    def drain(self) -> None:
        """Waits until everything is written."""
        with self._ready:
            self._ready.wait_for(lambda: self._next() is None and not self._alive)

    def _next(self) -> Shot | None:
        return self._asked or self._shot

    def _loop(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._next() is not None or self._alive)
                shot = self._next()
            try:
                if shot is None:
                    _write_line(self._out, {"alive": True})
                else:
                    write(self._out, shot)
            except OSError:
                os._exit(1)
            with self._ready:
                self._alive = False
                if self._shot is shot:
                    self._shot = None
                if self._asked is shot:
                    self._asked = None
                self._ready.notify()


def write(out: BinaryIO, shot: Shot) -> None:
    """Writes the header line and the pixels of one frame."""
    height, width, _ = shot.rgb.shape
    head: dict[str, Any] = {"width": width, "height": height, "seconds": shot.seconds}
    if shot.asked:
        head["asked"] = shot.asked
    else:
        head |= {"skipped": shot.skipped, "pace": dataclasses.asdict(shot.pace)}
    _write_line(out, head, np.ascontiguousarray(shot.rgb).data)


def _write_line(out: BinaryIO, line: dict[str, Any], pixels: memoryview | None = None) -> None:
    out.write(json.dumps(line).encode() + b"\n")
    if pixels is not None:
        out.write(pixels)
    out.flush()


def _listen(wanted: Wanted) -> None:
    """Reads what the service asks for, and leaves with it."""
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "now" and number.isdigit():
            wanted.ask(int(number))
    os._exit(1)


def cause(error: Exception) -> str:
    """What is wrong, without the URL: FFmpeg's errors quote it in its several spellings."""
    if isinstance(error, ImportError):
        return f"PyAV is not installed: {remedy('edge-camera')}"
    if isinstance(error, IndexError):
        return "it has no video stream"
    name = type(error).__name__
    if name == "ExitError":  # of FFmpeg's reader, when its time is over
        return "it delivered nothing in time"
    return getattr(error, "strerror", None) or name


def main() -> int:
    """Reads the job, writes frames until the source ends."""
    values: dict[str, Any] = json.loads(sys.stdin.readline())
    job = CaptureJob(**{**values, "pace": Pace(**values.get("pace", {}))})
    wanted = Wanted()
    threading.Thread(target=_listen, args=(wanted,), daemon=True).start()
    out = sys.stdout.buffer
    newest = _Newest(out) if job.live else None
    code, problem = 0, ""
    try:
        for shot in shots(job, newest.alive if newest is not None else lambda: None, wanted):
            if newest is not None:
                newest.put(shot)
            else:
                write(out, shot)
    except Exception as error:  # the errors of FFmpeg's readers have no narrower common base
        code, problem = 1, cause(error)
    with contextlib.suppress(OSError):
        if newest is not None:
            newest.drain()
        if code:
            _write_line(out, {"error": problem})
    return code


if __name__ == "__main__":
    sys.exit(main())
