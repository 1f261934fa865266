"""The generator in a process of its own. When that process dies, or has to be killed, the service starts another one.

::

    service                                         child: python -m cloud_decoder.inference.subprocess_child
    +---------------------+   control (socket)    +--------------------+
    | SubprocessGenerator | -- {"shape": ...} --> | the real generator |     one line of JSON each way
    |                     | <- {"shape": ...} --- |                    |
    +---------------------+                       +--------------------+
         latents  ->  inbox, shared memory  ->   pictures  ->  outbox, shared memory

Latents are float32, pictures float32 or uint8; each is copied once on each side of the child. The child ends when its
control socket closes, so it never outlives the service. What becomes of the frames of a lost batch is decided in
cloud_decoder/worker/pipeline.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.errors import BundleError
from cloud_decoder.errors import DecoderDied, DeviceOutOfMemory, DeviceUnavailable
from cloud_decoder.inference.backend import GeneratorBackend

log = logging.getLogger(__name__)

START_SECONDS = 600.0
"""Enough for a large model on a slow disk."""
STARTS = 3
"""Attempts at starting before :class:`DeviceUnavailable`."""


class GeneratorFailure(Exception):
    """The generator raised an exception of the class named ``kind``."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


def is_sticky(text: str) -> bool:
    """Whether an error with this text leaves a process in which every later CUDA call fails too."""
    return "CUDA error" in text


class SharedBuffer:
    """An array in memory that two processes share; one of them writes. It grows and never shrinks."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _anonymous_file() if fd is None else fd
        self._map: mmap.mmap | None = None

    def write(self, array: NDArray[Any]) -> None:
        """Copy ``array`` into the buffer. The reader gets its shape and dtype over the control socket."""
        if os.fstat(self.fd).st_size < array.nbytes:
            os.ftruncate(self.fd, array.nbytes)
        np.copyto(self.view(array.shape, array.dtype), array)

    def view(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """The contents as an array of that shape; valid until the next write."""
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)  # the old one goes with its last view
        return np.ndarray(shape, dtype, buffer=self._map)

    def close(self) -> None:
        """Close the file; views stay valid."""
        os.close(self.fd)


class Control:
    """Messages between the two processes: lines of JSON over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. ``OSError`` where the other process is gone."""
        self._end.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next message; None where the other process is gone. ``TimeoutError`` after ``seconds``."""
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._end.settimeout(None if end is None else max(0.001, end - time.monotonic()))
            try:
                got = self._end.recv(65536)
            except ConnectionError:
                return None
            if not got:
                return None
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """Close the socket, which ends the child."""
        self._end.close()


class SubprocessGenerator(GeneratorBackend):
    """The generator of the bundle in the folder ``bundle``, in a child process that starts at once.

    A child that does not answer within ``batch_seconds`` is killed. ``BundleError`` for a bundle that cannot be loaded,
    ``DeviceUnavailable`` where no child starts, ``DecoderDied`` where the child is lost during a call,
    ``DeviceOutOfMemory`` and :class:`GeneratorFailure` for what the generator raised.
    """

    def __init__(self, bundle: Path, device: str, threads: int, *, batch_seconds: float = 120.0) -> None:
        self._arguments = {"bundle": str(bundle.resolve()), "device": device, "threads": threads}
        self._batch_seconds = batch_seconds
        self._max_batch = 1
        self._child: subprocess.Popen[bytes] | None = None
        self._parts: dict[str, float] = {}
        self._memory: dict[str, int] = {}
        self._runtime = ""
        self._start()

    @property
    def runtime(self) -> str:
        """The library that computes in the child and what it multiplies in; known once it is warm."""
        return self._runtime

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the last batch by part of the network."""
        return self._parts

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of device memory by kind after the last batch."""
        return self._memory

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._child is None else self._child.pid

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32, valid until the next call."""
        return self._run(y_hat, np.float32)

    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(N, M, h, w) float32 -> (N, 32 h, 32 w, 3) uint8, valid until the next call."""
        return self._run(y_hat, np.uint8)

    def _run(self, y_hat: NDArray[np.float32], dtype: type[Any]) -> NDArray[Any]:
        self._ensure()
        self._inbox.write(y_hat)
        answer = self._ask({"shape": y_hat.shape, "pictures": dtype is np.uint8}, self._batch_seconds)
        self._parts, self._memory = answer.get("parts", {}), answer.get("memory", {})
        return self._outbox.view(tuple(answer["shape"]), dtype)

    def warm_up(self, max_batch: int) -> None:
        """Warm the generator up. A child that replaces this one is warmed up in the same way."""
        self._max_batch = max_batch
        self._ensure()
        self._warm_up()

    def _warm_up(self) -> None:
        self._runtime = self._ask({"warm_up": self._max_batch}, START_SECONDS)["runtime"]

    def close(self) -> None:
        """End the child process."""
        if self._child is None:
            return
        self._control.close()  # the child then exits, unless it hangs
        try:
            self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None
        self._inbox.close()
        self._outbox.close()

    def _ensure(self) -> None:
        if self._child is None:
            self._start()
            self._warm_up()

    def _start(self) -> None:
        for attempt in range(STARTS):
            try:
                self._spawn()
                self._ask(self._arguments, START_SECONDS)
                return
            except GeneratorFailure as error:
                self.close()
                raise DeviceUnavailable(str(error)) from error
            except (DecoderDied, OSError) as error:
                log.error("the decoder's process did not start (%s)", error)
                time.sleep(0.2 * 2**attempt)
        raise DeviceUnavailable(f"the decoder's process did not start {STARTS} times: its messages are in the log")

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._control, self._inbox, self._outbox = Control(ours), SharedBuffer(), SharedBuffer()
        fds = (theirs.fileno(), self._inbox.fd, self._outbox.fd)
        source = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cloud_decoder.inference.subprocess_child", *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the service prints one line of JSON there, for programs
                env=os.environ | {"PYTHONPATH": paths},
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C reaches the service only, which drains first
            )
        finally:
            theirs.close()

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self._control.send(message)
            answer = self._control.receive(seconds)
        except TimeoutError:
            answer = None
            log.error("the decoder's process has not answered for %g s and is killed", seconds)
        except OSError:
            answer = None
        if answer is None:
            raise DecoderDied(f"the decoder's process was lost ({self._reap()})", retry_after=1.0)
        failed = answer.get("failed")
        if failed == "memory":
            raise DeviceOutOfMemory(answer["what"])
        if failed == "BundleError":
            self.close()
            raise BundleError(answer["what"])
        if failed and is_sticky(answer["what"]):
            log.error("the device has failed (%s); its process is started again", answer["what"].splitlines()[0])
            self._reap()
            raise DecoderDied("the device failed and its process was ended", retry_after=1.0)
        if failed:
            raise GeneratorFailure(failed, answer["what"])
        return answer

    def _reap(self) -> str:
        """Kill what is left of the child, and describe how it ended."""
        assert self._child is not None, "a message was just sent to it"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(0.2)  # a crash may take a moment to show in the exit status
        code = self._child.poll()
        self._child.kill()
        self.close()
        if code is None:
            return "it hung"
        return f"signal {-code}" if code < 0 else f"status {code}"


def _anonymous_file() -> int:
    """A file without a name, in memory where the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("aeic")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
