"""Deletion with a period of grace, the store's last time, waiting frames by source, and indexes for every list.

The statements are those of the release that introduced this revision. They stay as they are when the program changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

CHANGES = (  # name, event, which rows of it count, and how much
    ("frames_tally_added", "INSERT", "NEW", 1),
    ("frames_tally_into", "UPDATE", "NEW", 1),
    ("frames_tally_out_of", "UPDATE", "OLD", -1),
    ("frames_tally_removed", "DELETE", "OLD", -1),
)
FUNCTION = """
CREATE OR REPLACE FUNCTION frames_tally() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tallies AS t (tenant, state, slot, frames, bytes)
    SELECT tenant, state, mod(pg_backend_pid(), 16), TG_ARGV[0]::int * count(*), TG_ARGV[0]::int * sum(bytes)
    FROM changed GROUP BY tenant, state ORDER BY tenant, state
    ON CONFLICT (tenant, state, slot) DO UPDATE
    SET frames = t.frames + excluded.frames, bytes = t.bytes + excluded.bytes;
    INSERT INTO source_tallies AS t (tenant, source, slot, waiting)
    SELECT tenant, source, mod(pg_backend_pid(), 16), TG_ARGV[0]::int * count(*)
    FROM changed WHERE state = 'received' AND wanted GROUP BY tenant, source ORDER BY tenant, source
    ON CONFLICT (tenant, source, slot) DO UPDATE SET waiting = t.waiting + excluded.waiting;
    RETURN NULL;
END $$
"""
FILL = (
    "INSERT INTO source_tallies (tenant, source, slot, waiting)"
    " SELECT tenant, source, 0, count(*) FROM frames WHERE state = 'received' AND wanted GROUP BY tenant, source"
)
# The last time that this store has seen. Frames whose time was wrong do not count for more than the sources' last one.
LAST_SEEN = "INSERT INTO store_clock (id, seen_ms, probes) SELECT 1, max(last_seen_ms), 0 FROM sources"


def upgrade() -> None:
    op.create_table(
        "source_tallies",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(128), primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("waiting", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "store_clock",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seen_ms", sa.BigInteger),
        sa.Column("probes", sa.BigInteger, nullable=False),
    )
    op.add_column("frames", sa.Column("deleted_ms", sa.BigInteger))
    for name in ("frames_by_state", "frames_by_source"):
        op.drop_index(name, "frames")
    op.create_index("frames_by_arrival", "frames", ["tenant", "seq", "received_ms", "rate"])
    op.create_index("frames_by_source", "frames", ["tenant", "source", "seq", "received_ms", "rate"])
    op.create_index("frames_by_state", "frames", ["tenant", "state", "seq", "received_ms", "rate", "bytes"])
    deleted = sa.text("deleted_ms IS NOT NULL")
    columns = ["deleted_ms", "seq", "bytes"]
    op.create_index("frames_deleted", "frames", columns, sqlite_where=deleted, postgresql_where=deleted)
    connection = op.get_bind()
    for statement in _triggers(connection.dialect.name):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(FILL)
    connection.exec_driver_sql(LAST_SEEN)


def _triggers(dialect: str) -> list[str]:
    if dialect == "postgresql":
        return ["LOCK TABLE frames IN SHARE ROW EXCLUSIVE MODE", FUNCTION]
    dropped = [f"DROP TRIGGER {name}" for name, *_ in CHANGES]
    return dropped + [
        f"CREATE TRIGGER {name} AFTER {'UPDATE OF state' if event == 'UPDATE' else event} ON frames BEGIN"
        f" INSERT INTO tallies (tenant, state, slot, frames, bytes)"
        f" VALUES ({row}.tenant, {row}.state, 0, {sign}, {sign} * {row}.bytes)"
        f" ON CONFLICT (tenant, state, slot) DO UPDATE"
        f" SET frames = frames + excluded.frames, bytes = bytes + excluded.bytes;"
        f" INSERT INTO source_tallies (tenant, source, slot, waiting)"
        f" SELECT {row}.tenant, {row}.source, 0, {sign} WHERE {row}.state = 'received' AND {row}.wanted"
        f" ON CONFLICT (tenant, source, slot) DO UPDATE SET waiting = waiting + excluded.waiting; END"
        for name, event, row, sign in CHANGES
    ]
