"""Taking frames in: one transaction stores frames and their jobs, in as few statements as a batch needs.

``turn`` puts the batcher's rule of urgency into a number that never changes: a frame's priority less its age, counted
in units of ``aging_seconds``, differs between two frames by the same amount at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aeic.bitstream import Frame
from cloud_decoder.store.database import StoreBase
from cloud_decoder.store.records import DEMAND_PRIORITY, Added, NewFrame, State
from cloud_decoder.store.schema import NEVER_MS, frames, jobs, sources
from cloud_decoder.tiling import tile_shape

Key = tuple[str, UUID]


def bucket_of(width: int, height: int) -> str:
    """Which frames can share a batch with one of this size (pixels): those with the same latents, or tiles of them."""
    tall, wide = tile_shape(Frame(width, height, 0, "000000", b""))
    return f"{tall}x{wide}"


class Arrivals(StoreBase):
    """The part of the store that front ends use."""

    def add(self, new: Sequence[NewFrame], now: float, deadline: float | None = None) -> list[Added]:
        """Store ``new`` and queue what is wanted, in one commit; when this returns, they are durable.

        One answer per frame, in order. ``deadline`` (seconds since 1970) goes before others of the same urgency.
        """
        if not new:
            return []
        return self.database.commit(lambda connection: self._add(connection, new, now, deadline))

    def saw(self, tenant: str, source: str, now: float) -> None:
        """Remember that ``source`` has been in touch."""
        self.database.commit(lambda connection: self._touch(connection, {(tenant, source): (0, 0)}, now))

    def _add(
        self, connection: sa.Connection, new: Sequence[NewFrame], now: float, deadline: float | None
    ) -> list[Added]:
        insert = self.database.insert(frames).on_conflict_do_nothing(index_elements=["tenant", "id"])
        values = [self._values(frame, now) for frame in new]
        fresh: dict[Key, int] = {
            (found.tenant, found.id): found.seq
            for found in self.database.insert_rows(
                connection, insert.returning(frames.c.seq, frames.c.tenant, frames.c.id), values
            )
        }
        digests = self._digests(connection, [frame for frame in new if (frame.tenant, frame.id) not in fresh])
        added, stored = [], []
        for frame in new:
            key = (frame.tenant, frame.id)
            if key in fresh and key not in digests:
                digests[key] = frame.digest
                stored.append(frame)
                added.append(Added.STORED)
            else:
                added.append(Added.DUPLICATE if digests[key] == frame.digest else Added.CONFLICT)
        queued = [self._job(fresh[frame.tenant, frame.id], frame, now, deadline) for frame in stored if frame.wanted]
        if queued:
            self.database.insert_rows(connection, self.database.insert(jobs), queued)
        totals: dict[Key | tuple[str, str], tuple[int, int]] = {}
        for frame in stored:
            count, size = totals.get((frame.tenant, frame.source), (0, 0))
            totals[frame.tenant, frame.source] = (count + 1, size + len(frame.bitstream))
        self._touch(connection, totals, now)
        return added

    def _digests(self, connection: sa.Connection, old: list[NewFrame]) -> dict[Key, str]:
        """What is stored under the ids of ``old``."""
        found: dict[Key, str] = {}
        for tenant in {frame.tenant for frame in old}:
            ids = [frame.id for frame in old if frame.tenant == tenant]
            query = sa.select(frames.c.id, frames.c.digest).where(frames.c.tenant == tenant, frames.c.id.in_(ids))
            found |= {(tenant, row.id): row.digest for row in connection.execute(query)}
        return found

    def _values(self, new: NewFrame, now: float) -> dict[str, Any]:
        values = {name: getattr(new, name) for name in NewFrame.__dataclass_fields__}
        return values | {
            "received_ms": int(now * 1000),
            "bytes": len(new.bitstream),
            "state": State.RECEIVED.value,
        }

    def _job(self, seq: int, frame: NewFrame, now: float, deadline: float | None) -> dict[str, Any]:
        return {
            "seq": seq,
            "fingerprint": frame.fingerprint,
            "bucket": bucket_of(frame.width, frame.height),
            "turn": self.turn(now, min(frame.priority, DEMAND_PRIORITY if deadline else DEMAND_PRIORITY - 1)),
            "deadline_ms": int(deadline * 1000) if deadline else NEVER_MS,
            "queued_ms": int(now * 1000),
            "wanted": True,
            "attempts": 0,
        }

    def _touch(self, connection: sa.Connection, totals: dict[Any, tuple[int, int]], now: float) -> None:
        """Last in its transaction, and in one order: two front ends may hold rows of the same sources."""
        now_ms = int(now * 1000)
        values = [
            {
                "tenant": tenant,
                "source": source,
                "first_seen_ms": now_ms,
                "last_seen_ms": now_ms,
                "frames": count,
                "bytes": size,
            }
            for (tenant, source), (count, size) in sorted(totals.items())
        ]
        if not values:
            return
        insert = self.database.insert(sources)
        given = insert.excluded
        update = insert.on_conflict_do_update(
            index_elements=["tenant", "source"],
            set_={
                "last_seen_ms": given.last_seen_ms,
                "frames": sources.c.frames + given.frames,
                "bytes": sources.c.bytes + given.bytes,
            },
        )
        self.database.insert_rows(connection, update, values)
