"""Disk space that only acknowledgements may use.

A delivery must be recorded before its frame can be deleted, which a full disk prevents: the spool would send the same
frames again and again and accept no others. So a file reserves some space from the start. When the disk is full, the
file is deleted, deliveries are recorded, and no new frame is accepted until the space is reserved again.

writer.py deletes the file when a commit fails for want of space, and makes it again as soon as it can. spool.py refuses
frames while it is missing: clients get 507, watched folders keep their files. Independent of SQLite.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from edge_encoder.spool.system import System

SIZE_BYTES = 4 << 20
"""The size at which SQLite writes its log back into the database."""


class DiskReserve:
    """A file of `size` allocated bytes at `path`, created at once if the disk has the space. For one thread."""

    def __init__(self, path: Path, size: int = SIZE_BYTES, system: System | None = None) -> None:
        self._path, self._size, self._system = path, size, system or System()
        self.whole = False
        with contextlib.suppress(OSError):
            self.whole = path.stat().st_blocks * 512 >= size
        self.make()

    def make(self) -> bool:
        """Reserves the space again, if it is missing; returns `whole`."""
        if not self.whole:
            try:
                self._system.allocate(self._path, self._size)
                self.whole = True
            except OSError:
                self._delete()
        return self.whole

    def spend(self) -> bool:
        """Releases the space; False if that was done before."""
        had, self.whole = self.whole, False
        self._delete()
        return had

    def _delete(self) -> None:
        with contextlib.suppress(OSError):
            self._system.unlink(self._path)
