"""Since when the clock is refused, so that whoever accepts it can correct the times of arrival since then."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("store_clock", sa.Column("refused_ms", sa.BigInteger))
