"""The revision of a store's tables, and the upgrade of older ones.

A new store is created from :mod:`.schema`; for a store of the current revision, checking it is one query. Only an older
one needs Alembic, which is imported here and nowhere else. SQLite has one process and is upgraded at
once. The operator of PostgreSQL upgrades it with ``aeic store upgrade``, because processes of the old version may still
work on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import sqlalchemy as sa

from aeic.errors import remedy
from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store.schema import metadata, store_clock
from cloud_decoder.store.triggers import triggers

HEAD = "0012"
MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 1095059779
"""The PostgreSQL advisory lock under which tables are created and altered, because front ends start together."""
_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


def ensure(engine: sa.Engine, write: Callable[[], AbstractContextManager[sa.Connection]]) -> None:
    """Create or upgrade the tables, or raise ``StoreUnavailable`` with the remedy."""
    with write() as connection:
        found = current(connection)
        if found is None:
            if connection.dialect.name == "postgresql":
                lock_tables(connection)
                found = current(connection)
            if found is None:
                metadata.create_all(connection)
                for statement in triggers(connection.dialect.name):
                    connection.exec_driver_sql(statement)
                connection.execute(store_clock.insert().values(id=1, probes=0))
                _version.create(connection)
                connection.execute(_version.insert().values(version_num=HEAD))
                return
    if found == HEAD:
        return
    if found > HEAD:
        raise StoreUnavailable(
            f"the store has revision {found}, but this program knows only {HEAD}: install a newer aeic"
        )
    if engine.dialect.name == "sqlite":
        upgrade(engine.url)
    else:
        raise StoreUnavailable(f"the store has revision {found}, this program needs {HEAD}: run aeic store upgrade")


def lock_tables(connection: sa.Connection) -> None:
    """Hold the advisory lock of this schema until the transaction ends. PostgreSQL only."""
    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))


def current(connection: sa.Connection) -> str | None:
    """The revision of the tables; None if there are none."""
    tables = sa.inspect(connection)
    if tables.has_table("alembic_version"):
        return str(connection.execute(sa.select(_version.c.version_num)).scalar_one())
    return "0001" if tables.has_table("frames") else None  # from before revisions were recorded


def upgrade(url: sa.URL, revision: str = HEAD) -> None:
    """Upgrade the store at ``url`` to ``revision``, in one transaction."""
    try:
        from alembic import command
        from alembic.config import Config
    except ModuleNotFoundError as error:
        raise StoreUnavailable(
            f"the store has an older revision; its upgrade to {revision} needs Alembic: {remedy('cloud-cpu')}"
        ) from error
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        unmarked = not sa.inspect(connection).has_table("alembic_version")
        older = sa.inspect(connection).has_table("frames")
    engine.dispose()
    if unmarked and older:
        command.stamp(config, "0001")
    command.upgrade(config, revision)


if __name__ == "__main__":  # python -m cloud_decoder.store.migrate URL
    upgrade(sa.make_url(sys.argv[1]))
