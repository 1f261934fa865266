"""The generator in a separate process. When that process dies, or has to be killed, the service starts another one.

::

    service                                         child: python -m cloud_decoder.inference.subprocess_child
    +---------------------+   control (socket)    +--------------------+
    | SubprocessGenerator | -- {"shape": ...} --> | the real generator |     one line of JSON each way
    |                     | <- {"shape": ...} --- |                    |
    +---------------------+                       +--------------------+
         latents  ->  inbox, shared memory  ->   pictures  ->  outbox, shared memory

    frames   ->  inbox of the second channel ->  latents   ->  its outbox        (only where entropy is decoded there)

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
import threading
import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aeic import errors
from aeic.errors import BitstreamError, BundleError
from aeic_service import logs
from cloud_decoder.errors import DecoderDied, DeviceOutOfMemory, DeviceUnavailable
from cloud_decoder.inference.backend import EntropyDecoded, GeneratorBackend

log = logging.getLogger(__name__)

START_SECONDS = 600.0
"""Enough for a large model on a slow disk."""
STARTS = 3
"""Attempts at starting before :class:`DeviceUnavailable`."""
RETRY_SECONDS = 30.0
"""The longest pause before the next attempt while there is no child."""
CLOSE_SECONDS = 2.0
DEVICE_FAILED = "device"
"""What a child reports as ``failed`` when its device works no more; it ends after that answer."""


class GeneratorFailure(Exception):
    """The generator raised an exception of the class named ``kind``."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind, self.what = kind, what


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


class ChildState(StrEnum):
    """The life of the child::

        absent --> starting --> ready <--> busy        any --> closed
          ^           |           |         |
          +-----------+-----------+---------+   exit, kill, no answer, failed start

    A child is loaded and warm before it is ``ready``. Only ``absent`` leads to another child.
    """

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    CLOSED = "closed"


_NEXT = {
    ChildState.ABSENT: {ChildState.STARTING, ChildState.CLOSED},
    ChildState.STARTING: {ChildState.READY, ChildState.ABSENT},
    ChildState.READY: {ChildState.BUSY, ChildState.ABSENT},
    ChildState.BUSY: {ChildState.READY, ChildState.ABSENT},
    ChildState.CLOSED: set[ChildState](),
}


class Channel:
    """A socket and a buffer each way, of which the child gets the other ends. One caller at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as opened:  # whatever fails, nothing stays open
            opened.callback(ours.close)
            opened.callback(theirs.close)
            self.control, self._theirs = Control(ours), theirs
            self.inbox = SharedBuffer()
            opened.callback(self.inbox.close)
            self.outbox = SharedBuffer()
            opened.callback(self.outbox.close)
            self._opened = opened.pop_all()
        self.lock = threading.Lock()
        self.asked = False  # from a question to its answer
        self.closed = False

    @property
    def fds(self) -> tuple[int, int, int]:
        """What the child inherits."""
        return self._theirs.fileno(), self.inbox.fd, self.outbox.fd

    def handed_over(self) -> None:
        """The child has its ends."""
        self._theirs.close()

    def close(self) -> None:
        """Close everything. A call in progress ends first, since the child has gone."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self._opened.close()


