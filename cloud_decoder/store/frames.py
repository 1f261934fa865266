"""Stored frames: inserting them with their jobs, reading them, counting them, and emptying the oldest.

One transaction stores frames and queues their jobs, in as few statements as a batch needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aeic.bitstream import Frame
from cloud_decoder.errors import StoredDamage
from cloud_decoder.store.database import Database
from cloud_decoder.store.records import DEMAND_PRIORITY, Added, FrameState, NewFrame, StoredFrame
from cloud_decoder.store.schema import NEVER_MS, frames, jobs, sources, tallies
from cloud_decoder.tiling import tile_shape

DAMAGED = "its stored bytes have changed since they arrived"
"""The reason of frames whose bitstream does not have its digest any more."""
Key = tuple[str, UUID]

_HELD = sa.and_(frames.c.state == FrameState.RECEIVED.value, jobs.c.lease_until.is_not(None))
_DERIVED = {
    "state": sa.case((_HELD, FrameState.DECODING.value), else_=frames.c.state).label("state"),
    "attempts": sa.func.coalesce(jobs.c.attempts, 0).label("attempts"),
}
ROW_COLUMNS = [_DERIVED[name] if name in _DERIVED else frames.c[name] for name in StoredFrame.__dataclass_fields__]
_WITH_JOBS = frames.outerjoin(jobs, jobs.c.seq == frames.c.seq)


def row_of(found: Any) -> StoredFrame:
    """A row of a query for ``ROW_COLUMNS``."""
    values = {name: getattr(found, name) for name in StoredFrame.__dataclass_fields__}
    values["state"] = FrameState(values["state"])
    return StoredFrame(**values)


def intact(found: Any) -> bool:
    """Whether the bitstream of a row has the digest with which it was stored."""
    return hashlib.sha256(found.bitstream).hexdigest() == str(found.digest)


def bucket_of(width: int, height: int) -> str:
    """The bucket of a picture of this size (pixels).

    Frames of one bucket can share a batch: their latents, or the tiles of their latents, have the same size.
    """
    tall, wide = tile_shape(Frame(width, height, 0, "000000", b""))
    return f"{tall}x{wide}"


def turn_of(now: float, priority: int, aging_seconds: float) -> int:
    """The place in the queue of a job that arrives at ``now``; smaller is sooner.

    It is the batcher's rule of urgency as a number that never changes. Priority less age, counted in units of
    ``aging_seconds``, differs between two jobs by the same amount at any time.
    """
    return int(now // aging_seconds) - priority


class Frames:
    """The frames of all tenants. ``aging_seconds`` of waiting are worth one level of priority."""

    def __init__(self, database: Database, aging_seconds: float) -> None:
        self._database, self._aging_seconds = database, aging_seconds

    def add(self, new: Sequence[NewFrame], now: float, deadline: float | None = None) -> list[Added]:
        """Store frames and queue those that are wanted, in one commit. They are durable when this returns.

        One answer per frame, in order. Of jobs with the same urgency, those with the earlier ``deadline`` come first
        (seconds since 1970).
        """
        if not new:
            return []
        return self._database.commit(lambda connection: self._add(connection, new, now, deadline))

    def saw(self, tenant: str, source: str, now: float) -> None:
        """Record that ``source`` has connected."""
        self._database.commit(lambda connection: self._touch(connection, {(tenant, source): (0, 0)}, now))

    def get(self, tenant: str, frame: UUID) -> StoredFrame | None:
        """The frame of that id, if it is this tenant's."""
        query = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS)
        with self._database.read() as connection:
            found = connection.execute(query.where(frames.c.tenant == tenant, frames.c.id == frame)).first()
        return None if found is None else row_of(found)

    def bitstream(self, tenant: str, frame: UUID) -> bytes | None:
        """The frame's bytes as they arrived; None where the frame is unknown or pruned.

        ``StoredDamage`` where the stored bytes do not have the frame's digest any more.
        """
        query = sa.select(frames.c.bitstream, frames.c.digest).where(frames.c.tenant == tenant, frames.c.id == frame)
        with self._database.read() as connection:
            found = connection.execute(query).first()
        if found is None or found.bitstream is None:
            return None
        if not intact(found):
            raise StoredDamage(f"frame {frame}: {DAMAGED}: restore the store from a backup")
        return bytes(found.bitstream)

    def page(
        self,
        tenant: str,
        limit: int,
        before: int | None = None,
        *,
        source: str | None = None,
        state: FrameState | None = None,
        rate: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> list[StoredFrame]:
        """The newest arrivals first, with ``seq`` under ``before``; ``since_ms <= received_ms < until_ms``."""
        query = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS).where(frames.c.tenant == tenant)
        columns = frames.c
        for matches, value in (
            (columns.seq.__lt__, before),
            (columns.source.__eq__, source),
            (columns.rate.__eq__, rate),
            (columns.received_ms.__ge__, since_ms),
            (columns.received_ms.__lt__, until_ms),
        ):
            if value is not None:
                query = query.where(matches(value))
        if state is FrameState.DECODING:
            query = query.where(_HELD)
        elif state is not None:
            query = query.where(frames.c.state == state.value)
            query = query.where(jobs.c.lease_until.is_(None)) if state is FrameState.RECEIVED else query
        with self._database.read() as connection:
            return [row_of(found) for found in connection.execute(query.order_by(frames.c.seq.desc()).limit(limit))]

    def sources(self, tenant: str, limit: int = 1000) -> list[dict[str, Any]]:
        """Sources, the latest first: source, first_seen_ms, last_seen_ms, frames, bytes."""
        query = sa.select(*(c for c in sources.c if c.name != "tenant")).where(sources.c.tenant == tenant)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(sources.c.last_seen_ms.desc()).limit(limit))
            return [dict(row._mapping) for row in found]

    def backlog(self, tenant: str) -> dict[str, int]:
        """Frames that wait to be decoded, by source; sources without any are left out."""
        waits = sa.and_(frames.c.tenant == tenant, frames.c.state == FrameState.RECEIVED.value, jobs.c.wanted)
        query = sa.select(frames.c.source, sa.func.count()).select_from(jobs.join(frames, frames.c.seq == jobs.c.seq))
        with self._database.read() as connection:
            found = connection.execute(query.where(waits).group_by(frames.c.source))
            return {str(one): int(count) for one, count in found}

    def arrived(self) -> int:
        """Frames that were ever stored. Does not count rows."""
        with self._database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.sum(sources.c.frames))) or 0)

    def counts(self, tenant: str | None = None) -> dict[str, int]:
        """Frames by state, of one tenant or of all, from the counters: no row of ``frames`` is read for it."""
        query = sa.select(tallies.c.state, sa.func.sum(tallies.c.frames)).group_by(tallies.c.state)
        held = sa.select(sa.func.count()).select_from(jobs.join(frames, frames.c.seq == jobs.c.seq)).where(_HELD)
        if tenant is not None:
            query, held = query.where(tallies.c.tenant == tenant), held.where(frames.c.tenant == tenant)
        with self._database.read() as connection:
            counted = {str(state): int(count) for state, count in connection.execute(query)}
            decoding = min(int(connection.scalar(held) or 0), counted.get(FrameState.RECEIVED.value, 0))
        counted[FrameState.DECODING.value] = decoding
        counted[FrameState.RECEIVED.value] = counted.get(FrameState.RECEIVED.value, 0) - decoding
        return {state.value: counted.get(state.value, 0) for state in FrameState}

    def prune(self, *, older_than_ms: int | None = None, keep_bytes: int | None = None, limit: int = 1000) -> int:
        """Empty finished frames: those received before ``older_than_ms``, and the oldest beyond ``keep_bytes`` in all.

        At most ``limit`` frames at once. Returns how many were emptied.
        """
        finished = frames.c.state.in_([FrameState.DONE.value, FrameState.FAILED.value])
        oldest = sa.select(frames.c.seq, frames.c.bytes).where(finished).order_by(frames.c.seq).limit(limit)
        with self._database.write() as connection:
            doomed: list[int] = []
            if older_than_ms is not None:
                doomed += connection.execute(oldest.where(frames.c.received_ms < older_than_ms)).scalars().all()
            if keep_bytes is not None:
                kept = tallies.c.state != FrameState.PRUNED.value
                total = int(connection.scalar(sa.select(sa.func.sum(tallies.c.bytes)).where(kept)) or 0)
                for seq, size in connection.execute(oldest):
                    if total <= keep_bytes:
                        break
                    doomed.append(seq)
                    total -= size
            if doomed:
                emptied = sa.update(frames).where(frames.c.seq.in_(doomed))
                connection.execute(
                    emptied.values(state=FrameState.PRUNED.value, bitstream=None, reason="pruned by retention")
                )
                connection.execute(sa.delete(jobs).where(jobs.c.seq.in_(doomed)))
        return len(set(doomed))

    def forget(self, tenant: str, frame: UUID) -> None:
        """Remove a frame with its job and its id. Only for frames that were stored for one request."""
        which = sa.select(frames.c.seq).where(frames.c.tenant == tenant, frames.c.id == frame).scalar_subquery()
        with self._database.write() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.seq == which))
            connection.execute(sa.delete(frames).where(frames.c.tenant == tenant, frames.c.id == frame))

    def _add(
        self, connection: sa.Connection, new: Sequence[NewFrame], now: float, deadline: float | None
    ) -> list[Added]:
        insert = self._database.insert(frames).on_conflict_do_nothing(index_elements=["tenant", "id"])
        values = [self._values(frame, now) for frame in new]
        fresh: dict[Key, int] = {
            (found.tenant, found.id): found.seq
            for found in self._database.insert_rows(
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
            self._database.insert_rows(connection, self._database.insert(jobs), queued)
        totals: dict[Key | tuple[str, str], tuple[int, int]] = {}
        for frame in stored:
            count, size = totals.get((frame.tenant, frame.source), (0, 0))
            totals[frame.tenant, frame.source] = (count + 1, size + len(frame.bitstream))
        self._touch(connection, totals, now)
        return added

    def _digests(self, connection: sa.Connection, old: list[NewFrame]) -> dict[Key, str]:
        """The digests that are stored under the ids of ``old``."""
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
            "state": FrameState.RECEIVED.value,
        }

    def _job(self, seq: int, frame: NewFrame, now: float, deadline: float | None) -> dict[str, Any]:
        highest = DEMAND_PRIORITY if deadline else DEMAND_PRIORITY - 1
        return {
            "seq": seq,
            "fingerprint": frame.fingerprint,
            "bucket": bucket_of(frame.width, frame.height),
            "turn": turn_of(now, min(frame.priority, highest), self._aging_seconds),
            "deadline_ms": int(deadline * 1000) if deadline else NEVER_MS,
            "queued_ms": int(now * 1000),
            "wanted": True,
            "attempts": 0,
        }

    def _touch(self, connection: sa.Connection, totals: dict[Any, tuple[int, int]], now: float) -> None:
        """Add to the sources' totals, last in the transaction and in one order, so that front ends cannot deadlock."""
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
        insert = self._database.insert(sources)
        given = insert.excluded
        update = insert.on_conflict_do_update(
            index_elements=["tenant", "source"],
            set_={
                "last_seen_ms": given.last_seen_ms,
                "frames": sources.c.frames + given.frames,
                "bytes": sources.c.bytes + given.bytes,
            },
        )
        self._database.insert_rows(connection, update, values)
