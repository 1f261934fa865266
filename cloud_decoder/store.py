"""What the cloud must not lose: bitstreams and their state. One commit makes a frame durable and queues it.

::

    received --claim--> decoding --finish--> done  --prune--> pruned
        ^                  |  |
        +---- lease out ---+  +--fail--> failed

* An id is stored once. The same id with the same bytes again is a duplicate; with other bytes it is a conflict.
* A claim is a lease: what its owner neither finished nor renewed is claimable again when the lease has run out. Every
  claim counts as an attempt, so a frame that kills its decoder every time ends in ``failed`` (``max_attempts``).
* Only ``wanted`` frames are claimed unasked; the others wait until somebody asks (:meth:`Store.claim_one`).
* Pruning empties the bitstream of the oldest decoded frames and keeps their row, so an id is remembered for ever.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit survives a power cut. Times are passed in, seconds since
1970, so tests need no clock. Calls block; the service runs them on threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.schema import frames, metadata, sources


class State(StrEnum):
    """Where a frame stands."""

    RECEIVED = "received"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


class Added(StrEnum):
    """What became of a frame given to :meth:`Store.add`."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class NewFrame:
    """A frame that passed its checks."""

    tenant: str
    id: UUID
    source: str
    captured_ms: int
    priority: int
    width: int
    height: int
    rate: int
    fingerprint: str
    digest: str
    bitstream: bytes
    wanted: bool = True


@dataclass(frozen=True)
class Row:
    """A stored frame without its bitstream."""

    seq: int
    tenant: str
    id: UUID
    source: str
    captured_ms: int
    received_ms: int
    available_ms: int | None
    priority: int
    width: int
    height: int
    rate: int
    fingerprint: str
    bytes: int
    digest: str
    state: State
    wanted: bool
    attempts: int
    reason: str | None
    latents_digest: str | None
    timings: dict[str, float] | None


@dataclass(frozen=True)
class Claimed:
    """A frame that is now this worker's to decode."""

    row: Row
    bitstream: bytes


@dataclass(frozen=True)
class Finished:
    """What a worker says about a frame that it decoded."""

    seq: int
    latents_digest: str
    timings: dict[str, float]


_ROW_COLUMNS = [column for column in frames.c if column.name not in {"bitstream", "lease_owner", "lease_until"}]


