"""Looking at what is stored, and emptying the oldest of it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.store.database import StoreBase
from cloud_decoder.store.records import State, StoredFrame
from cloud_decoder.store.schema import frames, jobs, sources, tallies

_HELD = sa.and_(frames.c.state == State.RECEIVED.value, jobs.c.lease_until.is_not(None))
_DERIVED = {
    "state": sa.case((_HELD, State.DECODING.value), else_=frames.c.state).label("state"),
    "attempts": sa.func.coalesce(jobs.c.attempts, 0).label("attempts"),
}
ROW_COLUMNS = [_DERIVED[name] if name in _DERIVED else frames.c[name] for name in StoredFrame.__dataclass_fields__]
_WITH_JOBS = frames.outerjoin(jobs, jobs.c.seq == frames.c.seq)


def row_of(found: Any) -> StoredFrame:
    """A result of ``ROW_COLUMNS`` as a :class:`Row`."""
    values = {name: getattr(found, name) for name in StoredFrame.__dataclass_fields__}
    values["state"] = State(values["state"])
    return StoredFrame(**values)


class Shelves(StoreBase):
    """The part of the store that readers and retention use."""

    def get(self, tenant: str, frame: UUID) -> StoredFrame | None:
        """The frame of that id, if it is this tenant's."""
        query = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS)
        with self.database.read() as connection:
            found = connection.execute(query.where(frames.c.tenant == tenant, frames.c.id == frame)).first()
        return None if found is None else row_of(found)

    def bitstream(self, tenant: str, frame: UUID) -> bytes | None:
        """The frame's bytes as they came; None where unknown or pruned."""
        with self.database.read() as connection:
            found = connection.execute(
                sa.select(frames.c.bitstream).where(frames.c.tenant == tenant, frames.c.id == frame)
            ).scalar()
        return None if found is None else bytes(found)

    def page(
        self,
        tenant: str,
        limit: int,
        before: int | None = None,
        *,
        source: str | None = None,
        state: State | None = None,
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
        if state is State.DECODING:
            query = query.where(_HELD)
        elif state is not None:
            query = query.where(frames.c.state == state.value)
            query = query.where(jobs.c.lease_until.is_(None)) if state is State.RECEIVED else query
        with self.database.read() as connection:
            return [row_of(found) for found in connection.execute(query.order_by(frames.c.seq.desc()).limit(limit))]

    def sources(self, tenant: str, limit: int = 1000) -> list[dict[str, Any]]:
        """Who has sent, the latest first: source, first_seen_ms, last_seen_ms, frames, bytes."""
        query = sa.select(*(c for c in sources.c if c.name != "tenant")).where(sources.c.tenant == tenant)
        with self.database.read() as connection:
            found = connection.execute(query.order_by(sources.c.last_seen_ms.desc()).limit(limit))
            return [dict(row._mapping) for row in found]

    def backlog(self, tenant: str) -> dict[str, int]:
        """Frames that wait for their picture, by source; sources without any are left out."""
        waits = sa.and_(frames.c.tenant == tenant, frames.c.state == State.RECEIVED.value, jobs.c.wanted)
        query = sa.select(frames.c.source, sa.func.count()).select_from(jobs.join(frames, frames.c.seq == jobs.c.seq))
        with self.database.read() as connection:
            found = connection.execute(query.where(waits).group_by(frames.c.source))
            return {str(one): int(count) for one, count in found}

    def arrived(self) -> int:
        """Frames ever stored, without counting them."""
        with self.database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.sum(sources.c.frames))) or 0)

    def counts(self, tenant: str | None = None) -> dict[str, int]:
        """Frames by state, of one tenant or of all. However many there are, none of them is looked at."""
        query = sa.select(tallies.c.state, sa.func.sum(tallies.c.frames)).group_by(tallies.c.state)
        held = sa.select(sa.func.count()).select_from(jobs.join(frames, frames.c.seq == jobs.c.seq)).where(_HELD)
        if tenant is not None:
            query, held = query.where(tallies.c.tenant == tenant), held.where(frames.c.tenant == tenant)
        with self.database.read() as connection:
            counted = {str(state): int(count) for state, count in connection.execute(query)}
            decoding = min(int(connection.scalar(held) or 0), counted.get(State.RECEIVED.value, 0))
        counted[State.DECODING.value] = decoding
        counted[State.RECEIVED.value] = counted.get(State.RECEIVED.value, 0) - decoding
        return {state.value: counted.get(state.value, 0) for state in State}

    def prune(self, *, older_than_ms: int | None = None, keep_bytes: int | None = None, limit: int = 1000) -> int:
        """Empty the oldest decoded or failed frames.

        Received before ``older_than_ms``, or beyond ``keep_bytes`` in all.
        """
        finished = frames.c.state.in_([State.DONE.value, State.FAILED.value])
        oldest = sa.select(frames.c.seq, frames.c.bytes).where(finished).order_by(frames.c.seq).limit(limit)
        with self.database.write() as connection:
            doomed: list[int] = []
            if older_than_ms is not None:
                doomed += connection.execute(oldest.where(frames.c.received_ms < older_than_ms)).scalars().all()
            if keep_bytes is not None:
                kept = tallies.c.state != State.PRUNED.value
                total = int(connection.scalar(sa.select(sa.func.sum(tallies.c.bytes)).where(kept)) or 0)
                for seq, size in connection.execute(oldest):
                    if total <= keep_bytes:
                        break
                    doomed.append(seq)
                    total -= size
            if doomed:
                emptied = sa.update(frames).where(frames.c.seq.in_(doomed))
                connection.execute(
                    emptied.values(state=State.PRUNED.value, bitstream=None, reason="pruned by retention")
                )
                connection.execute(sa.delete(jobs).where(jobs.c.seq.in_(doomed)))
        return len(set(doomed))

    def forget(self, tenant: str, frame: UUID) -> None:
        """Remove a frame, its job and its id: only for what was never anybody's to keep."""
        which = sa.select(frames.c.seq).where(frames.c.tenant == tenant, frames.c.id == frame).scalar_subquery()
        with self.database.write() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.seq == which))
            connection.execute(sa.delete(frames).where(frames.c.tenant == tenant, frames.c.id == frame))
