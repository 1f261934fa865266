"""Frames counted by state as they change."""

import sqlalchemy as sa
from alembic import op

from cloud_decoder.store.counters import FILL, triggers

revision = "0003"
down_revision = "0002"


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
    for statement in triggers(connection.dialect.name):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(FILL)  # after the triggers, which lock the table: nothing changes in between
