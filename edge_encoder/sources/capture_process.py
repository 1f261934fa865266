"""Reads a camera: `python -m edge_encoder.sources.capture_process`, started and supervised by camera.py.

It is a separate process because a read from a camera may never return and can only be killed. Decodes with PyAV (the
extra `edge-camera`): a video file, an RTSP or HTTP URL, or /dev/video0. Takes `fps` frames a second and skips those
without motion (motion.py). A live source never waits: while the service is busy, the newest frame replaces the one
that is pending. A file waits, so that none of its frames is lost.

stdin: one line of JSON (Job). stdout, for each frame: a line of JSON {width, height, seconds, skipped}, then the
pixels, height * width * 3 bytes RGB. `seconds` is the frame's time in a file, or the wall-clock time of its arrival.
Exits with 0 at the end of a file, otherwise with 1 and a line on stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from aeic_service.redact import without_secrets
from edge_encoder.sources.motion import CELLS, Motion


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What to read and which frames to take. `live`: frames are dropped rather than delayed."""

    url: str
    fps: float
    motion: float
    still_seconds: float
    timeout_seconds: float
    live: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """One frame: rgb (H, W, 3) uint8, its time in seconds, and the number of frames skipped before it."""

    rgb: NDArray[np.uint8]
    seconds: float
    skipped: int


def shots(job: Job) -> Iterator[Shot]:
    """The frames worth sending. av.FFmpegError when the source cannot be opened or breaks."""
    import av

    options = {"rtsp_transport": "tcp"} if job.url.startswith("rtsp") else {}
    form = "v4l2" if job.url.startswith("/dev/") else None
    motion, due, skipped = Motion(job.motion, job.still_seconds), None, 0
    with av.open(job.url, format=form, options=options, timeout=job.timeout_seconds) as source:
        stream = source.streams.video[0]
        stream.thread_type = "NONE"  # the other cores encode
        for frame in source.decode(stream):
            seconds = time.time() if job.live else float(frame.time or 0.0)
            if due is not None and seconds < due - 1e-6:
                continue
            # Keeps the frame rate without falling behind.
            due = seconds + 1 / job.fps if due is None else max(due + 1 / job.fps, seconds + 0.5 / job.fps)
            grey: NDArray[Any] = frame.reformat(width=CELLS[1], height=CELLS[0], format="gray").to_ndarray()
            if not motion.is_new(grey, seconds):
                skipped += 1
                continue
            rgb: NDArray[Any] = frame.to_ndarray(format="rgb24")
            yield Shot(rgb, seconds, skipped)
            skipped = 0


class _Newest:
    """Writes frames in a thread; a newer frame replaces a pending one."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._shot: Shot | None = None
        self._ready = threading.Condition()
        threading.Thread(target=self._loop, daemon=True).start()

    def put(self, shot: Shot) -> None:
        with self._ready:
            self._shot = shot
            self._ready.notify()

    def _loop(self) -> None:
        while True:
            with self._ready:
                while self._shot is None:
                    self._ready.wait()
                shot, self._shot = self._shot, None
            try:
                write(self._out, shot)
            except OSError:
                os._exit(1)


def write(out: BinaryIO, shot: Shot) -> None:
    """Writes the header line and the pixels of one frame."""
    height, width, _ = shot.rgb.shape
    head = {"width": width, "height": height, "seconds": shot.seconds, "skipped": shot.skipped}
    out.write(json.dumps(head).encode() + b"\n")
    out.write(np.ascontiguousarray(shot.rgb).data)
    out.flush()


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Reads the job, writes frames until the source ends."""
    values: dict[str, Any] = json.loads(sys.stdin.readline())
    job = Job(**values)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    out = sys.stdout.buffer
    try:
        newest = _Newest(out) if job.live else None
        for shot in shots(job):
            if newest is not None:
                newest.put(shot)
            else:
                write(out, shot)
    except ImportError:
        print('PyAV is missing: pip install "aeic[edge-camera]"', file=sys.stderr)
        return 1
    except Exception as error:  # the errors of FFmpeg's readers have no narrower common base
        # Never the URL: it may hold a password.
        print(without_secrets(str(error), job.url), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
