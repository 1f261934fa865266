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
import re
import sys
import threading
import time
import unicodedata
from typing import Any, TextIO

_ABSEIL = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ +(\S+)\] (.*)")  # of gRPC's C library
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_SPARSE = ("socket.accept() out of system resource", "Invalid HTTP request received.", "Unsupported upgrade request.")
_SPARSE_SECONDS = 60.0
_LONGEST_LINE = 65536
_PIPE_BYTES = 1 << 20


def set_up(level: str, form: str) -> None:
    """Sends every logger of the process to stderr, in that form (``json`` or ``text``), from that level on.

    As JSON also what libraries in C write to stderr by themselves, such as gRPC's and ONNX Runtime's.
    """
    stream = _native_lines_to_log() if form == "json" else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(Sparse(_SPARSE, _SPARSE_SECONDS))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for noisy in ("uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
                if found := _ABSEIL.match(text):
                    logging.getLogger("grpc").log(_LEVELS[found[1]], "%s: %s", found[2], found[3])
                else:
                    logging.getLogger("stderr").warning("%s", text)
