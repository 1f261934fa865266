"""Stored frames: inserting them with their jobs, reading them, listing them and counting them.

One transaction stores frames and queues their jobs, in as few statements as a batch needs. ``Frames.add``, which the
group commit calls (grpc_api/group_commit.py), also recognises an id that is there already: a duplicate if the bytes are
the same, a conflict if not. Methods that answer a client take its tenant and select only that tenant's rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aeic.bitstream import Frame
from cloud_decoder.errors import StoredDamage
from cloud_decoder.store.database import Database
from cloud_decoder.store.records import (
    DEMAND_PRIORITY,
    Added,
    DeletedBy,
    FrameState,
    NewFrame,
    Page,
    RequestKind,
    StoredFrame,
)
from cloud_decoder.store.schema import KEPT, NEVER_MS, frames, jobs, requests, source_tallies, sources, tallies
from cloud_decoder.tiling import tile_shape

log = logging.getLogger(__name__)

DAMAGED = "its stored bytes have changed since they arrived: restore the store from a backup"
"""The reason of frames whose bitstream does not have its digest any more."""
PRUNED = "pruned by retention"
DELETED = "deleted by a client"
DELETED_WITH_PARENT = "it answers a request about a frame that was deleted before"
Key = tuple[str, UUID]
LOOK = 20_000
"""Frames that one page of a filtered list looks at, where an index has everything that the filter needs."""
LOOK_AT_ROWS = 1_000
"""The same where the rows have to be read."""

_HELD = sa.and_(frames.c.state == FrameState.RECEIVED.value, jobs.c.lease_until.is_not(None))
_DERIVED = {
    "state": sa.case((_HELD, FrameState.DECODING.value), else_=frames.c.state).label("state"),
    "attempts": sa.func.coalesce(jobs.c.attempts, 0).label("attempts"),
}
ROW_COLUMNS = [_DERIVED[name] if name in _DERIVED else frames.c[name] for name in StoredFrame.__dataclass_fields__]
_WITH_JOBS = frames.outerjoin(jobs, jobs.c.seq == frames.c.seq)


def is_request_id(id: UUID) -> bool:
    """Whether a frame of that id may answer a request: their ids are the only ones of version 8."""
    return id.version == 8


def fits(answer: NewFrame, kind: RequestKind, region: Sequence[int] | None, max_bytes: int) -> bool:
    """Whether an answer is what was asked for: a file for an original and else a frame, of at most ``max_bytes``, and
    no larger than the region (x, y, width, height). Boxes never enlarge."""
    if (answer.media_type is not None) != (kind is RequestKind.ORIGINAL) or len(answer.bitstream) > max_bytes:
        return False
    return region is None or (answer.width <= region[2] and answer.height <= region[3])


def _goes_with(parent: Any, kind: str) -> bool:
    """Whether an answer is deleted with its parent. A new picture outlives one that retention has deleted."""
    if parent.state != FrameState.PRUNED.value:
        return False
    return kind != RequestKind.NOW.value or parent.deleted_by == DeletedBy.CLIENT.value


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


def job_of(frame: Any, now: float, aging_seconds: float) -> dict[str, Any]:
    """The job of a stored frame that goes back into the queue: its seq, tenant, fingerprint, size and priority."""
    return {
        "seq": frame.seq,
        "tenant": frame.tenant,
        "fingerprint": frame.fingerprint,
        "bucket": bucket_of(frame.width, frame.height),
        "turn": turn_of(now, min(frame.priority, DEMAND_PRIORITY - 1), aging_seconds),
        "deadline_ms": NEVER_MS,
        "queued_ms": int(now * 1000),
        "wanted": True,
        "attempts": 0,
    }


class Frames:
    """The frames of all tenants. ``aging_seconds`` of waiting are worth one level of priority."""

    def __init__(self, database: Database, aging_seconds: float) -> None:
        self._database, self._aging_seconds = database, aging_seconds

    def add(
        self, new: Sequence[NewFrame], now: float, deadline: float | None = None, *, received: float | None = None
    ) -> list[Added]:
        """Store frames and queue those that are wanted, in one commit. They are durable when this returns.

        One answer per frame, in order. Of jobs with the same urgency, those with the earlier ``deadline`` come first
        (seconds since 1970). Frames age from ``received``, by default from ``now``.
        """
        if not new:
            return []
        at = now if received is None else received
        return self._database.commit(lambda connection: self._add(connection, new, now, deadline, at))

    def saw(self, tenant: str, source: str, now: float) -> None:
        """Record that ``source`` has connected."""
        self._database.commit(lambda connection: self._touch(connection, {(tenant, source): (0, 0)}, now))

    def get(self, tenant: str, frame: UUID) -> StoredFrame | None:
        """The frame of that id, if it is this tenant's."""
        query = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS)
        with self._database.read() as connection:
            found = connection.execute(query.where(frames.c.tenant == tenant, frames.c.id == frame)).first()
        return None if found is None else row_of(found)

    def many(self, tenant: str, ids: Collection[UUID]) -> dict[UUID, StoredFrame]:
        """Those of the frames that are this tenant's, by id."""
        query = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS).where(frames.c.tenant == tenant, frames.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: row_of(row) for row in connection.execute(query)}

    def bitstream(self, tenant: str, frame: UUID) -> bytes | None:
        """The frame's bytes as they arrived; None where the frame is unknown or pruned.

        ``StoredDamage`` where the stored bytes do not have the frame's digest any more.
        """
        query = sa.select(frames.c.bitstream, frames.c.digest).where(frames.c.tenant == tenant, frames.c.id == frame)
        query = query.where(frames.c.state != FrameState.PRUNED.value)
        with self._database.read() as connection:
            found = connection.execute(query).first()
        if found is None or found.bitstream is None:
            return None
        if not intact(found):
            raise StoredDamage(f"frame {frame}: {DAMAGED}")
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
        parent: UUID | None = None,
    ) -> Page:
        """The newest arrivals first, with ``seq`` under ``before``; ``since_ms <= received_ms < until_ms``.

        A filter that few frames pass is not allowed to read the whole table: after :data:`LOOK` frames the page ends,
        and :attr:`Page.next` says where the next one begins.
        """
        held = sa.select(jobs.c.seq).where(jobs.c.lease_until.is_not(None))
        wanted: list[sa.ColumnElement[bool]] = [frames.c.tenant == tenant]
        stored = FrameState.RECEIVED if state is FrameState.DECODING else state
        if parent is not None:
            wanted.append(frames.c.parent == parent)
        if before is not None:
            wanted.append(frames.c.seq < before)
        if source is not None:
            wanted.append(frames.c.source == source)
        elif stored is not None:
            wanted.append(frames.c.state == stored.value)
        if state is FrameState.DECODING:
            wanted.append(frames.c.seq.in_(held))
        order = frames.c.seq.desc()
        # An index has the first columns. The state is in one of them only.
        rows_needed = source is not None and stored is not None
        look = LOOK_AT_ROWS if rows_needed else LOOK
        columns = [frames.c.seq, frames.c.received_ms, frames.c.rate, *([frames.c.state] if rows_needed else [])]
        row = sa.select(*columns).where(*wanted).order_by(order).limit(look).subquery().c
        filters: list[sa.ColumnElement[bool]] = []
        if rate is not None:
            filters.append(row.rate == rate)
        if since_ms is not None:
            filters.append(row.received_ms >= since_ms)
        if until_ms is not None:
            filters.append(row.received_ms < until_ms)
        if state is FrameState.RECEIVED:
            filters.append(row.seq.not_in(held))
        if stored is not None and rows_needed:
            filters.append(row.state == stored.value)
        if filters:
            found = sa.select(row.seq).where(*filters).order_by(row.seq.desc())
        else:
            found = sa.select(frames.c.seq).where(*wanted).order_by(order)
        with self._database.read() as connection:
            seqs = list(connection.execute(found.limit(limit + 1)).scalars())
            after = seqs[limit - 1] if len(seqs) > limit else None
            if after is None and filters:
                last = sa.select(frames.c.seq).where(*wanted).order_by(order).offset(look - 1).limit(1)
                after = connection.scalar(last)
            rows = (
                sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS).where(self._database.among(frames.c.seq, seqs[:limit]))
            )
            return Page([row_of(row) for row in connection.execute(rows.order_by(order))] if seqs else [], after)

    def regions(self, tenant: str, parent: UUID, limit: int) -> list[StoredFrame]:
        """The newest frames that answer requests for regions of ``parent`` and can be decoded, the newest first."""
        query = (
            sa.select(*ROW_COLUMNS)
            .select_from(_WITH_JOBS)
            .where(
                frames.c.tenant == tenant,
                frames.c.parent == parent,
                frames.c.kind == RequestKind.REGION.value,
                frames.c.media_type.is_(None),
                frames.c.state.not_in([FrameState.FAILED.value, FrameState.PRUNED.value]),
            )
        )
        with self._database.read() as connection:
            return [row_of(row) for row in connection.execute(query.order_by(frames.c.seq.desc()).limit(limit))]

    def sources(self, tenant: str, limit: int = 1000) -> list[dict[str, Any]]:
        """Sources, the latest first: source, first_seen_ms, last_seen_ms, frames, bytes."""
        query = sa.select(*(c for c in sources.c if c.name != "tenant")).where(sources.c.tenant == tenant)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(sources.c.last_seen_ms.desc()).limit(limit))
            return [dict(row._mapping) for row in found]

    def newest(self, tenant: str, limit: int = 1000) -> dict[str, StoredFrame]:
        """The last frame that is kept of each source, by source, of the ``limit`` sources that were seen last.

        Answers to requests do not count: they are parts of older pictures.
        """
        last = (
            sa.select(frames.c.seq)
            .where(frames.c.tenant == sources.c.tenant, frames.c.source == sources.c.source)
            .where(KEPT, frames.c.parent.is_(None))
            .order_by(frames.c.seq.desc())
            .limit(1)
            .scalar_subquery()
        )
        seqs = sa.select(last).where(sources.c.tenant == tenant).order_by(sources.c.last_seen_ms.desc()).limit(limit)
        rows = sa.select(*ROW_COLUMNS).select_from(_WITH_JOBS)
        with self._database.read() as connection:
            found = [seq for seq in connection.execute(seqs).scalars() if seq is not None]
            if not found:
                return {}
            return {
                row.source: row_of(row)
                for row in connection.execute(rows.where(self._database.among(frames.c.seq, found)))
            }

    def last_arrivals(self, since: float, limit: int) -> list[tuple[str, str, int]]:
        """Tenant, source and arrival of its last frame (milliseconds), of sources seen since then, the latest first.

        A source without a stored frame has the time of its first connection. A box whose cameras send under their own
        names, ``BOX/CAMERA``, is left out unless it sends frames itself: its cameras are in the list.
        """
        camera = sources.alias()
        start = sources.c.source + "/"
        is_camera = sa.func.substr(camera.c.source, 1, sa.func.length(start)) == start
        has_cameras = sa.exists().where(camera.c.tenant == sources.c.tenant, camera.c.frames > 0, is_camera)
        arrival = (
            sa.select(frames.c.received_ms)
            .where(frames.c.tenant == sources.c.tenant, frames.c.source == sources.c.source)
            .order_by(frames.c.seq.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = sa.select(sources.c.tenant, sources.c.source, sa.func.coalesce(arrival, sources.c.first_seen_ms))
        query = query.where(sources.c.last_seen_ms >= int(since * 1000), (sources.c.frames > 0) | ~has_cameras)
        query = query.order_by(sources.c.last_seen_ms.desc())
        with self._database.read() as connection:
            return [(str(t), str(s), int(ms)) for t, s, ms in connection.execute(query.limit(limit))]

    def backlog(self, tenant: str) -> dict[str, int]:
        """Frames that are to be decoded on arrival and still wait, by source; sources without any are left out."""
        found = self._backlogs(source_tallies.c.tenant == tenant)
        return {source: count for (_, source), count in found.items()}

    def backlogs(self) -> dict[tuple[str, str], int]:
        """The same of all tenants, by tenant and source."""
        return self._backlogs(sa.true())

    def _backlogs(self, wanted: sa.ColumnElement[bool]) -> dict[tuple[str, str], int]:
        waiting = sa.func.sum(source_tallies.c.waiting)
        key = source_tallies.c.tenant, source_tallies.c.source
        query = sa.select(*key, waiting).where(wanted).group_by(*key).having(waiting > 0)
        with self._database.read() as connection:
            return {(str(tenant), str(source)): int(count) for tenant, source, count in connection.execute(query)}

    def arrived(self) -> int:
        """Frames that were ever stored. Does not count rows."""
        with self._database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.sum(sources.c.frames))) or 0)

    def counts(self, tenant: str | None = None) -> dict[str, int]:
        """Frames by state, of one tenant or of all, from the counters: no row of ``frames`` is read for it."""
        query = sa.select(tallies.c.state, sa.func.sum(tallies.c.frames)).group_by(tallies.c.state)
        # Only leased jobs are looked up. With the bare columns the database could begin with all frames that wait.
        state, owner = (sa.func.coalesce(column, "") for column in (frames.c.state, frames.c.tenant))
        held = sa.select(sa.func.count()).select_from(jobs.join(frames, frames.c.seq == jobs.c.seq))
        held = held.where(jobs.c.lease_until.is_not(None), state == FrameState.RECEIVED.value)
        if tenant is not None:
            query, held = query.where(tallies.c.tenant == tenant), held.where(owner == tenant)
        with self._database.read() as connection:
            counted = {str(state): int(count) for state, count in connection.execute(query)}
            decoding = min(int(connection.scalar(held) or 0), counted.get(FrameState.RECEIVED.value, 0))
        counted[FrameState.DECODING.value] = decoding
        counted[FrameState.RECEIVED.value] = counted.get(FrameState.RECEIVED.value, 0) - decoding
        return {state.value: counted.get(state.value, 0) for state in FrameState}

    def forget(self, tenant: str, frame: UUID) -> None:
        """Remove a frame with its job and its id. Only for frames that were stored for one request."""
        which = sa.select(frames.c.seq).where(frames.c.tenant == tenant, frames.c.id == frame).scalar_subquery()
        with self._database.write() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.seq == which))
            connection.execute(sa.delete(frames).where(frames.c.tenant == tenant, frames.c.id == frame))

    def _add(
        self, connection: sa.Connection, new: Sequence[NewFrame], now: float, deadline: float | None, received: float
    ) -> list[Added]:
        insert = self._database.insert(frames).on_conflict_do_nothing(index_elements=["tenant", "id"])
        values = [self._values(frame, received) for frame in new]
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
        queued = [
            self._job(fresh[frame.tenant, frame.id], frame, now, deadline)
            for frame in stored
            if frame.wanted and frame.reason is None
        ]
        if queued:
            self._database.insert_rows(connection, self._database.insert(jobs), queued)
        totals: dict[Key | tuple[str, str], tuple[int, int]] = {}
        for frame in stored:
            count, size = totals.get((frame.tenant, frame.source), (0, 0))
            totals[frame.tenant, frame.source] = (count + 1, size + len(frame.bitstream))
        for frame in stored:
            if is_request_id(frame.id):
                self._answers(connection, frame, received)
        self._touch(connection, totals, received)
        return added

    def _answers(self, connection: sa.Connection, frame: NewFrame, received: float) -> None:
        """Link a frame to the request that it answers. A request that has ended keeps its end.

        A frame that :func:`fits` no request stays an ordinary frame: it is acknowledged, so it is kept.
        """
        ask = requests.c
        which = sa.and_(ask.tenant == frame.tenant, ask.id == frame.id, ask.source == frame.source)
        query = sa.select(ask.parent, ask.kind, ask.region, ask.max_bytes).where(which)
        found = connection.execute(query).first()
        if found is None:
            return
        if not fits(frame, RequestKind(found.kind), found.region, found.max_bytes):
            log.warning("frame %s of source %r is not what its request asked for", frame.id, frame.source)
            return
        link = {"parent": found.parent, "kind": found.kind, "region": found.region}
        mine = sa.and_(frames.c.tenant == frame.tenant, frames.c.id == frame.id)
        connection.execute(sa.update(frames).where(mine).values(link))
        # On PostgreSQL a deletion in progress would not see this answer, so it is waited for, and later ones wait.
        parents = sa.select(frames.c.state, frames.c.deleted_by)
        parents = parents.where(frames.c.tenant == frame.tenant, frames.c.id == found.parent)
        parent = connection.execute(parents.with_for_update(read=True)).first()
        if parent is not None and _goes_with(parent, found.kind):
            pruned = {"state": FrameState.PRUNED.value, "deleted_ms": int(received * 1000)}
            pruned |= {"deleted_by": parent.deleted_by, "reason": DELETED_WITH_PARENT}
            mark = sa.update(frames).where(mine).values(pruned).returning(frames.c.seq)
            connection.execute(sa.delete(jobs).where(jobs.c.seq == connection.scalar(mark)))
        end = {"state": "answered", "finished_ms": int(received * 1000), "bytes": len(frame.bitstream)}
        connection.execute(sa.update(requests).where(which, ask.state == "open").values(end))

    def _digests(self, connection: sa.Connection, old: list[NewFrame]) -> dict[Key, str]:
        """The digests that are stored under the ids of ``old``."""
        found: dict[Key, str] = {}
        for tenant in {frame.tenant for frame in old}:
            ids = [frame.id for frame in old if frame.tenant == tenant]
            query = sa.select(frames.c.id, frames.c.digest).where(frames.c.tenant == tenant, frames.c.id.in_(ids))
            found |= {(tenant, row.id): row.digest for row in connection.execute(query)}
        return found

    def _values(self, new: NewFrame, received: float) -> dict[str, Any]:
        values = {name: getattr(new, name) for name in NewFrame.__dataclass_fields__}
        state = FrameState.RECEIVED if new.media_type is None else FrameState.DONE
        if new.reason is not None:
            state = FrameState.FAILED
        received_ms = round(received * 1000)  # rounded down, a time that was read from the store would become earlier
        return values | {
            "received_ms": received_ms,
            "bytes": len(new.bitstream),
            "state": state.value,
            "available_ms": received_ms if state is FrameState.DONE else None,
        }

    def _job(self, seq: int, frame: NewFrame, now: float, deadline: float | None) -> dict[str, Any]:
        highest = DEMAND_PRIORITY if deadline else DEMAND_PRIORITY - 1
        return {
            "seq": seq,
            "tenant": frame.tenant,
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
