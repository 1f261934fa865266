"""The counts by state equal those of a full scan, and no scan is made for them."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cloud_decoder.store.records import DecodeResult
from cloud_decoder.store.schema import frames, tallies
from cloud_decoder.store.store import Store
from tests.support.frames import NOW, claim, stored_frame


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


def counted(store: Store, tenant: str | None = None) -> dict[str, tuple[int, int]]:
    """Frames and bytes by state, by looking at every frame."""
    query = sa.select(frames.c.state, sa.func.count(), sa.func.sum(frames.c.bytes)).group_by(frames.c.state)
    with store.database.read() as connection:
        found = connection.execute(query if tenant is None else query.where(frames.c.tenant == tenant))
        return {state: (int(count), int(size)) for state, count, size in found}


def tallied(store: Store, tenant: str | None = None) -> dict[str, tuple[int, int]]:
    query = sa.select(tallies.c.state, sa.func.sum(tallies.c.frames), sa.func.sum(tallies.c.bytes))
    query = query.group_by(tallies.c.state)
    with store.database.read() as connection:
        found = connection.execute(query if tenant is None else query.where(tallies.c.tenant == tenant))
        return {state: (int(count), int(size)) for state, count, size in found if count or size}


def test_after_anything_that_can_happen_to_frames_the_tallies_are_right(store: Store) -> None:
    chance, known = random.Random(5), []
    for step in range(40):
        new = [
            stored_frame(b"x" * chance.randint(1, 50), tenant=chance.choice("ab")) for _ in range(chance.randint(1, 5))
        ]
        known += new
        store.frames.add([*new, chance.choice(known), new[0]], NOW + step)  # what is there already counts once
        held = claim(store, chance.randint(1, 4), NOW + step)
        leases = [one.lease for one in held]
        match step % 4:
            case 0:
                store.queue.fail(leases, "no")
            case 1:
                store.queue.release(leases)
            case _:
                store.queue.finish([DecodeResult(lease, "", {}) for lease in leases], NOW + step)
        if step % 10 == 9:
            store.retention.mark(0, keep_bytes=400, limit=5)
            store.retention.remove(before_ms=1, limit=3)
            store.retention.undelete(chance.choice("ab"))
            gone = known.pop(chance.randrange(len(known)))
            store.frames.forget(gone.tenant, gone.id)
        for tenant in (None, "a", "b"):
            assert tallied(store, tenant) == counted(store, tenant)
    assert set(counted(store)) == {"received", "done", "failed", "pruned"}
    reported, found = store.frames.counts("a"), counted(store, "a")
    assert reported.pop("received") + reported.pop("decoding") == found.pop("received")[0]
    assert reported == {state: count for state, (count, _) in found.items()}


def test_concurrent_writers_count_right_and_do_not_deadlock(store_url: str) -> None:
    stores, failures = [Store(store_url) for _ in range(4)], Counter[str]()

    def work(number: int) -> None:
        chance = random.Random(number)
        try:
            for _ in range(15):
                stores[number].frames.add([stored_frame(tenant=chance.choice("abc")) for _ in range(6)], NOW)
                held = claim(stores[number], 5, owner=str(number))
                stores[number].queue.fail([one.lease for one in held[:1]], "no")
                stores[number].queue.finish([DecodeResult(one.lease, "", {}) for one in held[1:]], NOW)
        except Exception as error:
            failures[repr(error)] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert tallied(stores[0]) == counted(stores[0]) and sum(stores[0].frames.counts().values()) == 360
    for one in stores:
        one.close()


def fill(store: Store, many: int) -> None:
    """Put ``many`` decoded frames of 7 bytes into the store with one statement."""
    id = "lower(hex(randomblob(16)))" if store.database.sqlite else "gen_random_uuid()"
    same = {"source": "'box'", "captured_ms": "1", "received_ms": "1", "priority": "0", "width": "64", "height": "48"}
    same |= {"rate": "1", "fingerprint": "'abcdef'", "bytes": "7", "digest": "'d'", "state": "'done'"}
    same |= {"tenant": "''", "id": id, "wanted": "true"}
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many})"
    insert = f"INSERT INTO frames ({', '.join(same)}) {numbers} SELECT {', '.join(same.values())} FROM n"
    if not store.database.sqlite:
        insert = f"{numbers} INSERT INTO frames ({', '.join(same)}) SELECT {', '.join(same.values())} FROM n"
    with store.database.write() as connection:
        connection.exec_driver_sql(insert)


def test_counts_read_no_frame(store: Store) -> None:
    fill(store, 1000)
    asked: list[str] = []

    def remember(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(" ".join(statement.split()))

    sa.event.listen(store.database.engine, "before_cursor_execute", remember)
    assert store.frames.counts()["done"] == 1000
    assert any("FROM tallies" in statement for statement in asked)
    assert not [statement for statement in asked if re.search(r"FROM frames\b", statement)]
    assert counted(store)["done"] == (1000, 7000)
    assert re.search(r"FROM frames\b", asked[-1])  # so the pattern finds what it looks for


@pytest.mark.perf
def test_counts_take_as_long_for_many_frames_as_for_few(store: Store) -> None:
    many = 100_000
    fill(store, many)
    telling, counting = [], []
    for _ in range(5):
        started = time.perf_counter()
        assert store.frames.counts()["done"] == many
        middle = time.perf_counter()
        assert counted(store)["done"] == (many, 7 * many)
        telling.append(middle - started)
        counting.append(time.perf_counter() - middle)
    assert min(counting) > 3 * min(telling)
