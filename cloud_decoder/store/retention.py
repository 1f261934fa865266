"""Deletion of bitstreams in two steps: frames are marked, and their bitstreams are removed after a grace period.

A limit in bytes holds for all tenants together, and is shared fairly: only tenants with more than their share of it
lose frames, those with the most first, and each its own oldest.

Retention marks old frames, and clients mark those that they delete. A marked frame is ``pruned`` for every reader, and
:meth:`Retention.undelete` brings it back. Rows are kept for good, so that an id is never used twice: a frame that an
edge delivers again is a duplicate, and stays deleted. Times are milliseconds since 1970 by
:class:`~cloud_decoder.store.clock.TrustedClock`.

Each call is one short transaction, so that frames can be stored between two calls.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.frames import DELETED, DELETED_WITH_PARENT, PRUNED, job_of
from cloud_decoder.store.records import Deleted, DeletedBy, FrameState, RequestKind
from cloud_decoder.store.requests import end_about
from cloud_decoder.store.schema import KEPT, frames, jobs, sources, tallies

BATCH = 1000
LOOK = 20_000
"""Frames of one tenant and state that are looked at for old ones. They are in order of arrival, and so are ages."""
_FINISHED = (FrameState.DONE.value, FrameState.FAILED.value)


@dataclass(frozen=True)
class Removed:
    """What a call of :meth:`Retention.remove` has removed: frames, their bytes, and the digests of those that clients
    had deleted, and of the frames that these answered requests about."""

    frames: int = 0
    bytes: int = 0
    erased: list[str] = field(default_factory=list)


class Retention:
    """Marks, removes and restores frames. ``aging_seconds`` of waiting are worth one level of priority."""

    def __init__(self, database: Database, aging_seconds: float) -> None:
        self._database, self._aging_seconds = database, aging_seconds

    def mark(
        self, now_ms: int, *, older_than_ms: int | None = None, keep_bytes: int | None = None, limit: int = BATCH
    ) -> int:
        """Mark finished frames: those received before ``older_than_ms``, and those beyond ``keep_bytes`` in all.

        The latter are the oldest of the tenants that hold more than their :func:`share` of ``keep_bytes``. At most
        ``limit`` frames, and the finished answers to requests about them, except new pictures. Open requests about them
        end. Returns how many were marked.
        """
        with self._database.read() as connection:
            doomed = self._doomed(connection, older_than_ms, keep_bytes, limit)
        return self._mark(doomed, now_ms)

    def mark_source(
        self,
        tenant: str,
        source: str,
        now_ms: int,
        *,
        older_than_ms: int | None = None,
        keep_bytes: int | None = None,
        limit: int = LOOK,
    ) -> int:
        """:meth:`mark` for the frames of one source, :data:`BATCH` in each transaction. What the source holds is added
        up once for all ``limit`` of them, not for each transaction."""
        kept = sa.and_(frames.c.tenant == tenant, frames.c.source == source, KEPT)
        oldest = sa.select(frames.c.seq, frames.c.bytes).where(kept, frames.c.state.in_(_FINISHED))
        oldest = oldest.order_by(frames.c.seq).limit(limit)
        doomed: list[int] = []
        with self._database.read() as connection:
            if older_than_ms is not None:
                found = connection.execute(oldest.where(frames.c.received_ms < older_than_ms))
                doomed += [int(row.seq) for row in found]
            if keep_bytes is not None:
                total = int(connection.scalar(sa.select(sa.func.sum(frames.c.bytes)).where(kept)) or 0)
                for row in connection.execute(oldest) if total > keep_bytes else ():
                    if total <= keep_bytes:
                        break
                    doomed.append(int(row.seq))
                    total -= row.bytes
        chosen = sorted(set(doomed))[:limit]
        return sum(self._mark(chosen[place : place + BATCH], now_ms) for place in range(0, len(chosen), BATCH))

    def sources(self) -> list[tuple[str, str]]:
        """Tenant and source of all frames that were ever stored."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(sources.c.tenant, sources.c.source))
            return [(str(row.tenant), str(row.source)) for row in found]

    def delete(self, tenant: str, id: UUID, now_ms: int) -> Deleted | None:
        """Mark a frame, whatever its state, and the answers to requests about it, and end its open requests.

        None for a frame that is not this tenant's. A second call does nothing.
        """
        which = sa.select(frames.c.seq).where(frames.c.tenant == tenant, frames.c.id == id)
        with self._database.read() as connection:
            seq = connection.scalar(which)
        return None if seq is None else self._erase(tenant, [seq], now_ms)

    def delete_source(
        self,
        tenant: str,
        source: str,
        now_ms: int,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        after: int = 0,
        limit: int = BATCH,
    ) -> Deleted:
        """:meth:`delete` for the frames of a source with ``since_ms <= received_ms < until_ms``.

        Looks at ``limit`` frames with ``seq`` over ``after``; :attr:`Deleted.after` is where the next call begins.
        """
        columns = (frames.c.seq, frames.c.received_ms)
        query = sa.select(*columns).where(frames.c.tenant == tenant, frames.c.source == source, frames.c.seq > after)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(frames.c.seq).limit(limit)).all()
        seqs = [
            row.seq
            for row in found
            if (since_ms is None or row.received_ms >= since_ms) and (until_ms is None or row.received_ms < until_ms)
        ]
        following = int(found[-1].seq) if len(found) == limit else None
        done = self._erase(tenant, seqs, now_ms) if seqs else Deleted([], [])
        return Deleted(done.frames, done.requests, following, done.parents)

    def _erase(self, tenant: str, seqs: Sequence[int], now_ms: int) -> Deleted:
        client = DeletedBy.CLIENT.value
        mine = sa.and_(frames.c.tenant == tenant, frames.c.deleted_by.is_distinct_from(client))
        pruned = frames.c.state == FrameState.PRUNED.value
        values = {
            "state": FrameState.PRUNED.value,
            "deleted_by": client,
            # Retention may have removed the bitstream already. Such a frame must not look as if it could come back.
            "deleted_ms": sa.case((pruned, frames.c.deleted_ms), else_=now_ms),
            "reason": sa.case((frames.c.reason == PRUNED, DELETED), else_=sa.func.coalesce(frames.c.reason, DELETED)),
        }

        def mark(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[Any]:
            update = sa.update(frames).where(which, mine).values(values)
            columns = (frames.c.seq, frames.c.tenant, frames.c.id, frames.c.digest, frames.c.parent)
            return list(connection.execute(update.returning(*columns)))

        def unqueue(connection: sa.Connection, seqs: Sequence[int]) -> None:
            connection.execute(sa.delete(jobs).where(self._database.among(jobs.c.seq, seqs)))

        def work(connection: sa.Connection) -> Deleted:
            unqueue(connection, seqs)  # jobs before frames, as JobQueue.finish does, so that the two cannot deadlock
            marked = mark(connection, self._database.among(frames.c.seq, seqs))
            ids = [row.id for row in marked]
            if not ids:
                return Deleted([], [])
            new = ids
            while new:  # an answer may have answers of its own, if it is a new picture
                answers = mark(connection, frames.c.parent.in_(new))
                new = [row.id for row in answers]
                marked += answers
                ids = ids + new
            unqueue(connection, [row.seq for row in marked])
            ended = end_about(connection, tenant, ids, now_ms)
            return Deleted(
                [(row.id, str(row.digest)) for row in marked], ended, parents=_digests_of_parents(connection, marked)
            )

        return self._database.commit(work)

    def _mark(self, doomed: Sequence[int], now_ms: int) -> int:
        if not doomed:
            return 0
        # They were chosen outside of the transaction: a frame that was queued again since stays.
        chosen = sa.and_(self._database.among(frames.c.seq, doomed), frames.c.state.in_(_FINISHED))
        values = {
            "state": FrameState.PRUNED.value,
            "deleted_ms": now_ms,
            "deleted_by": DeletedBy.RETENTION.value,
            "reason": sa.func.coalesce(frames.c.reason, PRUNED),  # an undeleted frame has its own reason again
        }

        def work(connection: sa.Connection) -> int:
            columns = (frames.c.seq, frames.c.tenant, frames.c.id)
            marked = connection.execute(sa.update(frames).where(chosen).values(values).returning(*columns)).all()
            parents = frames.alias("parents")
            theirs = sa.select(parents.c.seq).where(
                parents.c.tenant == frames.c.tenant,
                parents.c.id == frames.c.parent,
                self._database.among(parents.c.seq, [row.seq for row in marked]),
            )
            # A new picture is a picture of its own, with an age of its own. Only it can have answers itself.
            bound = sa.and_(frames.c.parent.is_not(None), frames.c.kind != RequestKind.NOW.value)
            answers = sa.and_(bound, frames.c.state.in_(_FINISHED), sa.exists(theirs))
            update = sa.update(frames).where(answers).values(values).returning(frames.c.seq)
            seqs = [row.seq for row in marked] + list(connection.execute(update).scalars())
            connection.execute(sa.delete(jobs).where(self._database.among(jobs.c.seq, seqs)))
            for tenant in {row.tenant for row in marked}:
                ids = [row.id for row in marked if row.tenant == tenant]
                end_about(connection, tenant, ids, now_ms, "retention has deleted the frame")
            return len(seqs)

        return self._database.commit(work)

    def remove(
        self,
        *,
        before_ms: int | None = None,
        excess_bytes: int = 0,
        only: DeletedBy | None = None,
        limit: int = BATCH,
    ) -> Removed:
        """Remove the bitstreams of frames that were marked before ``before_ms``.

        If these free fewer than ``excess_bytes``, more marked frames follow: those of the tenants that hold more than
        their :func:`share` of what may stay marked, in the order of their marks. ``only``: none but the frames that
        were marked so. At most ``limit`` frames. They cannot be brought back.
        """
        marked = sa.and_(
            frames.c.deleted_ms.is_not(None), *([] if only is None else [frames.c.deleted_by == only.value])
        )
        oldest = sa.select(frames.c.seq, frames.c.bytes, frames.c.tenant).where(marked)
        oldest = oldest.order_by(frames.c.deleted_ms, frames.c.seq).limit(limit)
        with self._database.read() as connection:
            due = [] if before_ms is None else connection.execute(oldest.where(frames.c.deleted_ms < before_ms)).all()
            doomed, excess = [int(row.seq) for row in due], excess_bytes - sum(row.bytes for row in due)
            if excess > 0 and len(doomed) < limit:
                # The bare column would let the database go through all frames of a tenant, for their order.
                owner = sa.func.coalesce(frames.c.tenant, "")
                sums = sa.select(owner, sa.func.sum(frames.c.bytes)).where(marked).group_by(owner)
                sizes = {str(tenant): int(size) for tenant, size in connection.execute(sums)}
                for row in due:
                    sizes[row.tenant] -= row.bytes
                later = oldest if before_ms is None else oldest.where(frames.c.deleted_ms >= before_ms)
                doomed += _beyond(
                    sizes,
                    sum(sizes.values()) - excess,
                    lambda tenant: connection.execute(later.where(owner == tenant)),
                )
        doomed = doomed[:limit]
        if not doomed:
            return Removed()
        marked = sa.and_(self._database.among(frames.c.seq, doomed), frames.c.deleted_ms.is_not(None))
        emptied = sa.update(frames).where(marked).values(bitstream=None, deleted_ms=None)
        columns = (frames.c.bytes, frames.c.deleted_by, frames.c.digest, frames.c.tenant, frames.c.parent)

        def work(connection: sa.Connection) -> Removed:
            removed = connection.execute(emptied.returning(*columns)).all()
            by_clients = [row for row in removed if row.deleted_by == DeletedBy.CLIENT.value]
            erased = [str(row.digest) for row in by_clients] + _digests_of_parents(connection, by_clients)
            return Removed(len(removed), sum(row.bytes for row in removed), erased)

        return self._database.commit(work)

    def marked(self) -> tuple[int, int]:
        """Frames that can still be brought back, and their bytes."""
        with self._database.read() as connection:
            return self._marked(connection)

    def undelete(self, tenant: str | None = None, id: UUID | None = None, *, deleted: bool = False) -> int:
        """Bring marked frames back, all or those of a tenant or an id, with the answers to requests about it.

        Frames that a client has deleted come back only with their id or with ``deleted``. Returns how many.
        """
        which: sa.ColumnElement[bool] = frames.c.deleted_ms.is_not(None)
        if tenant is not None:
            which = sa.and_(which, frames.c.tenant == tenant)
        if id is not None:
            family = sa.select(frames.c.tenant, frames.c.id).where(frames.c.id == id).cte("family", recursive=True)
            answers = frames.alias("answers")
            theirs = sa.and_(answers.c.tenant == family.c.tenant, answers.c.parent == family.c.id)
            family = family.union(sa.select(answers.c.tenant, answers.c.id).where(theirs))
            those = sa.tuple_(frames.c.tenant, frames.c.id)
            which = sa.and_(which, those.in_(sa.select(family.c.tenant, family.c.id)))
        elif not deleted:
            which = sa.and_(which, frames.c.deleted_by.is_distinct_from(DeletedBy.CLIENT.value))
        decoded = frames.c.available_ms.is_not(None)  # only a decoded frame was ever available
        waited = frames.c.reason.in_([DELETED, DELETED_WITH_PARENT])  # a failed frame has kept its own reason
        values: dict[str, Any] = {
            "state": sa.case(
                (decoded, FrameState.DONE.value),
                (waited, FrameState.RECEIVED.value),
                else_=FrameState.FAILED.value,
            ),
            "reason": sa.case((sa.or_(decoded, waited), sa.null()), else_=frames.c.reason),
            "deleted_ms": None,
            "deleted_by": None,
        }
        some = sa.select(frames.c.seq).where(which).order_by(frames.c.deleted_ms, frames.c.seq).limit(BATCH)
        count = 0
        while True:
            with self._database.write() as connection:
                seqs = connection.execute(some).scalars().all()
                if not seqs:
                    return count
                back = sa.and_(self._database.among(frames.c.seq, seqs), which)
                columns = (
                    frames.c.seq,
                    frames.c.tenant,
                    frames.c.fingerprint,
                    frames.c.width,
                    frames.c.height,
                    frames.c.priority,
                )
                update = sa.update(frames).where(back).values(values)
                found = connection.execute(update.returning(*columns, frames.c.state, frames.c.wanted)).all()
                now = self._database.clock()
                waiting = [row for row in found if row.state == FrameState.RECEIVED.value and row.wanted]
                queued = [job_of(row, now, self._aging_seconds) for row in waiting]
                if queued:
                    insert = self._database.insert(jobs).on_conflict_do_nothing(index_elements=["seq"])
                    self._database.insert_rows(connection, insert, queued)
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
        if keep_bytes is not None and not doomed:  # the old frames go first, and may make room enough
            sizes: dict[str, int] = {}
            for tenant, _, _, size in groups:
                sizes[tenant] = sizes.get(tenant, 0) + int(size)

            def oldest(tenant: str) -> Iterator[tuple[int, int]]:
                mine = [group for group in finished if group[0] == tenant]
                return self._oldest(connection, mine, None, limit)

            doomed += _beyond(sizes, keep_bytes, oldest)
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


def _digests_of_parents(connection: sa.Connection, answers: Sequence[Any]) -> list[str]:
    """The digests of the frames that these rows, which have ``tenant`` and ``parent``, answer requests about."""
    parents = {(row.tenant, row.parent) for row in answers if row.parent is not None}
    if not parents:
        return []
    query = sa.select(frames.c.digest).where(sa.tuple_(frames.c.tenant, frames.c.id).in_(list(parents)))
    return [str(digest) for digest in connection.execute(query).scalars()]


def share(sizes: Mapping[str, int], room: int) -> float:
    """What each tenant may keep so that all together fit into ``room`` bytes; infinite where they fit as they are.

    Every tenant may keep ``room / len(sizes)`` or more: what small tenants do not need is divided among the others.
    """
    left = float(max(0, room))
    for place, size in enumerate(sorted(sizes.values())):
        equal = left / (len(sizes) - place)
        if size > equal:
            return equal
        left -= size
    return math.inf


def _beyond(sizes: Mapping[str, int], room: int, oldest: Callable[[str], Iterable[Sequence[Any]]]) -> list[int]:
    """The frames to give up so that ``sizes`` fit into ``room``, those of the largest tenant first.

    ``oldest`` has the frames of a tenant in the order in which they go, as rows that begin with ``seq`` and bytes.
    """
    most, total = share(sizes, room), sum(sizes.values())
    doomed: list[int] = []
    for tenant, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size <= most or total <= room:
            break
        for seq, count, *_ in oldest(tenant):
            if size <= most or total <= room:
                break
            doomed.append(int(seq))
            size, total = size - int(count), total - int(count)
    return doomed
