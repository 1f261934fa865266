"""The process that reads pictures, with faults: `python -m tests.support.edge.crashing_reader FOLDER LINE`.

A file that ends with one of the words below triggers the fault; all others are read as they are. FOLDER holds what the
process remembers, and a file `short` in it makes the process end itself a second after it was asked.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aeic.pixels import Pixels, load_picture, picture_size
from edge_encoder.encoding import picture_process

CRASH, HANG, EXHAUST = b"CRASH", b"HANG", b"EXHAUST"
CRASH_AT_HEAD = b"CRASH AT HEAD"
KILLED, KILLED_ONCE = b"KILLED", b"KILLED ONCE"
BUSY = b"BUSY"
"""Computes and never answers. Each attempt adds a byte to a file `busy` in FOLDER."""
WAIT = b"WAIT"
"""Until there is a file `go` in FOLDER."""


def command(folder: Path) -> tuple[str, ...]:
    """Starts this process."""
    return sys.executable, "-m", "tests.support.edge.crashing_reader", str(folder)


def _hang() -> None:
    while True:
        time.sleep(1)


def _faults(folder: Path) -> dict[bytes, Callable[[], object]]:
    def once() -> None:
        if not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def wait() -> None:
        while not (folder / "go").exists():
            time.sleep(0.01)

    def busy() -> None:
        with (folder / "busy").open("ab") as file:
            file.write(b".")
        while True:
            pass

    return {
        BUSY: busy,
        CRASH: lambda: os.kill(os.getpid(), signal.SIGSEGV),
        HANG: _hang,
        EXHAUST: lambda: bytearray(1 << 30),
        KILLED: lambda: os.kill(os.getpid(), signal.SIGKILL),
        KILLED_ONCE: once,
        WAIT: wait,
    }


def main() -> int:
    """As the real one."""
    folder = Path(sys.argv[1])
    faults = _faults(folder)

    def load(data: bytes, **options: Any) -> Pixels:
        for word, fault in faults.items():
            if data.endswith(b"." + word):
                fault()
        return load_picture(data, **options)

    def size(data: bytes, **options: Any) -> tuple[int, int]:
        if data.endswith(b"." + CRASH_AT_HEAD):
            os.kill(os.getpid(), signal.SIGSEGV)
        return picture_size(data, **options)

    names: dict[str, Any] = {"load_picture": load, "picture_size": size}
    if (folder / "short").exists():
        names |= {"BASE_SECONDS": 1.0, "GRACE_SECONDS": 0.0}
    for name, value in names.items():
        setattr(picture_process, name, value)
    return picture_process.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
