"""The tenant of each job, with an index, so that claims take turns between tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("tenant", sa.String(64), nullable=False, server_default=""))
    op.execute("UPDATE jobs SET tenant = COALESCE((SELECT tenant FROM frames WHERE frames.seq = jobs.seq), '')")
    ready = sa.text("lease_until IS NULL AND wanted")
    ready_sqlite = sa.text("lease_until IS NULL AND wanted = 1")  # as the queries have it, else it is not used
    columns = ["fingerprint", "tenant", "turn", "deadline_ms", "seq"]
    op.create_index("jobs_ready_by_tenant", "jobs", columns, sqlite_where=ready_sqlite, postgresql_where=ready)
