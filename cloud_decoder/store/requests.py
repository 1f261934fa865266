"""Requests for more of a picture: what is asked of a box, and how each request ended.

A request is ``open`` until its answer is stored (:meth:`Frames.add <cloud_decoder.store.frames.Frames.add>`, in the
answer's own transaction), or until it is refused with a reason. It ends once: whatever comes later changes nothing.
Maintenance removes rows some weeks after that; a frame that has answered says itself what it answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from aeic.identifiers import new_id
from cloud_decoder.store.database import Database
from cloud_decoder.store.records import (
    FrameState,
    NewRequest,
    OpenRequest,
    RefusalReason,
    RequestKind,
    RequestState,
    StoredRequest,
)
from cloud_decoder.store.schema import frames, requests

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SPEED_ANSWERS = 8
"""Answers that the speed of a source is measured on."""
DETAIL_CHARACTERS = 300
OPEN_OF_BOX = 4096
"""Open requests of one box that are looked at."""
MOST_OPEN = 256
"""Open requests about one source."""
LEAST_CHARGE_BYTES = 256
"""What each request is charged at least, however it ends: it costs the box and the store work."""
LOOK = 20_000
"""How many of the oldest requests are looked at, for removal and for the room of an hour."""
_COLUMNS = [requests.c[name] for name in StoredRequest.__dataclass_fields__]


def new_request_id() -> UUID:
    """A fresh id of a request: a UUIDv8 that sorts by time as the ids of frames do."""
    value = new_id().int & ~(0xF << 76) | 0x8 << 76
    return UUID(int=value & ~((1 << 62) - 1) | secrets.randbits(62))


class Requests:
    """The requests of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewRequest, hour_bytes: int) -> StoredRequest | None:
        """Store a request. None where the source's requests of the last hour leave no room for it in ``hour_bytes``, or
        :data:`MOST_OPEN` of its requests are open."""

        def work(connection: sa.Connection) -> StoredRequest | None:
            if self._database.sqlite is False:  # two front ends must not spend the same room
                key = sa.func.hashtext(f"aeic request {new.tenant}/{new.source}")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            charge = max(new.max_bytes, LEAST_CHARGE_BYTES)
            if self._spent(connection, new.tenant, new.source, new.created_ms) + charge > hour_bytes:
                return None
            about = (requests.c.tenant == new.tenant, requests.c.source == new.source, requests.c.state == "open")
            if int(connection.scalar(sa.select(sa.func.count()).select_from(requests).where(*about)) or 0) >= MOST_OPEN:
                return None
            values = {name: getattr(new, name) for name in NewRequest.__dataclass_fields__}
            values |= {"kind": new.kind.value, "bytes": new.max_bytes, "state": RequestState.OPEN.value}
            connection.execute(sa.insert(requests).values(values))
            # The frame may have been deleted since the caller read it. On PostgreSQL, a deletion in progress is waited
            # for.
            parent = sa.select(frames.c.state).where(frames.c.tenant == new.tenant, frames.c.id == new.parent)
            if connection.scalar(parent.with_for_update(read=True)) == FrameState.PRUNED.value:
                end_about(connection, new.tenant, [new.parent], new.created_ms)
            return self._one(connection, new.tenant, new.id)

        return self._database.commit(work)

    def spent(self, tenant: str, source: str, now_ms: int) -> int:
        """The bytes charged to a source in the last hour: those of answers, and the budgets of open requests; for each
        at least :data:`LEAST_CHARGE_BYTES`."""
        with self._database.read() as connection:
            return self._spent(connection, tenant, source, now_ms)

    def room_ms(self, tenant: str, source: str, charge: int, hour_bytes: int, now_ms: int) -> int:
        """Milliseconds until the last hour of a source has room for ``charge`` bytes, at most :data:`HOUR_MS`; 0: now.

        An open request counts with all that it may cost, so there may be room earlier.
        """
        cost, within = self._charged(tenant, source, now_ms)
        query = sa.select(requests.c.created_ms, cost).where(*within).order_by(requests.c.created_ms).limit(LOOK)
        with self._database.read() as connection:
            excess = self._spent(connection, tenant, source, now_ms) + charge - hour_bytes
            if excess <= 0:
                return 0
            for created_ms, bytes in connection.execute(query):
                excess -= bytes
                if excess <= 0:
                    return max(1, int(created_ms) + HOUR_MS - now_ms)
        return HOUR_MS

    def speed(self, tenant: str, source: str, now_ms: int) -> float | None:
        """Bytes per second of the last answers about a source, from asking to storing; None if there are none.

        Of the last :data:`SPEED_ANSWERS` within a day. What the box, the link and the cloud take is all in it.
        """
        seconds = (requests.c.finished_ms - requests.c.created_ms) / 1000.0
        last = (
            sa.select(requests.c.bytes, seconds.label("seconds"))
            .where(
                requests.c.tenant == tenant,
                requests.c.source == source,
                requests.c.created_ms > now_ms - DAY_MS,
                requests.c.state == RequestState.ANSWERED.value,
            )
            .order_by(requests.c.created_ms.desc())
            .limit(SPEED_ANSWERS)
        )
        with self._database.read() as connection:
            found = [(int(row.bytes), float(row.seconds)) for row in connection.execute(last)]
        spent = sum(max(0.001, taken) for _, taken in found)
        return sum(size for size, _ in found) / spent if found else None

    def get(self, tenant: str, id: UUID) -> StoredRequest | None:
        """The request of that id, if it is this tenant's."""
        with self._database.read() as connection:
            return self._one(connection, tenant, id)

    def of_frame(self, tenant: str, parent: UUID, limit: int = 200) -> list[StoredRequest]:
        """The requests about a frame, the newest first."""
        query = sa.select(*_COLUMNS).where(requests.c.tenant == tenant, requests.c.parent == parent)
        with self._database.read() as connection:
            return [_row(one) for one in connection.execute(query.order_by(requests.c.seq.desc()).limit(limit))]

    def open(self, boxes: Collection[tuple[str, str]], most: int = OPEN_OF_BOX) -> list[OpenRequest]:
        """Open requests of these (tenant, box), the oldest first.

        At most ``most`` of one box, the oldest of each source and kind before any second one.
        """
        if not boxes:
            return []
        columns = [requests.c[name] for name in OpenRequest.__dataclass_fields__]
        box = (requests.c.tenant, requests.c.box)
        lane = (*box, requests.c.source, requests.c.kind)
        in_lane = sa.func.row_number().over(partition_by=lane, order_by=requests.c.seq).label("in_lane")
        whose = sa.tuple_(*box).in_(list(boxes))
        lanes = sa.select(*columns, in_lane).where(requests.c.state == "open", whose).subquery().c
        turn = sa.func.row_number().over(partition_by=(lanes.tenant, lanes.box), order_by=(lanes.in_lane, lanes.seq))
        turns = sa.select(*(lanes[column.name] for column in columns), turn.label("turn")).subquery().c
        query = sa.select(*(turns[column.name] for column in columns)).where(turns.turn <= most).order_by(turns.seq)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        return [OpenRequest(one.seq, one.tenant, one.box, one.source, RequestKind(one.kind)) for one in found]

    def by_seq(self, seqs: Sequence[int]) -> list[StoredRequest]:
        """The requests of these sequence numbers, in this order."""
        query = sa.select(*_COLUMNS).where(self._database.among(requests.c.seq, seqs))
        with self._database.read() as connection:
            found = {one.seq: _row(one) for one in connection.execute(query)}
        return [found[seq] for seq in seqs if seq in found]

    def expire(self, now_ms: int) -> list[StoredRequest]:
        """End the open requests whose deadline has passed, and return them."""
        ended = {
            "state": "refused",
            "reason": RefusalReason.EXPIRED.value,
            "detail": "no answer came before the deadline",
            "finished_ms": now_ms,
            "bytes": 0,
        }
        late = sa.and_(requests.c.state == "open", requests.c.deadline_ms <= now_ms)
        with self._database.read() as connection:
            if connection.execute(sa.select(requests.c.seq).where(late).limit(1)).first() is None:
                return []
        update = sa.update(requests).where(late).values(ended).returning(*_COLUMNS)
        return self._database.commit(lambda connection: [_row(one) for one in connection.execute(update)])

    def refuse(
        self, tenant: str, box: str, id: UUID, reason: RefusalReason, detail: str, now_ms: int
    ) -> StoredRequest | None:
        """End an open request of that box without an answer. None if there is no such open request."""
        which = sa.and_(
            requests.c.tenant == tenant, requests.c.id == id, requests.c.box == box, requests.c.state == "open"
        )
        ended = {
            "state": "refused",
            "reason": reason.value,
            "detail": detail[:DETAIL_CHARACTERS],
            "finished_ms": now_ms,
            "bytes": 0,
        }
        update = sa.update(requests).where(which).values(ended).returning(*_COLUMNS)

        def work(connection: sa.Connection) -> StoredRequest | None:
            found = connection.execute(update).first()
            return None if found is None else _row(found)

        return self._database.commit(work)

    def remove(self, before_ms: int, limit: int = 1000) -> int:
        """Remove at most ``limit`` requests that ended before ``before_ms``, the oldest first. Returns how many."""
        columns = (requests.c.seq, requests.c.state, requests.c.finished_ms)
        oldest = sa.select(*columns).order_by(requests.c.seq).limit(LOOK).subquery().c
        due = sa.select(oldest.seq).where(oldest.state != "open", oldest.finished_ms < before_ms).limit(limit)
        with self._database.read() as connection:
            seqs = connection.execute(due).scalars().all()
        if not seqs:
            return 0
        delete = sa.delete(requests).where(self._database.among(requests.c.seq, seqs))
        return self._database.commit(lambda connection: connection.execute(delete).rowcount)

    def _spent(self, connection: sa.Connection, tenant: str, source: str, now_ms: int) -> int:
        cost, within = self._charged(tenant, source, now_ms)
        return int(connection.scalar(sa.select(sa.func.sum(cost)).where(*within)) or 0)

    def _charged(self, tenant: str, source: str, now_ms: int) -> tuple[sa.Case[int], Sequence[sa.ColumnElement[bool]]]:
        """What each request about a source costs, and which ones count in the last hour."""
        # The least charge bounds how many rows of the index an hour can have: the budget of the hour, divided by it.
        cost = sa.case((requests.c.bytes < LEAST_CHARGE_BYTES, LEAST_CHARGE_BYTES), else_=requests.c.bytes)
        late = requests.c.created_ms > now_ms - HOUR_MS
        return cost, (requests.c.tenant == tenant, requests.c.source == source, late)

    def _one(self, connection: sa.Connection, tenant: str, id: UUID) -> StoredRequest | None:
        query = sa.select(*_COLUMNS).where(requests.c.tenant == tenant, requests.c.id == id)
        found = connection.execute(query).first()
        return None if found is None else _row(found)


def end_about(
    connection: sa.Connection, tenant: str, parents: Sequence[UUID], now_ms: int, detail: str = "the frame was deleted"
) -> list[StoredRequest]:
    """End the open requests about frames that are being deleted, in the same transaction, and return them."""
    ended = {
        "state": "refused",
        "reason": RefusalReason.GONE.value,
        "detail": detail,
        "finished_ms": now_ms,
        "bytes": 0,
    }
    about = sa.and_(requests.c.tenant == tenant, requests.c.parent.in_(parents), requests.c.state == "open")
    update = sa.update(requests).where(about).values(ended).returning(*_COLUMNS)
    return [_row(one) for one in connection.execute(update)]


def _row(found: Any) -> StoredRequest:
    values = {name: getattr(found, name) for name in StoredRequest.__dataclass_fields__}
    return StoredRequest(
        **values
        | {
            "kind": RequestKind(values["kind"]),
            "state": RequestState(values["state"]),
            "reason": RefusalReason(values["reason"]) if values["reason"] else None,
        }
    )
