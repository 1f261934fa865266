"""Alembic's entry: one connection, one transaction; tables that SQLite cannot alter are rebuilt."""

import sqlalchemy as sa
from alembic import context

from cloud_decoder.store.migrate import lock_tables
from cloud_decoder.store.schema import metadata

engine = sa.create_engine(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection, target_metadata=metadata, render_as_batch=engine.dialect.name == "sqlite")
    with context.begin_transaction():
        if engine.dialect.name == "postgresql":
            lock_tables(connection)
        context.run_migrations()
    connection.commit()
engine.dispose()
