"""Which sources have an open ingest stream, and what their boxes report about themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Report:
    """The health of a box, as it reports it (aeic.v1.Report)."""

    waiting_frames: int
    """Frames that it has not sent yet."""
    oldest_seconds: int
    problem: str
    """What keeps it from its work; empty if nothing does."""


@dataclass(frozen=True)
class Box:
    """A box that is connected: its program with version, and its last report, if it makes any.

    ``warning``: what this cloud has noticed about it, with the remedy; empty if nothing.
    """

    software: str
    report: Report | None = None
    warning: str = ""


TWO_BOXES = "two boxes send under this name: give each its own AEIC_EDGE_SOURCE_ID"


class Presence:
    """Counts the open streams of each source. Call from the event loop only."""

    def __init__(self) -> None:
        self._streams: Counter[tuple[str, str]] = Counter()
        self._connected: dict[tuple[str, str], Box] = {}  # the latest to connect last
        self._boxes: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)  # the latest last
        self._conflicts: set[tuple[str, str]] = set()

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

    def set_report(self, tenant: str, source: str, report: Report) -> None:
        """Record the report of a box; without effect once it is gone."""
        if (box := self._connected.get((tenant, source))) is not None:
            self._connected[tenant, source] = replace(box, report=report)

    def box(self, tenant: str, source: str) -> Box | None:
        """The box of that name; None if none is connected."""
        box = self._connected.get((tenant, source))
        return replace(box, warning=TWO_BOXES) if box and (tenant, source) in self._conflicts else box

    def boxes(self) -> Iterator[tuple[str, str, Box]]:
        """Tenant and source of every box that is connected, with the box, the latest first; without warnings."""
        return ((tenant, source, box) for (tenant, source), box in reversed(list(self._connected.items())))

    def box_connects(self, tenant: str, source: str, box: bytes, software: str) -> None:
        """Record the stream of a process of that source, and its program; ``box`` is its Hello.process_id, empty for an
        older edge."""
        self._boxes[tenant, source].append(box)
        self._connected.pop((tenant, source), None)
        self._connected[tenant, source] = Box(software)

    def box_disconnects(self, tenant: str, source: str, box: bytes) -> None:
        """Remove a stream that :meth:`box_connects` recorded."""
        boxes = self._boxes[tenant, source]
        boxes.remove(box)
        if not boxes:
            del self._boxes[tenant, source]
            del self._connected[tenant, source]
        if len({one for one in boxes if one}) < 2:
            self._conflicts.discard((tenant, source))

    def is_superseded(self, tenant: str, source: str, box: bytes) -> bool:
        """Whether another process has connected as the same source since this one did, and is connected now.

        A stream of which this is true and which still sends belongs to a second box: that of one box that has
        connected again is silent.
        """
        named = [one for one in self._boxes.get((tenant, source), []) if one]
        return bool(box) and bool(named) and named[-1] != box

    def set_conflict(self, tenant: str, source: str) -> None:
        """Record that two boxes send as this source; until one of them is gone, :meth:`box` has a warning."""
        self._conflicts.add((tenant, source))

    def disconnect(self, tenant: str, source: str) -> None:
        """Remove a stream that :meth:`connect` counted."""
        self._streams[tenant, source] -= 1
        if not self._streams[tenant, source]:
            del self._streams[tenant, source]
