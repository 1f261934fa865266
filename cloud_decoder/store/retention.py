"""Deletion of old bitstreams in two steps: frames are marked, and their bitstreams are removed after a grace period.

A marked frame is ``pruned`` for every reader, and :meth:`Retention.undelete` brings it back. Rows are kept for good,
so that an id is never used twice. Times are milliseconds since 1970 by
:class:`~cloud_decoder.store.clock.TrustedClock`.

Each call is one short transaction, so that frames can be stored between two calls.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.records import FrameState
from cloud_decoder.store.schema import frames, jobs, tallies

BATCH = 1000
LOOK = 20_000
"""Frames of one tenant and state that are looked at for old ones. They are in order of arrival, and so are ages."""
PRUNED = "pruned by retention"
_FINISHED = (FrameState.DONE.value, FrameState.FAILED.value)


class Retention:
    """Marks, removes and restores finished frames."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mark(
        self, now_ms: int, *, older_than_ms: int | None = None, keep_bytes: int | None = None, limit: int = BATCH
    ) -> int:
        """Mark finished frames: those received before ``older_than_ms``, and the oldest beyond ``keep_bytes`` in all.

        At most ``limit`` frames, and the finished answers to requests about them. Returns how many were marked.
        """
        with self._database.read() as connection:
            doomed = self._doomed(connection, older_than_ms, keep_bytes, limit)
        if not doomed:
            return 0
        # They were chosen outside of the transaction: a frame that was queued again since stays.
        chosen = sa.and_(self._database.among(frames.c.seq, doomed), frames.c.state.in_(_FINISHED))
        values = {
            "state": FrameState.PRUNED.value,
            "deleted_ms": now_ms,
            "reason": sa.func.coalesce(frames.c.reason, PRUNED),  # an undeleted frame has its own reason again
        }

        def work(connection: sa.Connection) -> int:
            update = sa.update(frames).where(chosen).values(values).returning(frames.c.seq)
            marked = list(connection.execute(update).scalars())
            parents = frames.alias("parents")
            new = marked
            while new:  # an answer may have answers of its own, if it is a new picture
                theirs = sa.select(parents.c.seq).where(
                    parents.c.tenant == frames.c.tenant,
                    parents.c.id == frames.c.parent,
                    self._database.among(parents.c.seq, new),
                )
                answers = sa.and_(frames.c.parent.is_not(None), frames.c.state.in_(_FINISHED), sa.exists(theirs))
                update = sa.update(frames).where(answers).values(values).returning(frames.c.seq)
                new = list(connection.execute(update).scalars())
                marked = marked + new
            connection.execute(sa.delete(jobs).where(self._database.among(jobs.c.seq, marked)))
            return len(marked)

        return self._database.commit(work)

    def remove(self, *, before_ms: int | None = None, excess_bytes: int = 0, limit: int = BATCH) -> tuple[int, int]:
        """Remove the bitstreams of marked frames: of those marked before ``before_ms``, and of the oldest until
        ``excess_bytes`` are free.

        At most ``limit`` frames. Returns how many were removed, and their bytes. They cannot be brought back.
        """
        oldest = sa.select(frames.c.seq, frames.c.bytes, frames.c.deleted_ms).where(frames.c.deleted_ms.is_not(None))
        with self._database.read() as connection:
            found = connection.execute(oldest.order_by(frames.c.deleted_ms, frames.c.seq).limit(limit)).all()
        doomed, size = [], 0
        for row in found:
            if size >= excess_bytes and (before_ms is None or row.deleted_ms >= before_ms):
                break
            doomed.append(row.seq)
            size += row.bytes
        if not doomed:
            return 0, 0
        marked = sa.and_(self._database.among(frames.c.seq, doomed), frames.c.deleted_ms.is_not(None))
        emptied = sa.update(frames).where(marked).values(bitstream=None, deleted_ms=None, reason=PRUNED)
        return self._database.commit(lambda connection: int(connection.execute(emptied).rowcount)), size

    def marked(self) -> tuple[int, int]:
        """Frames that can still be brought back, and their bytes."""
        with self._database.read() as connection:
            return self._marked(connection)

    def undelete(self, tenant: str | None = None, id: UUID | None = None) -> int:
        """Bring marked frames back, all or those of a tenant or an id, with the answers to requests about it.

        Returns how many.
        """
        which: sa.ColumnElement[bool] = frames.c.deleted_ms.is_not(None)
        if tenant is not None:
            which = sa.and_(which, frames.c.tenant == tenant)
        if id is not None:
            which = sa.and_(which, sa.or_(frames.c.id == id, frames.c.parent == id))
        decoded = frames.c.available_ms.is_not(None)  # only a decoded frame was ever available
        values: dict[str, Any] = {
            "state": sa.case((decoded, FrameState.DONE.value), else_=FrameState.FAILED.value),
            "reason": sa.case((decoded, sa.null()), else_=frames.c.reason),
            "deleted_ms": None,
        }
        some = sa.select(frames.c.seq).where(which).order_by(frames.c.deleted_ms, frames.c.seq).limit(BATCH)
        count = 0
        while True:
            with self._database.write() as connection:
                seqs = connection.execute(some).scalars().all()
                if not seqs:
                    return count
                back = sa.and_(self._database.among(frames.c.seq, seqs), which)
                connection.execute(sa.update(frames).where(back).values(values))
            count += len(seqs)

    def _marked(self, connection: sa.Connection) -> tuple[int, int]:
        query = sa.select(sa.func.count(), sa.func.sum(frames.c.bytes)).where(frames.c.deleted_ms.is_not(None))
        count, size = connection.execute(query).one()
        return int(count), int(size or 0)

    def _doomed(
        self, connection: sa.Connection, older_than_ms: int | None, keep_bytes: int | None, limit: int
    ) -> list[int]:
        kept = sa.select(tallies.c.tenant, tallies.c.state, sa.func.sum(tallies.c.frames), sa.func.sum(tallies.c.bytes))
        kept = kept.where(tallies.c.state != FrameState.PRUNED.value).group_by(tallies.c.tenant, tallies.c.state)
        groups = connection.execute(kept).all()
        finished = [(tenant, state) for tenant, state, count, _ in groups if count and state in _FINISHED]
        doomed: list[int] = []
        if older_than_ms is not None:
            doomed += [seq for seq, _ in self._oldest(connection, finished, older_than_ms, limit)]
        if keep_bytes is not None:
            total = sum(int(size) for *_, size in groups)
            for seq, size in self._oldest(connection, finished, None, limit) if total > keep_bytes else ():
                if total <= keep_bytes:
                    break
                doomed.append(seq)
                total -= size
        return sorted(set(doomed))[:limit]

    def _oldest(
        self, connection: sa.Connection, groups: list[tuple[str, str]], older_than_ms: int | None, limit: int
    ) -> Iterator[tuple[int, int]]:
        """(seq, bytes) of the oldest frames of all groups of (tenant, state), at most ``limit`` of each, by ``seq``."""
        found = []
        for tenant, state in groups:
            columns = (frames.c.seq, frames.c.bytes, frames.c.received_ms)
            first = sa.select(*columns).where(frames.c.tenant == tenant, frames.c.state == state)
            first = first.order_by(frames.c.seq)
            if older_than_ms is None:
                query = first.limit(limit)
            else:
                looked = first.limit(LOOK).subquery()
                query = sa.select(looked).where(looked.c.received_ms < older_than_ms).order_by(looked.c.seq)
                query = query.limit(limit)
            found.append([(int(row.seq), int(row.bytes)) for row in connection.execute(query)])
        return heapq.merge(*found)
