"""Which sources have an open ingest stream."""

from __future__ import annotations

from collections import Counter


class Presence:
    """Counts the open streams of each source. Call from the event loop only."""

    def __init__(self) -> None:
        self._streams: Counter[tuple[str, str]] = Counter()

    @property
    def connected(self) -> set[tuple[str, str]]:
        """(tenant, source) of every source that has an open stream."""
        return set(self._streams)

    def is_connected(self, tenant: str, source: str) -> bool:
        """Whether this source of this tenant has an open stream."""
        return (tenant, source) in self._streams

    def connect(self, tenant: str, source: str) -> None:
        """Count a stream on which the source sends."""
        self._streams[tenant, source] += 1

    def disconnect(self, tenant: str, source: str) -> None:
        """Remove a stream that :meth:`connect` counted."""
        self._streams[tenant, source] -= 1
        if not self._streams[tenant, source]:
            del self._streams[tenant, source]
