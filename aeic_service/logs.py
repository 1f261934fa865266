"""Log lines on stderr: one JSON object each for machines, or plain text for people.

What a client sends may be in a message, so control characters are escaped: no message can end its line, start another
one or move the cursor of a terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import sys
import threading
import time
import unicodedata
from typing import Any, TextIO

_ABSEIL = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ +(\S+)\] (.*)")  # of gRPC's C library
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_NAMES = {logging.getLevelName(level).lower(): level for level in (*_LEVELS.values(), logging.DEBUG)}
_FIRST = '{"time": "'
_SPARSE = ("socket.accept() out of system resource", "Invalid HTTP request received.", "Unsupported upgrade request.")
_SPARSE_SECONDS = 60.0
_LONGEST_LINE = 65536
_PIPE_BYTES = 1 << 20
_LINES = 10_000
_FLUSH_SECONDS = 2.0


_chosen: dict[str, str] | None = None


def chosen() -> dict[str, str] | None:
    """The arguments of the last :func:`set_up`, for a child process; None before."""
    return _chosen


def set_up(level: str, form: str, *, child: bool = False) -> None:
    """Sends every logger of the process to stderr, in that form (``json`` or ``text``), from that level on.

    As JSON also what libraries in C write to stderr by themselves, such as gRPC's and ONNX Runtime's. ``child``: stderr
    is that of a process with the same settings, which logs what this one and its libraries write.
    """
    global _chosen
    _chosen = {"level": level, "form": form}
    stream = _native_lines_to_log() if form == "json" and not child else sys.stderr
    handler = Unblocked(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(Sparse(_SPARSE, _SPARSE_SECONDS))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Unblocked(logging.Handler):
    """Writes lines on a thread of its own, so that a reader who stalls does not hold up the service.

    At most ``lines`` wait. Further ones are lost, and the next line that is written says how many.
    """

    def __init__(self, stream: TextIO, lines: int = _LINES) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(lines)
        self._lost = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line; never waits."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Wait until all lines are written, at most two seconds, since their reader may have stalled."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, _FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            with contextlib.suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
                if lost := self._lost:
                    self._lost -= lost
                    text = f"{lost} lines of the log were lost, because they were read too slowly"
                    self._stream.write(self.format(logging.LogRecord("aeic.log", 30, "", 0, text, None, None)) + "\n")
                self._stream.write(line + "\n")
                self._stream.flush()
            self._waiting.task_done()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return "".join(_escaped(c) for c in json.dumps(line, ensure_ascii=False))


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "".join(_escaped(c) for c in super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).splitlines()  # indented, so that none looks like a line of the log
        return "\n".join("    " + "".join(_escaped(c) for c in line) for line in lines)


def _escaped(character: str) -> str:
    # Control characters, directions of writing and other invisible ones (C*), separators of lines (Zl, Zp).
    if character.isascii() and character.isprintable() or unicodedata.category(character)[0] not in "CZ":
        return character
    if unicodedata.category(character) in ("Zs",):
        return character
    return json.dumps(character)[1:-1]


class Sparse(logging.Filter):
    """Of messages that contain one of ``parts``, one in ``seconds``; it says how many were left out."""

    def __init__(self, parts: tuple[str, ...], seconds: float) -> None:
        super().__init__()
        self._parts, self._seconds = parts, seconds
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        part = next((one for one in self._parts if one in message), None)
        if part is None:
            return True
        now = time.monotonic()
        if now - self._last.get(part, -self._seconds) < self._seconds:
            self._left_out[part] = self._left_out.get(part, 0) + 1
            return False
        self._last[part] = now
        if left_out := self._left_out.pop(part, 0):
            record.msg, record.args = f"{message} ({left_out} more of these were left out)", None
        return True


_real_stderr: TextIO | None = None


def _native_lines_to_log() -> TextIO:
    """Makes file descriptor 2 a pipe whose lines become log records; the stream that still writes to the real stderr.

    The pipe never blocks its writers, who may hold the interpreter's lock: what does not fit is lost. Lines that a
    library writes in the moment in which it ends the process are lost too.
    """
    global _real_stderr
    if _real_stderr is not None:
        return _real_stderr
    _real_stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    sys.stderr = _real_stderr  # for what the interpreter itself says at its end
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # over the user's limit
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(target=_forward, args=(reading,), name="stderr", daemon=True).start()
    return _real_stderr


def _forward(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            if text := line.decode(errors="backslashreplace").rstrip():
                if record := _of_a_child(text):
                    logging.getLogger(record.name).handle(record)
                elif found := _ABSEIL.match(text):
                    logging.getLogger("grpc").log(_LEVELS[found[1]], "%s: %s", found[2], found[3])
                else:
                    logging.getLogger("stderr").warning("%s", text)


def _of_a_child(text: str) -> logging.LogRecord | None:
    """The record of a line that a child process has written by ``_Json``; None for another line."""
    try:
        line = json.loads(text) if text.startswith(_FIRST) else {}
        event = "\n".join(line[key] for key in ("event", "error") if key in line)
        return logging.LogRecord(line["logger"], _NAMES[line["level"]], "", 0, "%s", (event,), None)
    except (ValueError, KeyError, TypeError):
        return None
