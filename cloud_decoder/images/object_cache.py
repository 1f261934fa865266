"""The picture cache of a fleet: one folder or bucket that every front end reads and every worker writes.

It holds the files of :mod:`cloud_decoder.images.disk_cache` under the same names, through obstore: ``s3://bucket/prefix``,
``gs://``, ``az://``, ``file:///mnt/shared`` (credentials in the providers' own environment variables). There is no
index, because other processes write and remove files. The lifecycle rule of a bucket bounds it, or, as for a folder,
:meth:`ObjectCache.trim`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from aeic.errors import remedy
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.images.disk_cache import DIGEST_LETTERS, file_name, seal, unseal

PATIENCE = {
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
}
"""A bucket that is out of reach must not block threads for long: every picture can be decoded again."""


class ObjectCache:
    """The cache at ``url``. :meth:`trim` leaves ``max_bytes`` there. Safe from several threads."""

    def __init__(self, url: str, max_bytes: int) -> None:
        try:
            from obstore import store as stores
        except ModuleNotFoundError as error:
            raise StoreUnavailable(f"a shared cache needs obstore: {remedy('fleet')}") from error
        try:
            options: dict[str, Any] = {"mkdir": True} if url.startswith("file:") else dict(PATIENCE)
            self._store: Any = stores.from_url(url, **options)
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise StoreUnavailable(
                f"AEIC_CLOUD_CACHE_URL does not name an object store ({reason[:120]}): give file:///...,"
                " s3://..., gs:// or az://"
            ) from error
        self.max_bytes = max_bytes
        self.total_bytes = 0
        """As of the last :meth:`trim`."""

    def has(self, digest: str, variant: str) -> bool:
        """Whether there is such a file; :meth:`get` finds out whether it is intact."""
        try:
            self._store.head(_path(digest, variant))
        except Exception:
            return False
        return True

    def get(self, digest: str, variant: str) -> bytes | None:
        """The payload, or None if it is missing, damaged or out of reach: the picture is then decoded again."""
        try:
            data = bytes(self._store.get(_path(digest, variant)).bytes())
        except ValueError:
            raise
        except Exception:
            return None
        return unseal(data)

    def put(self, digest: str, variant: str, payload: bytes) -> bool:
        """Keep ``payload``, replacing a file of the same picture. ``OSError`` where the cache cannot write."""
        try:
            self._store.put(_path(digest, variant), seal(payload))
        except Exception as error:  # each provider raises its own
            raise OSError(f"the shared cache cannot write ({type(error).__name__})") from error
        return True

    def remove(self, digests: Collection[str]) -> int:
        """Remove all pictures of these bitstreams, and return how many files that were. ``OSError`` where it cannot."""
        wanted, removed = set(digests), 0
        try:
            for folder in sorted({digest[:2] for digest in wanted}):
                found = [one["path"] for page in self._store.list(folder) for one in page]
                for path in found:
                    if path.rpartition("/")[2][:DIGEST_LETTERS] in wanted:
                        self._delete(path)
                        removed += 1
        except Exception as error:  # each provider raises its own
            raise OSError(f"the shared cache cannot remove ({type(error).__name__})") from error
        return removed

    def trim(self) -> int:
        """Remove the oldest files until ``max_bytes`` are left, and return how many. Several processes may call it."""
        found = [one for page in self._store.list() for one in page]
        self.total_bytes = sum(one["size"] for one in found)
        removed = []
        for one in sorted(found, key=lambda one: one["last_modified"]):
            if self.total_bytes <= self.max_bytes:
                break
            removed.append(one["path"])
            self.total_bytes -= one["size"]
        for path in removed:
            self._delete(path)
        return len(removed)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            self._store.delete(path)


def _path(digest: str, variant: str) -> str:
    name = file_name(digest, variant)
    return f"{name[:2]}/{name}"
