"""Room on the disk that only acknowledgements may use.

A delivery must be written before its frame can go, and on a full disk nothing can: the spool would send the same frames
again for ever and take no others. So a file holds some room from the start. When the disk is full it is given up,
deliveries are written, and no new frame is taken before it is there again. Knows nothing of SQLite.
"""

from __future__ import annotations

import os
from pathlib import Path

SIZE_BYTES = 4 << 20
"""What SQLite's log grows to before it is written back into the spool's file."""


class DiskReserve:
    """A file of `size` allocated bytes at `path`, made at once if the disk has them. For one thread."""

    def __init__(self, path: Path, size: int = SIZE_BYTES) -> None:
        self._path, self._size = path, size
        self.whole = path.exists() and path.stat().st_blocks * 512 >= size
        self.make()

    def make(self) -> bool:
        """Takes the room again, if it is missing; `whole` afterwards."""
        if self.whole:
            return True
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(handle, 0, self._size)
            finally:
                os.close(handle)
            self.whole = True
        except OSError:
            self._path.unlink(missing_ok=True)
        return self.whole

    def spend(self) -> bool:
        """Gives the room up; False where it was gone already."""
        had, self.whole = self.whole, False
        self._path.unlink(missing_ok=True)
        return had
