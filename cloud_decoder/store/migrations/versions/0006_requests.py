"""Requests for more of a picture, and the columns of frames that answer one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("frames", sa.Column("box", sa.String(128)))
    op.add_column("frames", sa.Column("parent", sa.Uuid))
    op.add_column("frames", sa.Column("kind", sa.String(8)))
    op.add_column("frames", sa.Column("region", sa.JSON))
    answers = sa.text("parent IS NOT NULL")
    columns = ["tenant", "parent", "seq"]
    op.create_index("frames_by_parent", "frames", columns, sqlite_where=answers, postgresql_where=answers)
    op.create_table(
        "requests",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("parent", sa.Uuid, nullable=False),
        sa.Column("source", sa.String(128), nullable=False),
        sa.Column("box", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("region", sa.JSON),
        sa.Column("max_bytes", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_ms", sa.BigInteger),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("reason", sa.String(16)),
        sa.Column("detail", sa.Text),
        sa.UniqueConstraint("tenant", "id", name="requests_tenant_id_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("requests_by_parent", "requests", ["tenant", "parent", "seq"])
    op.create_index("requests_by_source", "requests", ["tenant", "source", "created_ms", "bytes"])
    waiting = sa.text("state = 'open'")
    op.create_index("requests_open", "requests", ["deadline_ms"], sqlite_where=waiting, postgresql_where=waiting)
