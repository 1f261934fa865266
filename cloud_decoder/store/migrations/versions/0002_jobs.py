"""The queue in a table of its own. Frames that wait, or were being decoded, get a job; nothing is decoded twice.

The constants are those of the release that introduced this revision. They stay as they are when the program changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

AGING_MS = 2000
ROWS = 1000
HIGHEST_PRIORITY = 9
NO_DEADLINE_MS = 2**62
PICTURE_MULTIPLE = 64
LATENT_STRIDE = 32
WHOLE_PIXELS = 1536 * 1536
TILE = 32
JOBS_STORAGE = "ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000)"


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
                    "bucket": _bucket(row.width, row.height),
                    "turn": row.received_ms // AGING_MS - min(row.priority, HIGHEST_PRIORITY),
                    "deadline_ms": NO_DEADLINE_MS,
                    "queued_ms": row.received_ms,
                    "wanted": True,
                    "attempts": row.attempts,
                }
                for row in found
            ],
        )


def _bucket(width: int, height: int) -> str:
    """Frames of one bucket can share a batch: those with latents, or tiles of latents, of the same size."""
    padded = (-(-side // PICTURE_MULTIPLE) * PICTURE_MULTIPLE for side in (height, width))
    tall, wide = (side // LATENT_STRIDE for side in padded)
    if tall * wide * LATENT_STRIDE**2 > WHOLE_PIXELS:
        tall, wide = min(TILE, tall), min(TILE, wide)
    return f"{tall}x{wide}"
