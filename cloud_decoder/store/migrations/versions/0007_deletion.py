"""Who deleted a frame, and an index of the frames of each source that are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("frames", sa.Column("deleted_by", sa.String(10)))
    kept = sa.text("state != 'pruned'")
    columns = ["tenant", "source", "seq", "received_ms", "bytes"]
    op.create_index("frames_kept", "frames", columns, sqlite_where=kept, postgresql_where=kept)
    op.execute("UPDATE frames SET deleted_by = 'retention' WHERE state = 'pruned'")
