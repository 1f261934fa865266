"""The queue in a table of its own. Frames that wait, or were being decoded, get a job; nothing is decoded twice."""

import sqlalchemy as sa
from alembic import op

from cloud_decoder.store.inserts import bucket_of
from cloud_decoder.store.records import DEMAND_PRIORITY
from cloud_decoder.store.schema import JOBS_STORAGE, NEVER_MS

revision = "0002"
down_revision = "0001"

AGING_MS = 2000
ROWS = 1000


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("fingerprint", sa.String(6), nullable=False),
        sa.Column("bucket", sa.String(16), nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("queued_ms", sa.BigInteger, nullable=False),
        sa.Column("wanted", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(128)),
        sa.Column("lease_until", sa.Float(53)),
    )
    _queue_what_waits()
    ready = sa.text("lease_until IS NULL AND wanted")
    ready_sqlite = sa.text("lease_until IS NULL AND wanted = 1")  # as the queries have it, else it is not used
    order = ["turn", "deadline_ms", "seq"]
    for name, columns in (
        ("jobs_ready", ["fingerprint", *order]),
        ("jobs_ready_alike", ["fingerprint", "bucket", *order]),
    ):
        op.create_index(name, "jobs", columns, sqlite_where=ready_sqlite, postgresql_where=ready)
    leased = sa.text("lease_until IS NOT NULL")
    op.create_index("jobs_leased", "jobs", ["lease_until"], sqlite_where=leased, postgresql_where=leased)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(JOBS_STORAGE)
    op.execute("UPDATE frames SET state = 'received' WHERE state = 'decoding'")
    op.drop_index("frames_waiting", "frames")
    unique = {"uq": "frames_tenant_id_key"}
    with op.batch_alter_table("frames", naming_convention=unique, table_kwargs={"sqlite_autoincrement": True}) as table:
        for column in ("attempts", "lease_owner", "lease_until"):
            table.drop_column(column)
    op.create_index("frames_by_state", "frames", ["state", "seq"])


def _queue_what_waits() -> None:
    connection = op.get_bind()
    tables = sa.MetaData()
    frames = sa.Table("frames", tables, autoload_with=connection)
    jobs = sa.Table("jobs", tables, autoload_with=connection)
    waits = sa.or_(frames.c.state == "decoding", sa.and_(frames.c.state == "received", frames.c.wanted))
    last = -1
    while True:
        some = sa.select(frames).where(waits, frames.c.seq > last).order_by(frames.c.seq).limit(ROWS)
        found = connection.execute(some).all()
        if not found:
            return
        last = found[-1].seq
        connection.execute(
            jobs.insert(),
            [
                {
                    "seq": row.seq,
                    "fingerprint": row.fingerprint,
                    "bucket": bucket_of(row.width, row.height),
                    "turn": row.received_ms // AGING_MS - min(row.priority, DEMAND_PRIORITY - 1),
                    "deadline_ms": NEVER_MS,
                    "queued_ms": row.received_ms,
                    "wanted": True,
                    "attempts": row.attempts,
                }
                for row in found
            ],
        )
