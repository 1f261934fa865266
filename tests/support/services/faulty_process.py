"""Runs a service on a machine whose wall clock and, at the edge, whose disk another process controls (edge/soak.py).

    python -m tests.support.services.faulty_process CONTROL MODULE

:class:`Control` writes CONTROL, a file of 24 bytes: the offset of the wall clock, how the disk of the spool fails, and
whether the machine stops in the middle of a recovery.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import runpy
import signal
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

_LAYOUT = struct.Struct("dQQ")
MODES = ("", "eio", "ro", "full")


class Control:
    """The state of the machine, in a file that both processes map."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_LAYOUT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)

    @property
    def clock_offset(self) -> float:
        """Seconds that the wall clock is ahead."""
        return float(_LAYOUT.unpack(self._map)[0])

    @property
    def mode(self) -> str:
        """One of `MODES`: nothing fails, all I/O fails, writing fails, or there is no room."""
        return MODES[_LAYOUT.unpack(self._map)[1]]

    @property
    def kill_step(self) -> int:
        """The process kills itself at this I/O step of a recovery; 0: never."""
        return int(_LAYOUT.unpack(self._map)[2])

    def set(self, *, clock_offset: float | None = None, mode: str | None = None, kill_step: int | None = None) -> None:
        """Changes what is given."""
        offset = self.clock_offset if clock_offset is None else clock_offset
        number = MODES.index(self.mode if mode is None else mode)
        self._map[:] = _LAYOUT.pack(offset, number, self.kill_step if kill_step is None else kill_step)


def _shift_clock(control: Control) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + control.clock_offset
    time.time_ns = lambda: nanoseconds() + int(control.clock_offset * 1e9)


def _replace_disk(control: Control) -> None:
    from edge_encoder.spool import system
    from tests.edge.spool.faulty import Machine

    plain = system.System

    class FailingDisk(Machine):
        """A disk that fails as `control` says, with the real machine's clocks."""

        wall_seconds, steady_seconds = plain.wall_seconds, plain.steady_seconds
        boot_seconds, boot_id = plain.boot_seconds, plain.boot_id

        def __init__(self) -> None:
            super().__init__(random.Random(0))
            self.recovering = 0

        def create(self, path: Path) -> BinaryIO:
            if path.name.endswith(".rebuilding"):
                self.recovering = 1
            return super().create(path)

        @property
        def mode(self) -> str:
            return control.mode

        @mode.setter
        def mode(self, value: str) -> None:
            """Only `control` changes it."""

        def step(self) -> str:
            if self.recovering:
                if self.recovering == control.kill_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.recovering += 1
            return control.mode

        def free_bytes(self, folder: Path) -> int:
            return plain.free_bytes(self, folder) if control.mode != "full" else self.spare

        def _do(self, kind: str = "") -> None:
            if control.mode == "ro":
                raise OSError(errno.EROFS, "the test's disk is read-only")
            super()._do(kind)

        def _remember(self, path: Path, offset: int, data: bytes) -> None:
            """Nothing is undone here."""

        def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
            self._do("grow")
            plain.write(self, file, offset, data)

    system.System = FailingDisk  # type: ignore[misc]  # the class is replaced for the whole process


def main() -> None:
    path, module = sys.argv[1:]
    control = Control(Path(path))
    _shift_clock(control)
    if module == "edge_encoder":
        _replace_disk(control)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
