"""The triggers of the store. They run in the transaction that changes a frame or a request.

Some count, in the tables ``tallies`` and ``source_tallies``: the frames in each state, and those that wait from each
source, so that no query has to count rows. On PostgreSQL, transactions that update the same row wait for each other's
commit. Therefore each backend counts in one of ``SLOTS`` rows, and readers add them up. All transactions update the
rows in one order, the new state before the old one and then by tenant, so that they cannot deadlock. SQLite has one
writer, and one slot.

The others write the log of events (:mod:`cloud_decoder.store.event_log`). On PostgreSQL they run once for each
statement.
"""

from __future__ import annotations

SLOTS = 16

_CHANGES = {  # name -> event, which rows of it count, and how much
    "frames_tally_added": ("INSERT", "NEW", 1),
    "frames_tally_into": ("UPDATE", "NEW", 1),
    "frames_tally_out_of": ("UPDATE", "OLD", -1),  # triggers fire by name: after the one above
    "frames_tally_removed": ("DELETE", "OLD", -1),
}

_TALLIED = f"""
CREATE OR REPLACE FUNCTION frames_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies AS t (tenant, state, slot, frames, bytes)
    SELECT tenant, state, mod(pg_backend_pid(), {SLOTS}), TG_ARGV[0]::int * count(*), TG_ARGV[0]::int * sum(bytes)
    FROM changed GROUP BY tenant, state ORDER BY tenant, state
    ON CONFLICT (tenant, state, slot) DO UPDATE
    SET frames = t.frames + excluded.frames, bytes = t.bytes + excluded.bytes;
    INSERT INTO source_tallies AS t (tenant, source, slot, waiting)
    SELECT tenant, source, mod(pg_backend_pid(), {SLOTS}), TG_ARGV[0]::int * count(*)
    FROM changed WHERE state = 'received' AND wanted GROUP BY tenant, source ORDER BY tenant, source
    ON CONFLICT (tenant, source, slot) DO UPDATE SET waiting = t.waiting + excluded.waiting;
    RETURN NULL;
END $$
"""
_ADDED = """
CREATE OR REPLACE FUNCTION frames_event_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, tenant, state, id
    FROM changed WHERE left(tenant, 1) <> ':' ORDER BY seq;
    RETURN NULL;
END $$
"""
_CHANGED = """
CREATE OR REPLACE FUNCTION frames_event_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, now.tenant, now.state, now.id
    FROM changed AS now JOIN before ON before.seq = now.seq
    WHERE now.state <> before.state AND left(now.tenant, 1) <> ':' ORDER BY now.seq;
    RETURN NULL;
END $$
"""
_ENDED = """
CREATE OR REPLACE FUNCTION requests_event_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, now.tenant, 'request', now.id
    FROM changed AS now JOIN before ON before.seq = now.seq
    WHERE now.state <> before.state ORDER BY now.seq;
    RETURN NULL;
END $$
"""
_TABLES = "REFERENCING OLD TABLE AS before NEW TABLE AS changed"


def triggers(dialect: str) -> list[str]:
    """The statements that create all triggers, for ``postgresql`` or ``sqlite``."""
    return [*_counting(dialect), *_logging(dialect)]


def _counting(dialect: str) -> list[str]:
    if dialect == "postgresql":
        return [_TALLIED, *(_on_postgresql(name, *change) for name, change in _CHANGES.items())]
    return [_on_sqlite(name, *change) for name, change in _CHANGES.items()]


def _on_postgresql(name: str, what: str, rows: str, sign: int) -> str:
    return (
        f"CREATE TRIGGER {name} AFTER {what} ON frames REFERENCING {rows} TABLE AS changed"
        f" FOR EACH STATEMENT EXECUTE FUNCTION frames_tally('{sign}')"
    )


def _on_sqlite(name: str, what: str, row: str, sign: int) -> str:
    changed = "UPDATE OF state" if what == "UPDATE" else what
    return (
        f"CREATE TRIGGER {name} AFTER {changed} ON frames BEGIN"
        f" INSERT INTO tallies (tenant, state, slot, frames, bytes)"
        f" VALUES ({row}.tenant, {row}.state, 0, {sign}, {sign} * {row}.bytes)"
        f" ON CONFLICT (tenant, state, slot) DO UPDATE"
        f" SET frames = frames + excluded.frames, bytes = bytes + excluded.bytes;"
        f" INSERT INTO source_tallies (tenant, source, slot, waiting)"
        f" SELECT {row}.tenant, {row}.source, 0, {sign} WHERE {row}.state = 'received' AND {row}.wanted"
        f" ON CONFLICT (tenant, source, slot) DO UPDATE SET waiting = waiting + excluded.waiting; END"
    )


def _logging(dialect: str) -> list[str]:
    """Tenants whose name begins with a colon are the service's own, and no client follows them."""
    if dialect == "postgresql":
        each = "FOR EACH STATEMENT EXECUTE FUNCTION"
        return [
            _ADDED,
            _CHANGED,
            _ENDED,
            f"CREATE TRIGGER frames_event_added AFTER INSERT ON frames REFERENCING NEW TABLE AS changed"
            f" {each} frames_event_added()",
            f"CREATE TRIGGER frames_event_changed AFTER UPDATE ON frames {_TABLES} {each} frames_event_changed()",
            f"CREATE TRIGGER requests_event_ended AFTER UPDATE ON requests {_TABLES} {each} requests_event_ended()",
        ]
    insert = "BEGIN INSERT INTO events (txid, tenant, kind, id) VALUES (0, NEW.tenant, {kind}, NEW.id); END"
    public, moved = "substr(NEW.tenant, 1, 1) <> ':'", "NEW.state <> OLD.state"
    entered, ended = insert.format(kind="NEW.state"), insert.format(kind="'request'")
    return [
        f"CREATE TRIGGER frames_event_added AFTER INSERT ON frames WHEN {public} {entered}",
        f"CREATE TRIGGER frames_event_changed AFTER UPDATE OF state ON frames WHEN {moved} AND {public} {entered}",
        f"CREATE TRIGGER requests_event_ended AFTER UPDATE OF state ON requests WHEN {moved} {ended}",
    ]
