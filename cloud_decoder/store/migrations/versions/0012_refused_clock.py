"""Adds the time since which the clock is refused. The times of arrival since then are corrected when it is accepted."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("store_clock", sa.Column("refused_ms", sa.BigInteger))
