"""The lock on the spool's folder: one edge at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from edge_encoder.errors import SpoolError


class FolderLock:
    """Holds `spool.lock` in `folder`, which is created when missing, from construction to release()."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self.take()

    def take(self) -> None:
        """Takes the lock, or takes it again where the file was deleted or is on a disk that came back. SpoolError when
        another process has it, OSError when the disk does not work."""
        self.release()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.fdopen(os.open(self._folder / "spool.lock", os.O_RDWR | os.O_CREAT, 0o600), "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise SpoolError(f"another edge already uses {self._folder}; stop it or set AEIC_EDGE_DATA_DIR") from None
        self._file = file

    @property
    def held(self) -> bool:
        """Whether the lock is held."""
        return self._file is not None

    def misplaced(self) -> bool:
        """Whether the file at the lock's path is another one than the locked one, or missing."""
        if self._file is None:
            return True
        own = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._folder / "spool.lock")
        except FileNotFoundError:
            return True
        except OSError:
            return False  # the disk fails: nothing is known
        return (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino)

    def release(self) -> None:
        """Gives the lock up."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