class ChildProcess:
    """One process with its control socket and its two buffers. ``OSError`` if it cannot be started."""

    def __init__(self, entropy: bool = False) -> None:
        """``entropy``: with another channel for entropy decoding."""
        with contextlib.ExitStack() as opened:  # whatever fails, nothing stays open
            channel = Channel()
            opened.callback(channel.close)
            self.control, self.inbox, self.outbox = channel.control, channel.inbox, channel.outbox
            self.entropy: Channel | None = None
            channels = [channel]
            if entropy:
                self.entropy = Channel()
                opened.callback(self.entropy.close)
                channels.append(self.entropy)
            fds = [fd for one in channels for fd in one.fds]
            source = str(Path(__file__).parents[2])
            paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cloud_decoder.inference.subprocess_child", *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the service prints one line of JSON there, for programs
                env=os.environ | {"PYTHONPATH": paths},
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C reaches the service only, which drains first
            )
            for one in channels:
                one.handed_over()
            self._opened = opened.pop_all()

    def end(self, seconds: float) -> str:
        """Close everything, kill the process if it lives for another ``seconds``, and describe how it ended."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        self._opened.close()
        if code is None:
            return "it hung"
        return f"signal {-code}" if code < 0 else f"status {code}"


class SubprocessGenerator(GeneratorBackend):
    """The generator of the bundle in the folder ``bundle``, in a child process that starts at once.

    A child that does not answer within ``batch_seconds`` is killed. A child that ends is replaced, by the next call or
    by a watching thread, whichever comes first. ``BundleError`` for a bundle that cannot be loaded,
    ``DeviceUnavailable`` where no child starts, ``DecoderDied`` where the child is lost during a call,
    ``DeviceOutOfMemory`` and :class:`GeneratorFailure` for what the generator raised.

    With ``entropy``, the kernels of a GPU, the child decodes entropy too, and compares one in ``check_every`` frames
    with the CPU. It has a separate channel for that, so that it runs beside the synthesis of the batch before. If
    entropy decoding fails there, the frame is not at fault: the CPU decodes it instead.
    """

    def __init__(
        self,
        bundle: Path,
        device: str,
        threads: int,
        *,
        batch_seconds: float = 120.0,
        entropy: Literal["torch", "triton"] | None = None,
        check_every: int = 0,
    ) -> None:
        self.device = device
        self._arguments: dict[str, Any] = {"bundle": str(bundle.resolve()), "device": device, "threads": threads}
        self._arguments["log"] = logs.chosen()
        if entropy:
            self._arguments |= {"check_every": check_every, "kernels": entropy}
        self._entropy_off = "" if entropy else "not asked for"
        self._counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()
        self._batch_seconds = batch_seconds
        self._warmed: dict[str, Any] = {}  # the message of the warm-up, once there was one
        self._lock = threading.RLock()  # held by a call, and by the watching thread while it replaces a child
        self._closing = threading.Event()
        self._child: ChildProcess | None = None
        self._state = ChildState.ABSENT
        self._parts: dict[str, float] = {}
        self._memory: dict[str, int] = {}
        self._runtime = ""
        with self._lock:
            self._start()

    @property
    def state(self) -> ChildState:
        """The state of the child."""
        return self._state

    @property
    def problem(self) -> str:
        """Why no batch could begin now; empty if one could, or is in progress."""
        if self._state in (ChildState.READY, ChildState.BUSY):
            return ""
        return f"the decoder's process is {self._state.value}"

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
        child = self._child
        return None if child is None else child.process.pid

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32, valid until the next call."""
        return self._run(y_hat, np.float32)

    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(N, M, h, w) float32 -> (N, 32 h, 32 w, 3) uint8, valid until the next call."""
        return self._run(y_hat, np.uint8)

    def _run(self, y_hat: NDArray[np.float32], dtype: type[Any]) -> NDArray[Any]:
        with self._lock:
            child = self._ready()
            child.inbox.write(y_hat)
            answer = self._call(child, {"shape": y_hat.shape, "pictures": dtype is np.uint8}, self._batch_seconds)
            self._parts, self._memory = answer.get("parts", {}), answer.get("memory", {})
            self._count(answer)
            return child.outbox.view(tuple(answer["shape"]), dtype)

    def warm_up(self, max_batch: int, max_pixels: int | None = None) -> int | None:
        """Warm the generator up. A child that replaces this one is warmed up in the same way."""
        with self._lock:
            child, message = self._ready(), {"warm_up": max_batch, "pixels": max_pixels}
            answer = self._call(child, message, START_SECONDS)
            self._warmed, self._runtime = message, answer["runtime"]
            room: int | None = answer["room"]
            return room

    # -- entropy decoding, beside the other calls -------------------------------------------------------------------

    @property
    def entropy_on_device(self) -> bool:
        """Whether a child decodes entropy now."""
        return not self._entropy_off and self._state in (ChildState.READY, ChildState.BUSY)

    @property
    def warnings(self) -> list[str]:
        """Why the CPU has taken entropy decoding over, if it has."""
        if not self._entropy_off or "check_every" not in self._arguments:
            return []
        return [f"entropy decoding runs on the CPU instead of {self.device}: {self._entropy_off}"]

    def take_counts(self) -> dict[str, int]:
        """Events since the last call."""
        with self._counts_lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)

    def _count(self, answer: dict[str, Any]) -> None:
        with self._counts_lock:
            self._counts.update(answer.get("counts", {}))

    def entropy_decode(self, frames: Sequence[bytes]) -> list[EntropyDecoded | BitstreamError] | None:
        """Frames to latents by the child; None if it has failed or does not do this."""
        child = self._child
        if self._entropy_off or child is None or child.entropy is None or not self.entropy_on_device:
            return None
        channel = child.entropy
        with channel.lock:
            if channel.closed or channel.asked:  # the answer to what was asked may still come: it is for other frames
                return None
            channel.inbox.write(np.frombuffer(b"".join(frames), np.uint8))
            channel.asked = True
            try:
                channel.control.send({"frames": [len(frame) for frame in frames]})
                answer = channel.control.receive(self._batch_seconds)
            except TimeoutError:
                log.error("entropy decoding has not answered for %g s: its process is killed", self._batch_seconds)
                child.process.kill()
                return None
            except OSError:
                child.process.kill()  # if it is not gone yet: this channel is of no use any more
                return None
            except BaseException:  # such as Ctrl-C in a notebook
                child.process.kill()
                raise
            channel.asked = False
            if answer is None or "failed" in answer:
                log.warning("entropy decoding of %d frames moves to the CPU: %s", len(frames), answer)
                return None
            self._count(answer)
            self._entropy_off = answer["reason"]
            return _outcomes(answer["outcomes"], channel.outbox)

    def close(self) -> None:
        """End the child process. A call in progress gets ``DecoderDied``."""
        self._closing.set()
        while not self._lock.acquire(timeout=CLOSE_SECONDS):  # more than once: a child may just be being started
            if (child := self._child) is not None:
                child.process.kill()
        try:
            if self._state is not ChildState.CLOSED:
                if self._child is not None:
                    self._child.control.close()  # the child then exits, unless it hangs
                self._discard(CLOSE_SECONDS)
                self._enter(ChildState.CLOSED)
        finally:
            self._lock.release()

    # -- the life of the child, under the lock --------------------------------------------------------------------

    def _enter(self, state: ChildState) -> None:
        assert state in _NEXT[self._state], f"{self._state} cannot become {state}"
        self._state = state

    def _ready(self) -> ChildProcess:
        """The child, loaded and warm; a new one if there is none."""
        if self._child is None:
            self._start()
        assert self._child is not None, "it was just started"
        return self._child

    def _start(self) -> None:
        """Start a child, load and warm it. ``DeviceUnavailable``, with no child left, if that fails."""
        reason = ""
        for attempt in range(STARTS):
            if self._closing.is_set():
                raise DeviceUnavailable("the decoder is closed")
            self._enter(ChildState.STARTING)
            try:
                self._child = child = self._spawn()
                answer = self._ask(child, self._arguments, START_SECONDS)
                if not answer.get("entropy") and "check_every" in self._arguments:
                    self._entropy_off = self._entropy_off or "the bundle has no integer.npz, or torch is missing"
                if self._warmed:
                    self._runtime = self._ask(child, self._warmed, START_SECONDS)["runtime"]
                self._enter(ChildState.READY)
                threading.Thread(target=self._watch, args=(child,), name="decoder-watch", daemon=True).start()
                return
            except GeneratorFailure as error:
                self._discard()
                if error.kind == "BundleError":
                    raise BundleError(error.what) from error
                raise DeviceUnavailable(str(error)) from error
            except (DecoderDied, DeviceOutOfMemory, OSError, MemoryError, RuntimeError) as error:
                reason = str(error) or type(error).__name__
                self._discard()
                log.error("the decoder's process did not start (%s)", reason)
                self._closing.wait(0.2 * 2**attempt)
        raise DeviceUnavailable(f"the decoder's process failed to start {STARTS} times ({reason}); see the log")

    def _spawn(self) -> ChildProcess:
        return ChildProcess(entropy=not self._entropy_off)

    def _call(self, child: ChildProcess, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Ask a child that is ready."""
        self._enter(ChildState.BUSY)
        try:
            return self._ask(child, message, seconds)
        finally:
            if self._state is ChildState.BUSY:  # it lives
                self._enter(ChildState.READY)

    def _ask(self, child: ChildProcess, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            child.control.send(message)
            answer = child.control.receive(seconds)
        except TimeoutError:
            answer = None
            log.error("the decoder's process has not answered for %g s and is killed", seconds)
        except OSError:
            answer = None
        except BaseException:  # such as Ctrl-C in a notebook: the answer would be taken for that of the next message
            child.process.kill()
            self._discard()
            raise
        if answer is None:
            raise DecoderDied(f"the decoder's process was lost ({self._discard()})", retry_after=1.0)
        failed = answer.get("failed")
        if failed == "memory":
            raise DeviceOutOfMemory(answer["what"])
        if failed == DEVICE_FAILED or (failed and is_sticky(answer["what"])):
            log.error("the device has failed (%s); its process is started again", answer["what"].splitlines()[0])
            if self._arguments.get("kernels") == "triton":  # they may be the cause, and would fail in every process
                self._arguments["kernels"] = "torch"
                log.error("torch's kernels decode entropy from now on: set AEIC_CLOUD_ENTROPY=device if Triton's fail")
            self._discard()
            raise DecoderDied("the device failed and its process was ended", retry_after=1.0)
        if failed:
            raise GeneratorFailure(failed, answer["what"])
        return answer

    def _discard(self, seconds: float = 0.2) -> str:
        """End the child, if there is one, and describe how it ended. A crash may take a moment to show."""
        child, self._child = self._child, None
        if self._state is not ChildState.ABSENT:
            self._enter(ChildState.ABSENT)
        return "" if child is None else child.end(seconds)

    def _watch(self, child: ChildProcess) -> None:
        """Wait for the end of ``child``, on a separate thread, and replace it unless a call has done so."""
        child.process.wait()
        pause = 0.0
        while not self._closing.wait(pause):
            with self._lock:
                if self._child is child:  # it ended between two calls
                    log.error("the decoder's process has ended (%s) and is started again", self._discard())
                if self._closing.is_set() or self._state is not ChildState.ABSENT:
                    return
                try:
                    self._start()
                    return
                except Exception as error:
                    log.error("no decoder process: %s", error)
            pause = min(RETRY_SECONDS, 2 * pause or 1.0)


def _outcomes(described: list[dict[str, Any]], latents: SharedBuffer) -> list[EntropyDecoded | BitstreamError]:
    """The outcome of each frame; latents are stored back to back in the buffer and are copied."""
    sizes = [int(np.prod(one["shape"])) if "shape" in one else 0 for one in described]
    values = latents.view((sum(sizes),)) if any(sizes) else np.empty(0, np.float32)
    outcomes: list[EntropyDecoded | BitstreamError] = []
    start = 0
    for one, size in zip(described, sizes, strict=True):
        if "shape" in one:
            y_hat = values[start : start + size].reshape(one["shape"]).copy()
            outcomes.append(EntropyDecoded(y_hat, one["digest"]))
        else:
            kind = getattr(errors, one["failed"], BitstreamError)
            outcomes.append((kind if issubclass(kind, BitstreamError) else BitstreamError)(one["what"]))
        start += size
    return outcomes


def _anonymous_file() -> int:
    """A file without a name, in memory where the system supports that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("aeic")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