class Store:
    """``url`` is SQLAlchemy's, ``sqlite:///path`` or ``postgresql+psycopg://...``; tables are made where missing."""

    def __init__(self, url: str | sa.URL) -> None:
        self.url = sa.make_url(url)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = (
            {"connect_args": {"check_same_thread": False}} if self._sqlite else {"pool_pre_ping": True}
        )
        self._engine = sa.create_engine(url, **options)
        # SQLite has one writer; waiting here costs nothing, while its own busy handler sleeps. PostgreSQL needs no
        # lock.
        self._write_lock = threading.Lock() if self._sqlite else None
        if self._sqlite:
            event.listen(self._engine, "connect", _open_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._insert: Any = sqlite.insert if self._sqlite else postgresql.insert
        with self._write() as connection:
            metadata.create_all(connection)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # -- taking frames in -------------------------------------------------------------------------------------------

    def add(self, new: Sequence[NewFrame], now: float) -> list[Added]:
        """Store ``new`` in one commit; when this returns, they are durable. One answer per frame, in order."""
        if not new:
            return []
        with self._write() as connection:
            added = [self._add_one(connection, frame, now) for frame in new]
            self._count(connection, [f for f, a in zip(new, added, strict=True) if a is Added.STORED], now)
        return added

    def _add_one(self, connection: sa.Connection, new: NewFrame, now: float) -> Added:
        values = {
            **{name: getattr(new, name) for name in new.__dataclass_fields__},
            "received_ms": int(now * 1000),
            "bytes": len(new.bitstream),
            "state": State.RECEIVED.value,
            "attempts": 0,
        }
        statement = self._insert(frames).values(values).on_conflict_do_nothing(index_elements=["tenant", "id"])
        if connection.execute(statement).rowcount:
            return Added.STORED
        same = sa.select(frames.c.digest).where(frames.c.tenant == new.tenant, frames.c.id == new.id)
        return Added.DUPLICATE if connection.execute(same).scalar_one() == new.digest else Added.CONFLICT

    def _count(self, connection: sa.Connection, stored: list[NewFrame], now: float) -> None:
        totals: dict[tuple[str, str], list[int]] = {}
        for frame in stored:
            total = totals.setdefault((frame.tenant, frame.source), [0, 0])
            total[0] += 1
            total[1] += len(frame.bitstream)
        for (tenant, source), (count, size) in totals.items():
            self._touch(connection, tenant, source, now, count, size)

    def _touch(self, connection: sa.Connection, tenant: str, source: str, now: float, count: int, size: int) -> None:
        now_ms = int(now * 1000)
        statement = self._insert(sources).values(
            tenant=tenant, source=source, first_seen_ms=now_ms, last_seen_ms=now_ms, frames=count, bytes=size
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["tenant", "source"],
                set_={"last_seen_ms": now_ms, "frames": sources.c.frames + count, "bytes": sources.c.bytes + size},
            )
        )

    def saw(self, tenant: str, source: str, now: float) -> None:
        """Remember that ``source`` has been in touch."""
        with self._write() as connection:
            self._touch(connection, tenant, source, now, 0, 0)

    # -- the queue --------------------------------------------------------------------------------------------------

    def claim(
        self, owner: str, fingerprint: str, limit: int, now: float, lease: float, max_attempts: int
    ) -> list[Claimed]:
        """Up to ``limit`` waiting frames of one bundle, the most urgent first, leased for ``lease`` seconds."""
        open_lease = sa.and_(frames.c.state == State.DECODING.value, frames.c.lease_until < now)
        waiting = sa.and_(frames.c.state == State.RECEIVED.value, frames.c.wanted)
        urgent = (
            sa.select(frames.c.seq)
            .where(sa.or_(waiting, open_lease), frames.c.fingerprint == fingerprint)
            .order_by(frames.c.priority.desc(), frames.c.seq)
            .limit(limit)
            .with_for_update(skip_locked=True)  # SQLite leaves this out, and needs it not
        )
        with self._read() as connection:  # the usual answer of an idle service costs no write
            if connection.execute(urgent.limit(1).with_only_columns(frames.c.seq)).first() is None:
                return []
        with self._write() as connection:
            seqs = connection.execute(urgent).scalars().all()
            return self._lease(connection, seqs, owner, now, lease, max_attempts)

    def claim_one(
        self, tenant: str, id: UUID, owner: str, now: float, lease: float, max_attempts: int
    ) -> Claimed | None:
        """The named frame if it waits, wanted or not; None where it is in another state."""
        free = sa.or_(
            frames.c.state == State.RECEIVED.value,
            sa.and_(frames.c.state == State.DECODING.value, frames.c.lease_until < now),
        )
        chosen = sa.select(frames.c.seq).where(frames.c.tenant == tenant, frames.c.id == id, free)
        with self._write() as connection:
            seqs = connection.execute(chosen.with_for_update(skip_locked=True)).scalars().all()
            claimed = self._lease(connection, seqs, owner, now, lease, max_attempts)
        return claimed[0] if claimed else None

    def _lease(
        self, connection: sa.Connection, seqs: Sequence[int], owner: str, now: float, lease: float, max_attempts: int
    ) -> list[Claimed]:
        if not seqs:
            return []
        mine = frames.c.seq.in_(seqs)
        connection.execute(
            sa.update(frames)
            .where(mine, frames.c.attempts >= max_attempts)
            .values(
                state=State.FAILED.value,
                lease_owner=None,
                lease_until=None,
                reason=f"the decoder stopped {max_attempts} times while it had this frame",
            )
        )
        connection.execute(
            sa.update(frames)
            .where(mine, frames.c.attempts < max_attempts)
            .values(
                state=State.DECODING.value,
                lease_owner=owner,
                lease_until=now + lease,
                attempts=frames.c.attempts + 1,
            )
        )
        query = (
            sa.select(*_ROW_COLUMNS, frames.c.bitstream)
            .where(mine, frames.c.state == State.DECODING.value)
            .order_by(frames.c.priority.desc(), frames.c.seq)
        )
        return [Claimed(_row(found), bytes(found.bitstream)) for found in connection.execute(query)]

    def renew(self, seqs: Iterable[int], owner: str, until: float) -> None:
        """Keep the leases that ``owner`` still holds until ``until``."""
        self._update(seqs, owner, lease_until=until)

    def release(self, seqs: Iterable[int], owner: str) -> None:
        """Give frames back untried, as when the service stops."""
        self._update(
            seqs,
            owner,
            state=State.RECEIVED.value,
            lease_owner=None,
            lease_until=None,
            attempts=frames.c.attempts - 1,
        )

    def recover(self, owner: str) -> int:
        """Free every lease of ``owner``: at start, what an earlier run of the same name held when it died."""
        with self._write() as connection:
            freed = connection.execute(
                sa.update(frames)
                .where(frames.c.state == State.DECODING.value, frames.c.lease_owner == owner)
                .values(state=State.RECEIVED.value, lease_owner=None, lease_until=None)
            )
            return int(freed.rowcount)

    def finish(self, finished: Sequence[Finished], now: float) -> None:
        """The pictures of these frames are there."""
        if not finished:
            return
        with self._write() as connection:
            for one in finished:
                connection.execute(
                    sa.update(frames)
                    .where(frames.c.seq == one.seq, frames.c.state != State.PRUNED.value)
                    .values(
                        state=State.DONE.value,
                        available_ms=sa.func.coalesce(frames.c.available_ms, int(now * 1000)),
                        lease_owner=None,
                        lease_until=None,
                        attempts=0,
                        reason=None,
                        latents_digest=one.latents_digest,
                        timings=one.timings,
                    )
                )

    def fail(self, seqs: Iterable[int], reason: str) -> None:
        """Quarantine: these frames are never tried again by themselves."""
        with self._write() as connection:
            connection.execute(
                sa.update(frames)
                .where(frames.c.seq.in_(list(seqs)), frames.c.state != State.PRUNED.value)
                .values(state=State.FAILED.value, lease_owner=None, lease_until=None, reason=reason)
            )

    def _update(self, seqs: Iterable[int], owner: str, **values: Any) -> None:
        listed = list(seqs)
        if not listed:
            return
        mine = sa.and_(frames.c.seq.in_(listed), frames.c.lease_owner == owner, frames.c.state == State.DECODING.value)
        with self._write() as connection:
            connection.execute(sa.update(frames).where(mine).values(**values))

    # -- looking ----------------------------------------------------------------------------------------------------

    def get(self, tenant: str, frame: UUID) -> Row | None:
        """The frame of that id, if it is this tenant's."""
        with self._read() as connection:
            found = connection.execute(
                sa.select(*_ROW_COLUMNS).where(frames.c.tenant == tenant, frames.c.id == frame)
            ).first()
        return None if found is None else _row(found)

    def bitstream(self, tenant: str, frame: UUID) -> bytes | None:
        """The frame's bytes as they came; None where unknown or pruned."""
        with self._read() as connection:
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
    ) -> list[Row]:
        """The newest arrivals first, with ``seq`` under ``before``; ``since_ms <= received_ms < until_ms``."""
        query = sa.select(*_ROW_COLUMNS).where(frames.c.tenant == tenant).order_by(frames.c.seq.desc()).limit(limit)
        columns = frames.c
        for matches, value in (
            (columns.seq.__lt__, before),
            (columns.source.__eq__, source),
            (columns.state.__eq__, state),
            (columns.rate.__eq__, rate),
            (columns.received_ms.__ge__, since_ms),
            (columns.received_ms.__lt__, until_ms),
        ):
            if value is not None:
                query = query.where(matches(value))
        with self._read() as connection:
            return [_row(found) for found in connection.execute(query)]

    def sources(self, tenant: str, limit: int = 1000) -> list[dict[str, Any]]:
        """Who has sent, the latest first: source, first_seen_ms, last_seen_ms, frames, bytes."""
        query = sa.select(*(c for c in sources.c if c.name != "tenant")).where(sources.c.tenant == tenant)
        with self._read() as connection:
            found = connection.execute(query.order_by(sources.c.last_seen_ms.desc()).limit(limit))
            return [dict(row._mapping) for row in found]

    def backlog(self, tenant: str) -> dict[str, int]:
        """Frames that wait for their picture, by source; sources without any are left out."""
        waits = sa.and_(frames.c.state.in_([State.RECEIVED.value, State.DECODING.value]), frames.c.wanted)
        query = sa.select(frames.c.source, sa.func.count()).where(frames.c.tenant == tenant, waits)
        with self._read() as connection:
            return {str(one): int(count) for one, count in connection.execute(query.group_by(frames.c.source))}

    def counts(self, tenant: str | None = None) -> dict[str, int]:
        """Frames by state, of one tenant or of all."""
        query = sa.select(frames.c.state, sa.func.count()).group_by(frames.c.state)
        if tenant is not None:
            query = query.where(frames.c.tenant == tenant)
        with self._read() as connection:
            counted = {str(state): int(count) for state, count in connection.execute(query)}
        return {state.value: counted.get(state.value, 0) for state in State}

    # -- retention --------------------------------------------------------------------------------------------------

    def prune(self, *, older_than_ms: int | None = None, keep_bytes: int | None = None, limit: int = 1000) -> int:
        """Empty the oldest decoded or failed frames.

        Received before ``older_than_ms``, or beyond ``keep_bytes`` in all.
        """
        finished = frames.c.state.in_([State.DONE.value, State.FAILED.value])
        oldest = sa.select(frames.c.seq, frames.c.bytes).where(finished).order_by(frames.c.seq).limit(limit)
        with self._write() as connection:
            doomed: list[int] = []
            if older_than_ms is not None:
                doomed += connection.execute(oldest.where(frames.c.received_ms < older_than_ms)).scalars().all()
            if keep_bytes is not None:
                kept = frames.c.state != State.PRUNED.value
                total = connection.execute(sa.select(sa.func.sum(frames.c.bytes)).where(kept)).scalar() or 0
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
        return len(set(doomed))

    # -- connections ------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end. A store that cannot write says :class:`StoreUnavailable`."""
        try:
            if self._write_lock is None:
                with self._engine.begin() as connection:
                    yield connection
            else:
                with self._write_lock, self._engine.execution_options(aeic_write=True).begin() as connection:
                    yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable(
                f"the store cannot commit ({_cause(error)}): free its disk or mend the database"
            ) from error

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreUnavailable(f"the store cannot be read ({_cause(error)}): mend the database") from error


def _cause(error: SQLAlchemyError) -> str:
    """The driver's own words: SQLAlchemy's carry the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__)


def _open_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin and commit by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails when another process wrote in between; IMMEDIATE waits
    # instead.
    write = connection.get_execution_options().get("aeic_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _row(found: Any) -> Row:
    values = {name: getattr(found, name) for name in Row.__dataclass_fields__}
    values["state"] = State(values["state"])
    return Row(**values)
