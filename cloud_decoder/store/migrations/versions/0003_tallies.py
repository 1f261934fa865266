"""Frames counted by state as they change, in the table ``tallies`` that triggers write.

The statements are those of the release that introduced this revision. They stay as they are when the program changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

FILL = (
    "INSERT INTO tallies (tenant, state, slot, frames, bytes)"
    " SELECT tenant, state, 0, count(*), sum(bytes) FROM frames GROUP BY tenant, state"
)
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
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(10), primary_key=True),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("frames", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    connection = op.get_bind()
    for statement in _triggers(connection.dialect.name):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(FILL)  # after the triggers, which lock the table: nothing changes in between


def _triggers(dialect: str) -> list[str]:
    if dialect == "postgresql":
        return [
            FUNCTION,
            *(
                f"CREATE TRIGGER {name} AFTER {event} ON frames REFERENCING {rows} TABLE AS changed"
                f" FOR EACH STATEMENT EXECUTE FUNCTION frames_tally('{sign}')"
                for name, event, rows, sign in CHANGES
            ),
        ]
    return [
        f"CREATE TRIGGER {name} AFTER {'UPDATE OF state' if event == 'UPDATE' else event} ON frames BEGIN"
        f" INSERT INTO tallies (tenant, state, slot, frames, bytes)"
        f" VALUES ({row}.tenant, {row}.state, 0, {sign}, {sign} * {row}.bytes)"
        f" ON CONFLICT (tenant, state, slot) DO UPDATE"
        f" SET frames = frames + excluded.frames, bytes = bytes + excluded.bytes; END"
        for name, event, row, sign in CHANGES
    ]
