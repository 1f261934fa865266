"""What the spool uses of the machine: its file system and its clocks, behind one interface.

A test replaces it, together with SQLite's VFS, to fail or stop at any I/O step and to set the clocks. SQLite's own I/O
goes through the VFS named by `vfs`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import BinaryIO


class System:
    """The real machine. File operations raise OSError; clocks are in seconds."""

    vfs = ""
    """Name of the SQLite VFS; empty for SQLite's default."""

    # -- files -------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> BinaryIO:
        """Creates or empties the file, readable by its owner only."""
        return open(path, "w+b", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data` at `offset`."""
        file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    def sync(self, path: Path) -> None:
        """Makes a file's content, or a folder's entries, durable."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Renames the file, replacing `target`."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Deletes the file, if it exists."""
        path.unlink(missing_ok=True)

    def allocate(self, path: Path, size: int) -> None:
        """Creates the file with `size` allocated bytes."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)

    def free_bytes(self, folder: Path) -> int:
        """Bytes that this process may still write to the folder's file system."""
        facts = os.statvfs(folder)
        return facts.f_bavail * facts.f_frsize

    # -- clocks ------------------------------------------------------------------------------------------------

    def wall_seconds(self) -> float:
        """Since 1970 UTC, as far as the clock is set; may jump."""
        return time.time()

    def steady_seconds(self) -> float:
        """Of a clock that never jumps."""
        return time.monotonic()

    def boot_seconds(self) -> float:
        """Since the machine was started, suspended time included."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def boot_id(self) -> str:
        """Identifies this start of the machine; empty if it is not known."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
