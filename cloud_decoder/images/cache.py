"""The interface of a picture cache: one folder of this machine, or a store that a fleet shares."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class PictureCache(Protocol):
    """Pictures by (SHA-256 of the bitstream in hex, variant). All methods block and are safe from several threads."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, as far as they are known."""
        ...

    def has(self, digest: str, variant: str) -> bool:
        """Whether there is such a file; :meth:`get` finds out whether it is intact."""
        ...

    def get(self, digest: str, variant: str) -> bytes | None:
        """The payload, or None if it is missing, damaged or out of reach."""
        ...

    def put(self, digest: str, variant: str, payload: bytes) -> bool:
        """Keep ``payload``. False where nothing was written. ``OSError`` where the cache cannot write."""
        ...

    def remove(self, digests: Collection[str]) -> int:
        """Remove all pictures of these bitstreams, and return how many files that were. ``OSError`` where it cannot."""
        ...

    def trim(self) -> int:
        """Remove the oldest files above the limit, and return how many were removed."""
        ...
