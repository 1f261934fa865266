"""The log of events, which triggers write. The index of deleted frames has their tenant.

The statements are those of the release that introduced this revision. They stay as they are when the program changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

FUNCTIONS = (
    """
CREATE OR REPLACE FUNCTION frames_event_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, tenant, state, id
    FROM changed WHERE left(tenant, 1) <> ':' ORDER BY seq;
    RETURN NULL;
END $$
""",
    """
CREATE OR REPLACE FUNCTION frames_event_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, now.tenant, now.state, now.id
    FROM changed AS now JOIN before ON before.seq = now.seq
    WHERE now.state <> before.state AND left(now.tenant, 1) <> ':' ORDER BY now.seq;
    RETURN NULL;
END $$
""",
    """
CREATE OR REPLACE FUNCTION requests_event_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (txid, tenant, kind, id)
    SELECT pg_current_xact_id()::text::bigint, now.tenant, 'request', now.id
    FROM changed AS now JOIN before ON before.seq = now.seq
    WHERE now.state <> before.state ORDER BY now.seq;
    RETURN NULL;
END $$
""",
)
BOTH = "REFERENCING OLD TABLE AS before NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION"
POSTGRESQL = (
    "CREATE TRIGGER frames_event_added AFTER INSERT ON frames REFERENCING NEW TABLE AS changed"
    " FOR EACH STATEMENT EXECUTE FUNCTION frames_event_added()",
    f"CREATE TRIGGER frames_event_changed AFTER UPDATE ON frames {BOTH} frames_event_changed()",
    f"CREATE TRIGGER requests_event_ended AFTER UPDATE ON requests {BOTH} requests_event_ended()",
)
INSERT = "BEGIN INSERT INTO events (txid, tenant, kind, id) VALUES (0, NEW.tenant, {kind}, NEW.id); END"
SQLITE = (
    "CREATE TRIGGER frames_event_added AFTER INSERT ON frames WHEN substr(NEW.tenant, 1, 1) <> ':' "
    + INSERT.format(kind="NEW.state"),
    "CREATE TRIGGER frames_event_changed AFTER UPDATE OF state ON frames"
    " WHEN NEW.state <> OLD.state AND substr(NEW.tenant, 1, 1) <> ':' " + INSERT.format(kind="NEW.state"),
    "CREATE TRIGGER requests_event_ended AFTER UPDATE OF state ON requests WHEN NEW.state <> OLD.state "
    + INSERT.format(kind="'request'"),
)


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("txid", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_tenant", "events", ["tenant", "txid", "seq"])
    for name in ("trimmed_txid", "trimmed_seq"):
        op.add_column("store_clock", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    deleted = sa.text("deleted_ms IS NOT NULL")
    op.drop_index("frames_deleted", "frames")
    columns = ["deleted_ms", "seq", "bytes", "tenant"]
    op.create_index("frames_deleted", "frames", columns, sqlite_where=deleted, postgresql_where=deleted)
    connection = op.get_bind()
    for statement in (*FUNCTIONS, *POSTGRESQL) if connection.dialect.name == "postgresql" else SQLITE:
        connection.exec_driver_sql(statement)
