"""Reads picture files, those of risky formats in a separate process that can be killed.

::

    service                                          child: python -m edge_encoder.encoding.picture_process
    +---------------+   a line of JSON, and a file    +----------------+
    | PictureReader | ------------------------------> | PictureProcess |
    |               | <------------------------------ |                |
    +---------------+   a line of JSON                +----------------+
            picture file  ->  anonymous file in memory  ->  pixels in its place

A crash of a library, a picture that takes too long or needs too much memory costs the child and that picture:
`PictureReaderLost`. Children start when they are first needed, are kept for the next pictures, and end when they are
idle. An ordinary JPEG is read in the service: with one scan its cost is linear, and its library is the most tried one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from aeic import errors
from aeic.bitstream import MAX_SIDE
from aeic.errors import InputError
from aeic.picture_files import headers
from aeic.picture_files.headers import JPEG, PNG
from aeic.pixels import Pixels, load_picture, parse_exif, picture_exif, picture_size
from edge_encoder.encoding import PictureProcessChoice
from edge_encoder.encoding.picture_process import HEAD_SECONDS, read_seconds
from edge_encoder.errors import PictureReaderLost, ReaderUnavailable

log = logging.getLogger("aeic.edge.pictures")

COMMAND = (sys.executable, "-P", "-m", "edge_encoder.encoding.picture_process")
"""-P: no module is taken from the folder in which the service was started; it may hold the files of others."""
START_SECONDS = 60.0
"""A box with a slow card that has just started takes ten seconds."""
IDLE_SECONDS = 60.0
"""After which a child that has nothing to do is ended."""
LARGE_PIXELS = 4 << 20
"""A larger picture needs the memory of idle children for its analysis, and comes rarely: they end."""
_LEAST_SHARE = 0.2
"""Of the time since it was asked, which a process that was not stopped has run. One of a busy box gets more."""
REASONS = ("crash", "deadline", "memory")
_REMEDY = "save it again as an ordinary JPEG and send that"


class ReadingCost(NamedTuple):
    """What the encode queue needs to know of a picture before it is read."""

    pixels: int
    apart: bool
    """Read in a separate process."""


class PictureReader:
    """Reads picture files. Thread safe.

    `choice`: the files that are read in a child. `auto`: all but JPEG of one scan; `always`: all; `never`: none, which
    needs no `close()`. At most `at_once` children read pixels at the same time; further callers wait. One more reads
    sizes and one EXIF, so that what takes a moment does not wait for what may take minutes. A picture may take
    `most_bytes` of memory. `lost` is called with one of REASONS for each picture that cost a child. `command` starts a
    child.
    """

    def __init__(
        self,
        choice: PictureProcessChoice = "never",
        at_once: int = 1,
        most_bytes: int = sys.maxsize,
        lost: Callable[[str], None] = lambda reason: None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.command = command
        self._choice = choice
        self._most_bytes = most_bytes
        self._lost = lost
        self._places = {
            do: threading.BoundedSemaphore(most) for do, most in (("pixels", at_once), ("size", 1), ("exif", 1))
        }
        self._lock = threading.Lock()
        self._idle: list[_Child] = []  # the one that was used last is the last one
        self._busy: set[_Child] = set()
        self._closed = False
        # Heads have a thread of their own: one that takes long must not use up the threads of the loop.
        self._heads = ThreadPoolExecutor(1, "picture-heads")
        # In the service, reading takes seven bytes a pixel, up to 470 MB, so one picture is read at a time.
        self._reading = threading.Lock()

    @property
    def pids(self) -> set[int]:
        """The process ids of the children."""
        with self._lock:
            return {child.process.pid for child in (*self._idle, *self._busy)}

    def load(self, data: bytes, *, max_pixels: int, stretch: bool = False) -> Pixels:
        """aeic.pixels.load_picture. Also PictureReaderLost if a child was lost, ReaderUnavailable if none starts."""
        if not self._is_apart(data):
            with self._reading:
                rgb = load_picture(data, max_pixels=max_pixels, stretch=stretch)
        else:
            answer, pixels = self._ask({"do": "pixels", "max_pixels": max_pixels, "stretch": stretch}, data)
            rgb = np.ndarray(tuple(answer["shape"]), np.uint8, buffer=pixels)
        if rgb.shape[0] * rgb.shape[1] > LARGE_PIXELS:
            self._end_idle(0.0)
        return rgb

    def size(self, data: bytes, *, max_pixels: int) -> tuple[int, int]:
        """aeic.pixels.picture_size. Also raises what `load` does."""
        if not self._has_foreign_head(data):
            return picture_size(data, max_pixels=max_pixels)
        width, height = self._ask({"do": "size", "max_pixels": max_pixels}, data)[0]["size"]
        return width, height

    async def size_in_turn(self, data: bytes, *, max_pixels: int) -> tuple[int, int]:
        """The same from the loop, in another thread."""
        import asyncio  # the command line has no loop, and loading it takes time

        if not self._has_foreign_head(data):
            return await asyncio.to_thread(picture_size, data, max_pixels=max_pixels)
        with self._lock:
            self._check_open()
            asked = self._heads.submit(self.size, data, max_pixels=max_pixels)
        return await asyncio.wrap_future(asked)

    async def cost_in_turn(self, data: bytes, *, max_pixels: int) -> ReadingCost:
        """What `load` will cost, from the loop. Raises what `size` does."""
        import asyncio  # as in `size_in_turn`

        width, height = await self.size_in_turn(data, max_pixels=max_pixels)
        return ReadingCost(width * height, await asyncio.to_thread(self._is_apart, data))

    def exif(self, data: bytes) -> Image.Exif:
        """aeic.pixels.picture_exif. Also raises what `load` does."""
        if not self._has_foreign_head(data):
            return picture_exif(data)
        answer, block = self._ask({"do": "exif", "max_pixels": MAX_SIDE * MAX_SIDE}, data)
        return parse_exif(b"" if block is None else block[: answer["bytes"]])

    def expire(self) -> None:
        """Ends the children that have been idle for IDLE_SECONDS. Call it now and then."""
        self._end_idle(IDLE_SECONDS)

    def close(self) -> None:
        """Ends all children. Pictures that are being read get ReaderUnavailable."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for child in (*busy, *idle):
            child.process.kill()  # of a busy one, the thread that waits for it does the rest
        for child in idle:
            child.end()
        self._heads.shutdown(wait=False)

    def _check_open(self) -> None:
        if self._closed:
            raise ReaderUnavailable("the service is stopping: try again in a moment", retry_after=1.0)

    def _end_idle(self, seconds: float) -> None:
        """Ends the children that have been idle for so long."""
        before = time.monotonic() - seconds
        with self._lock:
            ended = [child for child in self._idle if child.idle_since <= before]
            self._idle = [child for child in self._idle if child.idle_since > before]
        for child in ended:
            child.process.kill()
            child.end()

    def _is_apart(self, data: bytes) -> bool:
        """Whether the file is read in a child. What is no picture is refused without a library's help."""
        if self._choice != "auto":
            return self._choice == "always"
        if data.startswith(JPEG):
            try:
                return headers.read_jpeg(data).scans > 1
            except ValueError:
                return False
        return data.startswith(PNG) or self._has_foreign_head(data)

    def _has_foreign_head(self, data: bytes) -> bool:
        """Whether a library in C or C++ reads the head too. Those of JPEG and PNG are read in Python."""
        return self._choice != "never" and (data.startswith(b"RIFF") or headers.kind(data) in ("AVIF", "HEIF"))

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], mmap.mmap | None]:
        """The last answer, and what is in the file then."""
        request = {**request, "most_bytes": self._most_bytes}
        with self._places[request["do"]]:
            for attempt in range(2):
                child = self._take()
                code: int | None = None
                try:
                    with _file_of(data) as file:
                        answer = child.ask(request, file)
                        if "failed" not in answer:
                            size = os.fstat(file).st_size
                            content = mmap.mmap(file, size) if size else None
                            self._give_back(child)
                            return answer, content
                except TimeoutError:
                    if child.was_stopped() and attempt == 0:
                        self._discard(child)
                        continue
                    answer = {"failed": "deadline"}
                except (EOFError, ConnectionError):
                    code = self._discard(child)
                    if not self._closed and _killed_from_outside(code) and attempt == 0:
                        continue
                    answer = {"failed": "deadline" if -code == signal.SIGALRM else "crash"}
                except OSError as error:
                    self._discard(child)
                    raise ReaderUnavailable(_unavailable(error), retry_after=1.0) from error
                except BaseException:
                    self._discard(child)
                    raise
                if self._closed:
                    self._discard(child)
                self._check_open()
                failed = answer["failed"]
                kind = getattr(errors, failed, None)
                if isinstance(kind, type) and issubclass(kind, InputError):
                    self._give_back(child)
                    raise kind(answer["what"])
                if failed == "machine":
                    self._discard(child)
                    raise ReaderUnavailable(_unavailable(answer["what"]), retry_after=1.0)
                raise self._refused(failed, child, self._discard(child) if code is None else code)
        raise AssertionError("the second attempt always ends")

    def _refused(self, reason: str, child: _Child, code: int) -> PictureReaderLost:
        """The error for a picture that has cost a child, logged and counted."""
        how = f"signal {-code}" if code < 0 else f"status {code}"
        words = {
            "crash": f"the process that read the picture crashed ({how})",
            "deadline": "the picture took too long to read",
            "memory": "reading the picture took more memory than its size allows",
        }
        self._lost(reason)
        log.warning("a picture is refused: %s; its process %d was ended", words[reason], child.process.pid)
        return PictureReaderLost(f"{words[reason]}: {_REMEDY}")

    def _take(self) -> _Child:
        """A child that waits for a request, now one of the busy ones."""
        while True:
            with self._lock:
                self._check_open()
                child = self._idle.pop() if self._idle else None
                if child is not None:
                    self._busy.add(child)
            if child is None:
                return self._start()
            if child.process.poll() is None:
                return child
            self._discard(child)  # it was killed between two pictures

    def _start(self) -> _Child:
        try:
            child = _Child(self.command)
        except OSError as error:
            raise ReaderUnavailable(_unavailable(error), retry_after=1.0) from error
        with self._lock:
            self._busy.add(child)
            if self._closed:
                child.process.kill()
        try:
            child.receive(START_SECONDS)
        except (OSError, EOFError) as error:
            code = self._discard(child)
            raise ReaderUnavailable(_unavailable(f"it ended with {code}"), retry_after=1.0) from error
        return child

    def _give_back(self, child: _Child) -> None:
        child.idle_since = time.monotonic()
        with self._lock:
            self._busy.discard(child)
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _discard(self, child: _Child) -> int:
        """Ends a child, and returns its exit code."""
        code = child.end()
        with self._lock:
            self._busy.discard(child)
        return code


