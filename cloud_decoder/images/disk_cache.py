"""A bounded, least-recently-used cache of picture files in one folder.

One file per (digest of the bitstream, variant), for instance ``3f/3f9c...-png``. A file is its payload behind a
header of 36 bytes: four letters and the SHA-256 of the payload. A file that does not match its header is a miss and is
removed, so that a torn write, a flipped bit or a foreign file costs one decode. Files are written under a temporary
name and then moved into place. A file that exists is not written again. The cache knows no frames and no formats.

:meth:`DiskCache.put` evicts the least recently used files. http_api/image_service.py reads the cache before it decodes;
worker/completion.py writes what was decoded. A picture that is gone is decoded again when it is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

_MAGIC = b"AEC1"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size
DIGEST_LETTERS = 64
_NAME = re.compile(r"[0-9a-f]{64}-[a-z0-9]{1,24}\Z")


class DiskCache:
    """A cache of at most ``max_bytes`` in the folder ``root``, which is created. Safe from several threads."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.damaged = 0
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # name -> bytes, least recently used first
        self._total = 0
        root.mkdir(parents=True, exist_ok=True)
        self._scan()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, headers included."""
        return self._total

    def __len__(self) -> int:
        return len(self._sizes)

    def has(self, digest: str, variant: str) -> bool:
        """Whether there is such a file; :meth:`get` finds out whether it is intact."""
        with self._lock:
            return file_name(digest, variant) in self._sizes

    def get(self, digest: str, variant: str) -> bytes | None:
        """The payload, or None where the file is missing or damaged. A damaged file is removed."""
        name = file_name(digest, variant)
        with self._lock:
            known = name in self._sizes
        payload = self._read(name) if known else None
        with self._lock:
            if payload is None:
                self.misses += 1
                if known:
                    self.damaged += 1
                    self._forget(name)
            else:
                self.hits += 1
                if name in self._sizes:
                    self._sizes.move_to_end(name)
        return payload

    def put(self, digest: str, variant: str, payload: bytes) -> bool:
        """Keep ``payload``.

        False where the file exists or is larger than the whole cache. ``OSError`` on a full disk.
        """
        name = file_name(digest, variant)
        size = _HEADER + len(payload)
        if size > self.max_bytes:
            return False
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        temporary = self.root / f".{name}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "xb") as file:
                file.write(seal(payload))
            with self._lock:
                if name in self._sizes:
                    return False
                os.replace(temporary, path)  # a file outside the index is replaced
                self._sizes[name] = size
                self._total += size
                while self._total > self.max_bytes:
                    self._forget(next(iter(self._sizes)))
                    self.evictions += 1
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return True

    def remove(self, digests: Collection[str]) -> int:
        """Remove all pictures of these bitstreams, and return how many files that were."""
        wanted = set(digests)
        with self._lock:
            found = [name for name in self._sizes if name[:DIGEST_LETTERS] in wanted]
            for name in found:
                self._forget(name)
        return len(found)

    def trim(self) -> int:
        """Nothing to do: :meth:`put` stays within the limit."""
        return 0

    def _read(self, name: str) -> bytes | None:
        try:
            data = self._path(name).read_bytes()
        except OSError:
            return None
        return unseal(data)

    def _path(self, name: str) -> Path:
        return self.root / name[:2] / name

    def _forget(self, name: str) -> None:
        self._total -= self._sizes.pop(name, 0)
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _scan(self) -> None:
        """Index the files of an earlier run, oldest first, and remove its unfinished files."""
        for leftover in self.root.glob(".*-*.*"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        found = []
        for path in self.root.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if _NAME.match(path.name):
                    found.append((status.st_mtime, path.name, status.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._total += size
        while self._total > self.max_bytes and self._sizes:
            self._forget(next(iter(self._sizes)))


def file_name(digest: str, variant: str) -> str:
    """The name of a picture's file. ``ValueError`` where digest and variant do not form one."""
    name = f"{digest}-{variant}"
    if not _NAME.match(name):
        raise ValueError(f"not a cache name: {name!r}")
    return name


def seal(payload: bytes) -> bytes:
    """``payload`` behind its header."""
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def unseal(data: bytes) -> bytes | None:
    """The payload of a file, or None if it does not match its header."""
    payload = data[_HEADER:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : _HEADER] != hashlib.sha256(payload).digest():
        return None
    return payload
