"""An index that counts the open requests about a source."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    open_ = sa.text("state = 'open'")
    op.create_index(
        "requests_open_by_source", "requests", ["tenant", "source"], sqlite_where=open_, postgresql_where=open_
    )
