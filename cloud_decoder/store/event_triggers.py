"""The triggers that write the log of events (:mod:`cloud_decoder.store.event_log`).

They run in the transaction that changes a frame or a request. On PostgreSQL they run once for each statement.
"""

from __future__ import annotations

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
    """The statements that create the triggers, for ``postgresql`` or ``sqlite``.

    Tenants whose name begins with a colon are the service's own, and no client follows them.
    """
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
