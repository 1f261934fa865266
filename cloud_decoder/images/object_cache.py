"""The cache of pictures for a fleet: one folder or bucket that every front end reads and every worker writes.

The same sealed files as :mod:`cloud_decoder.images.disk_cache` has, under the same names, through obstore: ``s3://bucket/prefix``,
``gs://``, ``az://``, ``file:///mnt/shared`` (credentials as the providers' own environment variables). No index is
kept: another process may have written or removed anything. A bucket is bounded by its own lifecycle rule, or, like a
folder, by :meth:`SharedCache.trim`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.images.disk_cache import file_name, seal, unseal

PATIENCE = {
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
}
"""A bucket that is away must not hold the threads of those who can do without it."""


class SharedCache:
    """``url`` names the place; ``max_bytes`` is what :meth:`trim` leaves there. Safe from several threads."""

    def __init__(self, url: str, max_bytes: int) -> None:
        try:
            from obstore import store as stores
        except ModuleNotFoundError as error:
            raise StoreUnavailable("a shared cache needs obstore: pip install 'aeic[fleet]'") from error
        try:
            options: dict[str, Any] = {"mkdir": True} if url.startswith("file:") else dict(PATIENCE)
            self._store: Any = stores.from_url(url, **options)
        except Exception as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise StoreUnavailable(
                f"AEIC_CLOUD_CACHE_URL names no store of objects ({said[:120]}): give file:///..., s3://..., gs:// or az://"
            ) from error
        self.max_bytes = max_bytes
        self.total_bytes = 0
        """As the last :meth:`trim` found it."""

    def has(self, digest: str, variant: str) -> bool:
        """Whether a file is there; only :meth:`get` tells whether it is sound."""
        try:
            self._store.head(_path(digest, variant))
        except Exception:
            return False
        return True

    def get(self, digest: str, variant: str) -> bytes | None:
        """The payload, or None where it is not there, is damaged or cannot be reached: then it is made again."""
        try:
            data = bytes(self._store.get(_path(digest, variant)).bytes())
        except ValueError:
            raise
        except Exception:
            return None
        return unseal(data)

    def put(self, digest: str, variant: str, payload: bytes) -> bool:
        """Keep ``payload``; a file of that name is replaced by the same picture. ``OSError`` where it cannot."""
        try:
            self._store.put(_path(digest, variant), seal(payload))
        except Exception as error:  # every provider has its own
            raise OSError(f"the shared cache takes nothing ({type(error).__name__})") from error
        return True

    def trim(self) -> int:
        """Remove the oldest files until ``max_bytes`` are left; how many went. Several processes may do it at once."""
        found = [one for page in self._store.list() for one in page]
        self.total_bytes = sum(one["size"] for one in found)
        doomed = []
        for one in sorted(found, key=lambda one: one["last_modified"]):
            if self.total_bytes <= self.max_bytes:
                break
            doomed.append(one["path"])
            self.total_bytes -= one["size"]
        for path in doomed:
            try:
                self._store.delete(path)
            except FileNotFoundError:
                continue
        return len(doomed)


def _path(digest: str, variant: str) -> str:
    name = file_name(digest, variant)
    return f"{name[:2]}/{name}"
