"""The log of events: what became of frames and requests, in an order in which a client can go on after a pause.

Triggers write it in the transaction that changes a frame or a request, so no process and no path is left out. An event
of a frame is named after the state that the frame has entered; ``request`` is a request that has ended. The newest
events are kept, their number is a setting, and :class:`Events` says when older ones would be needed.

An event is at a :class:`Position`. SQLite has one writer, and the sequence number alone orders events. On PostgreSQL a
transaction may commit after another one with greater numbers. There the id of the transaction comes first, and events
are read once no older transaction is in progress, so that none can appear before a position that was read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.store.database import Database
from cloud_decoder.store.schema import events, store_clock

TRIM_ROWS = 10_000
"""Events of one transaction of :meth:`EventLog.trim`."""
REQUEST = "request"
"""The kind of an event about a request."""
_POSITION = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_XMIN = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_XMAX = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


@dataclass(frozen=True, order=True)
class Position:
    """A place in the log. ``str`` gives the id that clients send back."""

    txid: int
    seq: int

    def __str__(self) -> str:
        return f"{self.txid}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position of an id. ``ValueError`` if it is none."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("not the id of an event")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class LoggedEvent:
    """``kind``: the state that the frame ``id`` has entered, or :data:`REQUEST` for the request ``id``."""

    position: Position
    kind: str
    id: UUID


@dataclass(frozen=True)
class Events:
    """Events after a position, oldest first. ``lost``: others that came before them are not kept any more, or the
    position is not one of this store."""

    events: list[LoggedEvent]
    lost: bool


class EventLog:
    """The events of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> Position:
        """The position after all events that can be read now."""
        with self._database.read() as connection:
            return self._newest(connection)

    def after(self, tenant: str, position: Position, limit: int) -> Events:
        """Up to ``limit`` events of a tenant after ``position``."""
        place = sa.tuple_(events.c.txid, events.c.seq)
        query = sa.select(events.c.txid, events.c.seq, events.c.kind, events.c.id)
        query = query.where(events.c.tenant == tenant, place > sa.tuple_(position.txid, position.seq))
        if not self._database.sqlite:
            query = query.where(events.c.txid < sa.literal_column(_XMIN))
        with self._database.read() as connection:
            found = connection.execute(query.order_by(events.c.txid, events.c.seq).limit(limit)).all()
            # Read after the events: what is trimmed in between is noticed now, or with the next events.
            lost = position < self._trimmed(connection)
            if not found and not lost:
                lost = self._ahead(connection, position)
        return Events([LoggedEvent(Position(row.txid, row.seq), str(row.kind), row.id) for row in found], lost)

    def trim(self, keep: int) -> int:
        """Remove the oldest events until about ``keep`` are left, :data:`TRIM_ROWS` at a time. Returns how many."""
        bounds = sa.select(sa.func.min(events.c.seq), sa.func.max(events.c.seq))
        with self._database.read() as connection:
            oldest, newest = connection.execute(bounds).one()
            if oldest is None:
                return 0
            last = min(newest - keep, oldest + TRIM_ROWS - 1)
            foreign = not self._database.sqlite and self._is_foreign(connection, oldest)
        if last < oldest and not foreign:
            return 0
        old = events.c.seq <= last
        if foreign:
            old = sa.or_(old, events.c.txid > sa.literal_column(_XMAX))
        returning = sa.delete(events).where(old).returning(events.c.txid, events.c.seq)

        def work(connection: sa.Connection) -> int:
            removed = [Position(row.txid, row.seq) for row in connection.execute(returning)]
            before = self._trimmed(connection)
            mark = min(max([before, *removed]), self._newest(connection))
            if mark != before:
                values = {"trimmed_txid": mark.txid, "trimmed_seq": mark.seq}
                connection.execute(sa.update(store_clock).values(values))
            return len(removed)

        return self._database.commit(work)

    def _is_foreign(self, connection: sa.Connection, oldest: int) -> bool:
        """Whether the oldest event is of another PostgreSQL server, from which this database was copied.

        Its transactions may have greater numbers than any here. Such events would never be read.
        """
        txid = connection.scalar(sa.select(events.c.txid).where(events.c.seq == oldest))
        return int(txid or 0) > int(connection.scalar(sa.text(f"SELECT {_XMAX}")) or 0)

    def _trimmed(self, connection: sa.Connection) -> Position:
        """The newest event that was removed."""
        row = connection.execute(sa.select(store_clock.c.trimmed_txid, store_clock.c.trimmed_seq)).one()
        return Position(row.trimmed_txid, row.trimmed_seq)

    def _newest(self, connection: sa.Connection) -> Position:
        if self._database.sqlite:
            return Position(0, connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0)
        return Position(int(connection.scalar(sa.text(f"SELECT {_XMIN}")) or 0), 0)

    def _ahead(self, connection: sa.Connection, position: Position) -> bool:
        """Whether the position is later than all events: this store was put in the place of a newer one."""
        if self._database.sqlite:
            return position > self._newest(connection)
        return position.txid > int(connection.scalar(sa.text(f"SELECT {_XMAX}")) or 0)
