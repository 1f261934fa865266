"""Picture files that answer requests, beside frames."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("frames", sa.Column("media_type", sa.String(32)))
