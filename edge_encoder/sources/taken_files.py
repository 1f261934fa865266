"""Which files of a folder have been taken, where they cannot be moved or deleted: a read-only folder.

One file of 16-byte digests, to which each is appended. A digest lost in a power cut means that a picture is read again;
its id is the same, so it is not stored twice.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_DIGEST_BYTES = 16


class TakenFiles:
    """The digests in the file at `path`, which is created with the first. An unreadable file counts as empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        whole = len(data) - len(data) % _DIGEST_BYTES
        self._digests = {data[at : at + _DIGEST_BYTES] for at in range(0, whole, _DIGEST_BYTES)}

    @property
    def used(self) -> bool:
        """Whether there are any."""
        return bool(self._digests)

    def __contains__(self, key: bytes) -> bool:
        return bool(self._digests) and _digest(key) in self._digests

    def add(self, key: bytes) -> None:
        """Remembers the key, also for the next start where the disk allows it."""
        digest = _digest(key)
        if digest in self._digests:
            return
        self._digests.add(digest)
        try:
            with self.path.open("ab") as file:
                file.truncate(file.tell() - file.tell() % _DIGEST_BYTES)  # what a power cut left incomplete
                file.write(digest)
        except OSError:
            return  # the next start takes the file again, under the same id


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_DIGEST_BYTES]
