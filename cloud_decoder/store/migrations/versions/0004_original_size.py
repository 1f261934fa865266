"""The size of a picture before the edge scaled it down, and where its time of capture comes from.

Both are NULL in frames from before, and where the edge does not know them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("frames", sa.Column("original_width", sa.Integer))
    op.add_column("frames", sa.Column("original_height", sa.Integer))
    op.add_column("frames", sa.Column("captured_from", sa.String(8)))
