"""The job queue: jobs are claimed in batches, held under a lease, and then released, finished or failed.

Every method is the same SQL on SQLite, where there is one writer at a time, and on PostgreSQL, where
``FOR UPDATE SKIP LOCKED`` lets any number of workers claim at once without waiting for each other. Times are seconds
since 1970 by :meth:`cloud_decoder.store.store.Store.clock`.

Workers call it through worker/claimer.py, front ends through front_end/queue_backend.py. A job whose worker died is
claimed again once its lease has run out, or at once if the worker starts again under its old name (``recover``).
``begin`` counts an attempt on a frame before it is decoded; ``_lease`` gives
up a frame that has used ``AEIC_CLOUD_MAX_ATTEMPTS``.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cloud_decoder.store.database import Database, transposed
from cloud_decoder.store.frames import DAMAGED, ROW_COLUMNS, bucket_of, intact, job_of, row_of, turn_of
from cloud_decoder.store.records import DEMAND_PRIORITY, Backlog, DecodeResult, FrameState, Lease, LeasedFrame
from cloud_decoder.store.schema import NEVER_MS, frames, jobs

log = logging.getLogger(__name__)

_ORDER = (jobs.c.turn, jobs.c.deadline_ms, jobs.c.seq)
_READY = sa.and_(jobs.c.lease_until.is_(None), jobs.c.wanted)
_REQUEUED = 1000
"""Frames of one transaction of :meth:`JobQueue.requeue`."""
LONGEST_LEASE_SECONDS = 3600.0
"""A lease that ends later than this, and than the lease of the worker that looks, is not possible."""
_NEAR = 1000
"""The most urgent jobs of a tenant, among which those of one bucket are looked for."""
_FREE = {"lease_owner": None, "lease_until": None}


class JobQueue:
    """The jobs of all bundles. ``aging_seconds`` of waiting are worth one level of priority."""

    def __init__(self, database: Database, aging_seconds: float) -> None:
        self._database, self._aging_seconds = database, aging_seconds
        self._served: dict[str, str] = {}  # the tenant after which the next claim begins, by bundle

    def claim(
        self,
        owner: str,
        fingerprint: str,
        limit: int,
        now: float,
        lease: float,
        max_attempts: int,
        *,
        alike: bool = False,
    ) -> list[LeasedFrame]:
        """Up to ``limit`` waiting frames of one bundle, the most urgent first, leased for ``lease`` seconds.

        Tenants take turns: each of those that have frames waiting gets the same part of ``limit``, and the next claim
        goes on with the tenant after the last one. With ``alike`` only frames that can share a batch with the most
        urgent one (of the tenant whose turn it is) are claimed.
        """
        ready = sa.and_(_READY, jobs.c.fingerprint == fingerprint)
        lapsed = sa.exists().where(_lapsed(now, lease))
        first, last = (
            sa.select(jobs.c.tenant).where(ready).order_by(order).limit(1).scalar_subquery()
            for order in (jobs.c.tenant, jobs.c.tenant.desc())
        )
        with self._database.read() as connection:  # an idle worker's claim costs no write
            least, greatest, stale = connection.execute(sa.select(first, last, lapsed)).one()
            tenants = [least]
            if least != greatest:
                tenants = self._turns(connection, ready, self._served.get(fingerprint), limit)
        if (least is None or not tenants) and not stale:
            return []
        with self._database.write(durable=False) as connection:
            if stale:
                self._take_back(connection, now, lease)
            lease_of = (owner, now + lease, max_attempts)
            if least == greatest or not tenants:
                if alike:
                    bucket = sa.select(jobs.c.bucket).where(ready).order_by(*_ORDER).limit(1)
                    ready = sa.and_(ready, jobs.c.bucket == bucket.scalar_subquery())
                urgent = sa.select(jobs.c.seq).where(ready).order_by(*_ORDER).limit(limit)
                return self._lease(connection, urgent, *lease_of)
            # The first tenant has chosen what is alike; without that all of them are served.
            self._served[fingerprint] = tenants[0 if alike else -1]
            return self._lease_in_turn(connection, ready, tenants, limit, lease_of, alike=alike)

    def _turns(
        self, connection: sa.Connection, ready: sa.ColumnElement[bool], after: str | None, limit: int
    ) -> list[str]:
        """Up to ``limit`` tenants that have jobs ready, those after the tenant ``after`` first. Each costs one look
        into an index."""
        found: list[str] = []
        for place, last in ((after, None), (None, after)) if after is not None else ((None, None),):
            while len(found) < limit:
                query = sa.select(jobs.c.tenant).where(ready)
                if place is not None:
                    query = query.where(jobs.c.tenant > place)
                if last is not None:
                    query = query.where(jobs.c.tenant <= last)
                place = connection.scalar(query.order_by(jobs.c.tenant).limit(1))
                if place is None:
                    break
                found.append(place)
        return found

    def _lease_in_turn(
        self,
        connection: sa.Connection,
        ready: sa.ColumnElement[bool],
        tenants: Sequence[str],
        limit: int,
        lease_of: tuple[str, float, int],
        *,
        alike: bool,
    ) -> list[LeasedFrame]:
        claimed: list[LeasedFrame] = []
        bucket: str | None = None
        for place, tenant in enumerate(tenants):
            share = -(-(limit - len(claimed)) // (len(tenants) - place))
            mine = sa.select(jobs.c.seq).where(ready, jobs.c.tenant == tenant).order_by(*_ORDER)
            if alike:
                bucket = bucket or connection.scalar(mine.with_only_columns(jobs.c.bucket).limit(1))
                near = mine.add_columns(jobs.c.bucket).limit(_NEAR).subquery().c
                same = sa.select(near.seq).where(near.bucket == bucket)
                mine = sa.select(jobs.c.seq).where(ready, jobs.c.seq.in_(same)).order_by(*_ORDER)
            claimed += self._lease(connection, mine.limit(share), *lease_of)
        if len(claimed) < limit:  # the last ones had less than their share
            rest = sa.select(jobs.c.seq).where(ready, *([jobs.c.bucket == bucket] if alike else []))
            claimed += self._lease(connection, rest.order_by(*_ORDER).limit(limit - len(claimed)), *lease_of)
        return claimed

    def claim_one(
        self, tenant: str, id: UUID, owner: str, now: float, lease: float, max_attempts: int
    ) -> LeasedFrame | None:
        """This frame if it waits, wanted or not; None if it is in another state or leased."""
        waits = sa.and_(frames.c.tenant == tenant, frames.c.id == id, frames.c.state == FrameState.RECEIVED.value)
        with self._database.write() as connection:
            if not self._queue(connection, waits, now, wanted=False):
                return None
            free = sa.or_(jobs.c.lease_until.is_(None), _lapsed(now, lease))
            chosen = sa.select(jobs.c.seq).join(frames, frames.c.seq == jobs.c.seq).where(waits, free)
            claimed = self._lease(connection, chosen, owner, now + lease, max_attempts)
        return claimed[0] if claimed else None

    def demand(self, tenant: str, id: UUID, now: float, deadline: float | None = None) -> bool:
        """Move this frame's job ahead of those that no caller waits for.

        A frame that was decoded before, and whose picture is gone from the cache, gets a new job. False for a frame
        that is unknown, in quarantine or pruned.
        """
        open_states = [FrameState.RECEIVED.value, FrameState.DONE.value]
        asked = sa.and_(frames.c.tenant == tenant, frames.c.id == id, frames.c.state.in_(open_states))
        with self._database.write() as connection:
            return self._queue(connection, asked, now, wanted=True, deadline=deadline)

    def _queue(
        self, connection: sa.Connection, which: Any, now: float, *, wanted: bool, deadline: float | None = None
    ) -> bool:
        columns = (frames.c.seq, frames.c.tenant, frames.c.fingerprint, frames.c.width, frames.c.height)
        found = connection.execute(sa.select(*columns).where(which)).first()
        if found is None:
            return False
        turn = turn_of(now, DEMAND_PRIORITY, self._aging_seconds)
        deadline_ms = int(deadline * 1000) if deadline else NEVER_MS
        insert = self._database.insert(jobs).values(
            seq=found.seq,
            tenant=found.tenant,
            fingerprint=found.fingerprint,
            bucket=bucket_of(found.width, found.height),
            turn=turn,
            deadline_ms=deadline_ms,
            queued_ms=int(now * 1000),
            wanted=wanted,
            attempts=0,
        )
        if wanted:  # an existing job moves forward; further demands change nothing
            later = sa.or_(jobs.c.turn > turn, jobs.c.wanted.is_(False))
            insert = insert.on_conflict_do_update(
                index_elements=["seq"], set_={"turn": turn, "deadline_ms": deadline_ms, "wanted": True}, where=later
            )
        else:
            insert = insert.on_conflict_do_nothing(index_elements=["seq"])
        connection.execute(insert)
        return True

    def _take_back(self, connection: sa.Connection, now: float, lease: float) -> None:
        """Return the jobs whose leases have run out to the queue."""
        lapsed = sa.select(jobs.c.seq).where(_lapsed(now, lease)).with_for_update(skip_locked=True)
        connection.execute(sa.update(jobs).where(jobs.c.seq.in_(lapsed)).values(**_FREE, wanted=True))

    def _lease(
        self, connection: sa.Connection, which: sa.Select[Any], owner: str, until: float, max_attempts: int
    ) -> list[LeasedFrame]:
        # One statement chooses and leases. SQLAlchemy omits FOR UPDATE on SQLite, which does not need it.
        chosen = which.with_for_update(skip_locked=True, of=jobs).cte("chosen")
        token = f"{owner}#{secrets.token_hex(4)}"
        leased = (
            sa.update(jobs)
            .where(jobs.c.seq.in_(sa.select(chosen.c.seq)))
            .values(lease_owner=token, lease_until=until)
            .returning(*(jobs.c[name] for name in ("seq", "turn", "deadline_ms", "attempts")))
        )
        order, dead = {}, []
        for found in connection.execute(leased):
            if found.attempts >= max_attempts:
                dead.append(found.seq)
            else:
                order[found.seq] = (found.turn, found.deadline_ms, found.seq)
        if dead:
            self._fail(connection, dead, f"the decoder stopped {max_attempts} times while it had this frame")
        if not order:
            return []
        query = sa.select(*ROW_COLUMNS, frames.c.bitstream).join(jobs, jobs.c.seq == frames.c.seq)
        rows = connection.execute(query.where(self._database.among(frames.c.seq, order))).all()
        if damaged := [row.seq for row in rows if row.bitstream is not None and not intact(row)]:
            log.error("%d frames are damaged in the store and go to quarantine", len(damaged))
            self._fail(connection, damaged, DAMAGED)
        rows = sorted((row for row in rows if row.seq not in damaged), key=lambda row: order[row.seq])
        return [
            LeasedFrame(row_of(row), bytes(row.bitstream), Lease(row.seq, token, row.attempts))
            for row in rows
            if row.bitstream is not None
        ]

    def renew(self, leases: Iterable[Lease], until: float) -> None:
        """Extend those of the leases that still hold until ``until``."""
        self._update(leases, lease_until=until)

    def begin(self, leases: Iterable[Lease]) -> None:
        """Count an attempt: these frames are about to be decoded, which may end the worker.

        A lease has one attempt: a call whose answer was lost can be repeated.
        """
        self._update(leases, added=1)

    def release(self, leases: Iterable[Lease], *, until: float | None = None) -> None:
        """Return frames, as when the service stops. Attempts under these leases are not counted any more.

        With ``until`` no worker claims them before that time.
        """
        self._update(leases, added=0, **(dict(_FREE) if until is None else {"lease_until": until}))

    def requeue(self, now: float, tenant: str | None = None, id: UUID | None = None) -> int:
        """Put frames out of quarantine back into the queue, all or those of a tenant or an id. Returns how many.

        Frames that retention has emptied stay as they are.
        """
        which = sa.and_(frames.c.state == FrameState.FAILED.value, frames.c.bitstream.is_not(None))
        for column, given in ((frames.c.tenant, tenant), (frames.c.id, id)):
            if given is not None:
                which = sa.and_(which, column == given)
        names = ("seq", "tenant", "fingerprint", "width", "height", "priority")
        columns = tuple(frames.c[name] for name in names)
        some = sa.select(*columns).where(which).order_by(frames.c.seq).limit(_REQUEUED).with_for_update()
        count = 0
        while True:
            with self._database.write() as connection:
                found = connection.execute(some).all()
                if not found:
                    return count
                values = [job_of(one, now, self._aging_seconds) for one in found]
                self._database.insert_rows(connection, self._database.insert(jobs), values)
                waits = {"state": FrameState.RECEIVED.value, "reason": None, "wanted": True}
                connection.execute(
                    sa.update(frames)
                    .where(self._database.among(frames.c.seq, [one.seq for one in found]))
                    .values(waits)
                )
            count += len(found)

    def recover(self, owner: str) -> int:
        """End every lease of ``owner``: at start, those of an earlier run of the same name. Returns how many."""
        name = sa.func.substr(jobs.c.lease_owner, 1, len(owner) + 1)  # LIKE would ignore the case on SQLite
        with self._database.write() as connection:
            # Wanted, as in _take_back: a caller asked for a frame that was leased unwanted, and may ask again.
            freed = connection.execute(
                sa.update(jobs).where(name.in_([owner, f"{owner}#"])).values(**_FREE, wanted=True)
            )
            return int(freed.rowcount)

    def finish(self, finished: Sequence[DecodeResult], now: float) -> set[int]:
        """Record these frames as decoded and remove their jobs.

        Returns the ``seq`` of those whose lease is lost, for which nothing has changed.
        """
        if not finished:
            return set()
        values = [
            {"of_seq": one.lease.seq, "of_latents": one.latents_digest, "of_timings": one.timings} for one in finished
        ]
        types: dict[str, Any] = {
            "of_seq": sa.BigInteger(),
            "of_latents": sa.String(),
            "of_timings": frames.c.timings.type,
        }
        given: Any
        if self._database.sqlite:
            given = {name: sa.bindparam(name, type_=kind) for name, kind in types.items()}
        else:
            given = self._database.columns(types).subquery("given").c
        done = (
            sa.update(frames)
            .where(frames.c.seq == given["of_seq"], frames.c.state != FrameState.PRUNED.value)
            .values(
                state=FrameState.DONE.value,
                available_ms=sa.func.coalesce(frames.c.available_ms, int(now * 1000)),
                reason=None,
                latents_digest=given["of_latents"],
                timings=given["of_timings"],
            )
        )

        def work(connection: sa.Connection) -> set[int]:
            ended = self._end(connection, [one.lease for one in finished])
            if mine := [one for one in values if one["of_seq"] in ended]:
                connection.execute(done, mine if self._database.sqlite else transposed(mine))
            return {one.lease.seq for one in finished} - ended

        return self._database.commit(work)

    def fail(self, leases: Sequence[Lease], reason: str) -> set[int]:
        """Put frames into quarantine: they are not tried again. A frame that was decoded before stays ``done``.

        Returns the ``seq`` of those whose lease is lost, for which nothing has changed.
        """
        if not leases:
            return set()
        with self._database.write() as connection:
            ended = self._end(connection, leases)
            self._fail(connection, list(ended), reason)
        return {lease.seq for lease in leases} - ended

    def _end(self, connection: sa.Connection, leases: Sequence[Lease]) -> set[int]:
        """Remove the jobs of the leases that hold. Returns their ``seq``; other workers cannot have them any more."""
        ended = sa.delete(jobs).where(self._database.leased(jobs.c.seq, jobs.c.lease_owner, leases))
        return set(connection.execute(ended.returning(jobs.c.seq)).scalars())

    def _fail(self, connection: sa.Connection, seqs: list[int], reason: str) -> None:
        connection.execute(
            sa.update(frames)
            .where(frames.c.seq.in_(seqs), frames.c.state == FrameState.RECEIVED.value)
            .values(state=FrameState.FAILED.value, reason=reason)
        )
        connection.execute(sa.delete(jobs).where(jobs.c.seq.in_(seqs)))

    def _update(self, leases: Iterable[Lease], *, added: int | None = None, **values: Any) -> None:
        """Change jobs whose leases still hold. ``added``: attempts to be counted besides those before the lease."""
        groups: defaultdict[int | None, list[Lease]] = defaultdict(list)
        for one in leases:
            groups[None if added is None else one.attempts + added].append(one)
        if not groups:
            return
        with self._database.write(durable=False) as connection:
            for attempts, some in groups.items():
                counted = {} if attempts is None else {"attempts": attempts}
                mine = self._database.leased(jobs.c.seq, jobs.c.lease_owner, some)
                connection.execute(sa.update(jobs).where(mine).values(**values, **counted))

    def waiting(self, now: float, fingerprint: str | None = None) -> Backlog:
        """How much waits, of one bundle or of all. The autoscaler reads this."""
        mine = sa.true() if fingerprint is None else jobs.c.fingerprint == fingerprint
        query = sa.select(sa.func.count(), sa.func.min(jobs.c.queued_ms)).where(_READY, mine)
        held = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.lease_until.is_not(None), mine)
        with self._database.read() as connection:
            ready, oldest = connection.execute(query).one()
            leased = connection.scalar(held) or 0
        return Backlog(int(ready), int(leased), max(0.0, now - oldest / 1000) if oldest is not None else 0.0)


def _lapsed(now: float, lease: float) -> sa.ColumnElement[bool]:
    """Leases that have run out, and those that end impossibly late because the clock was set back later."""
    return sa.or_(jobs.c.lease_until < now, jobs.c.lease_until > now + max(lease, LONGEST_LEASE_SECONDS))
