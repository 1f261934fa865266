"""Old stores are migrated to the schema of a new one and keep everything in them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy as sa

from cloud_decoder.errors import StoreUnavailable
from cloud_decoder.store import migrate
from cloud_decoder.store.schema import metadata
from cloud_decoder.store.store import Added, FrameState, Store
from tests.support.frames import NOW, claim, stored_frame

pytest.importorskip("alembic", reason="Alembic is not installed (extra fleet)")


def differences(url: str) -> list[object]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
    engine.dispose()
    return [one for one in found if "alembic_version" not in str(one)]


def indexes(url: str) -> set[str]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.execute(sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"))
        else:
            found = connection.execute(sa.text("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"))
        said = {" ".join(row[0].replace('"', "").split()) for row in found}
    engine.dispose()
    return {one for one in said if "alembic_version" not in one}


def triggers(url: str) -> set[str]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            query = "SELECT sql FROM sqlite_master WHERE type = 'trigger'"
        else:
            query = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
        said = set(connection.execute(sa.text(query)).scalars())
    engine.dispose()
    return said


def test_all_revisions_together_make_what_an_empty_store_becomes(store_url: str) -> None:
    migrate.upgrade(sa.make_url(store_url))
    assert differences(store_url) == []
    migrated = indexes(store_url), triggers(store_url)
    assert len(migrated[1]) == 7
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        sa.Table("alembic_version", metadata.__class__(), autoload_with=connection).drop(connection)
        metadata.drop_all(connection)
    engine.dispose()
    Store(store_url).close()
    assert differences(store_url) == []
    assert migrated == (indexes(store_url), triggers(store_url))


def test_a_store_from_before_keeps_its_frames_and_its_queue(store_url: str) -> None:
    migrate.upgrade(sa.make_url(store_url), "0001")
    engine = sa.create_engine(store_url)
    old = sa.MetaData()
    with engine.begin() as connection:
        table = sa.Table("frames", old, autoload_with=connection)
        sa.Table("alembic_version", old, autoload_with=connection).drop(connection)  # it did not count them
        states = [("received", True), ("decoding", True), ("done", True), ("failed", True), ("received", False)]
        new = [stored_frame(f"f{i}".encode(), priority=i % 2) for i in range(len(states))]
        for one, (state, wanted) in zip(new, states, strict=True):
            values = {name: getattr(one, name) for name in one.__dataclass_fields__ if name in table.c}
            values["id"] = one.id if "uuid" in str(table.c.id.type).lower() else one.id.hex
            more = {"received_ms": int(NOW * 1000), "bytes": 2, "state": state, "wanted": wanted, "attempts": 1}
            lease = {"lease_owner": "gone", "lease_until": NOW - 5} if state == "decoding" else {}
            connection.execute(table.insert().values(values | more | lease))
    engine.dispose()
    if store_url.startswith("sqlite"):
        store = Store(store_url)
    else:
        with pytest.raises(StoreUnavailable, match="aeic store upgrade"):
            Store(store_url)
        command = [sys.executable, "-m", "cloud_decoder.store.migrate", store_url]
        subprocess.run(command, check=True, timeout=60)
        store = Store(store_url)
    assert store.frames.counts() == {"received": 3, "decoding": 0, "done": 1, "failed": 1, "pruned": 0}
    assert [c.row.id for c in claim(store)] == [new[1].id, new[0].id]
    assert store.frames.bitstream("", new[4].id) == b"f4"
    assert store.frames.add([new[2], stored_frame()], NOW) == [Added.DUPLICATE, Added.STORED]
    rows = store.frames.page("", 10).rows
    assert rows[0].seq > 5 and rows[-1].state is FrameState.DECODING
    assert rows[-1].attempts == 1, "the attempt of before is kept, and a claim alone is none"
    store.close()


def test_a_store_of_a_newer_program_is_not_touched(store_url: str) -> None:
    store = Store(store_url)
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreUnavailable, match="install a newer aeic"):
        Store(store_url)


def test_a_current_store_needs_no_alembic(store_url: str) -> None:
    Store(store_url).close()
    code = (
        "import sys; sys.modules['alembic'] = None\n"
        f"from cloud_decoder.store.store import Store; Store({store_url!r}).close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_migrations_do_not_import_the_program() -> None:
    """A migration describes the tables of the release that introduced it, whatever the program has become."""
    for path in sorted((migrate.MIGRATIONS / "versions").glob("*.py")):
        assert "cloud_decoder" not in path.read_text(), path.name
