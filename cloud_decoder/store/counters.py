"""The number of frames in each state, and of those that wait from each source, so that no query has to count rows.

Triggers count in the transaction that changes a frame, in the tables ``tallies`` and ``source_tallies``. On PostgreSQL,
transactions that update the same row wait for each other's commit. Therefore each backend counts in one of ``SLOTS``
rows, and readers add them up. All transactions update the rows in one order, the new state before the old one and then
by tenant, so that they cannot deadlock. SQLite has one writer, and one slot.
"""

from __future__ import annotations

SLOTS = 16

_CHANGES = {  # name -> event, which rows of it count, and how much
    "frames_tally_added": ("INSERT", "NEW", 1),
    "frames_tally_into": ("UPDATE", "NEW", 1),
    "frames_tally_out_of": ("UPDATE", "OLD", -1),  # triggers fire by name: after the one above
    "frames_tally_removed": ("DELETE", "OLD", -1),
}

FUNCTION = f"""
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


def triggers(dialect: str) -> list[str]:
    """The statements that create the triggers, for ``postgresql`` or ``sqlite``."""
    if dialect == "postgresql":
        return [FUNCTION, *(_on_postgresql(name, *change) for name, change in _CHANGES.items())]
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