class _Child:
    """One process and the socket to it. OSError if it cannot be started."""

    def __init__(self, command: Sequence[str]) -> None:
        self.idle_since = 0.0
        self._asked_at = (0.0, 0.0)  # monotonic seconds, and seconds of the processor
        self._buffer = b""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as opened, theirs:
            opened.callback(ours.close)
            # Without the settings, among which are secrets. One thread is enough for what numpy does there.
            environment = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
            source = str(Path(__file__).parents[2])
            paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the service prints one line of JSON there, for programs
                env=environment | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches the service only, which drains first
            )
            opened.pop_all()
        self._line = ours

    def ask(self, request: dict[str, Any], file: int) -> dict[str, Any]:
        """The last answer to a request about a file. TimeoutError, or EOFError or ConnectionError when it has ended."""
        self._asked_at = (time.monotonic(), _processor_seconds(self.process.pid))
        self._line.settimeout(HEAD_SECONDS)
        socket.send_fds(self._line, [json.dumps(request).encode()], [file])
        answer = self.receive(HEAD_SECONDS)
        if request["do"] == "pixels" and "size" in answer:
            width, height = answer["size"]
            answer = self.receive(read_seconds(width * height))
        return answer

    def was_stopped(self) -> bool:
        """Whether it has hardly run since it was asked: it was stopped, or the machine was, or it had to swap. A
        picture that takes too long keeps its process busy."""
        began, used = self._asked_at
        return _processor_seconds(self.process.pid) - used < _LEAST_SHARE * (time.monotonic() - began)

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message; errors as above."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._line.settimeout(max(0.001, end - time.monotonic()))
            got = self._line.recv(65536)
            if not got:
                raise EOFError("the process has ended")
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def end(self) -> int:
        """Ends the process and returns its exit code; a crash may take a moment to show."""
        self._line.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(0.2)
        self.process.kill()
        return self.process.wait()


def _killed_from_outside(code: int) -> bool:
    """Whether it did not crash, but was ended, for example by the system when the memory was used up."""
    return -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def _processor_seconds(pid: int) -> float:
    """What a process has used of the processor until now; infinity where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime of proc(5)
    except (OSError, ValueError, IndexError):
        return math.inf


def _unavailable(why: object) -> str:
    return (
        f"the process that reads pictures does not start or work ({why}): raise the limits on memory,"
        " processes or open files, or set AEIC_EDGE_PICTURE_PROCESS=never"
    )


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[int]:
    """A file without a name that holds `data`, in memory where the system supports that."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("aeic-picture")
            stack.callback(os.close, file)
        else:
            file = stack.enter_context(tempfile.TemporaryFile()).fileno()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        yield file
