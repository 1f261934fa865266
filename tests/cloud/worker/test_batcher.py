"""The batcher: one shape a batch, never over the cap, no item starves, and a lone item goes at once."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloud_decoder.worker.batcher import Batcher, WorkItem

OTHER, LOADED = ("other",), ("loaded",)


def item(
    key: int, bucket: Any = "a", cost: int = 10, priority: int = 0, deadline: float = math.inf, at: float = 0.0
) -> WorkItem[int]:
    return WorkItem(key, bucket, cost, priority, deadline, at)


items = st.lists(
    st.builds(
        lambda bucket, cost, priority, deadline, at: (bucket, cost, priority, deadline, at),
        st.sampled_from(["a", "b", None]),
        st.integers(1, 50),
        st.integers(0, 9),
        st.one_of(st.just(math.inf), st.floats(0, 100)),
        st.floats(0, 50),
    ),
    max_size=40,
)


@given(items, st.integers(1, 60), st.integers(1, 8))
def test_batches_are_pure_and_bounded_and_lose_nothing(given_pieces: list, max_cost: int, max_items: int) -> None:
    batcher: Batcher[int] = Batcher(max_cost=max_cost, max_items=max_items)
    for key, values in enumerate(given_pieces):
        batcher.add(WorkItem(key, *values))
    now = 60.0
    expired = batcher.take_expired(now)
    assert all(p.deadline <= now for p in expired)
    seen = [p.key for p in expired]
    while batch := batcher.take(now):
        assert len({p.bucket for p in batch}) == 1
        assert len(batch) <= max_items
        assert len(batch) == 1 or sum(p.cost for p in batch) <= max_cost
        assert all(p.deadline > now for p in batch)
        seen += [p.key for p in batch]
    assert sorted(seen) == list(range(len(given_pieces)))
    assert len(batcher) == 0 and batcher.cost == 0


@given(st.integers(1, 9), st.integers(1, 4))
def test_nothing_starves_under_a_flood_of_higher_priority(priority: int, max_items: int) -> None:
    batcher: Batcher[int] = Batcher(max_cost=1000, max_items=max_items, aging_seconds=1.0)
    batcher.add(item(-1, bucket="patient"))
    served_at = None
    for second in range(100):
        for n in range(max_items + 1):  # more arrives than the device takes
            batcher.add(item(second * 10 + n, priority=priority, at=float(second)))
        if any(p.key == -1 for p in batcher.take(float(second))):
            served_at = second
            break
    # It overtakes everything younger by `priority` seconds; what is older than that is a bounded lot.
    assert served_at is not None and served_at <= 4 * (priority + 1)


def test_a_lone_piece_goes_at_once_even_above_the_cap() -> None:
    batcher: Batcher[int] = Batcher(max_cost=5, max_items=4)
    assert batcher.take(0.0) == []
    batcher.add(item(1, cost=500))
    batcher.add(item(2, cost=1, at=1.0))
    assert [p.key for p in batcher.take(1.0)] == [1]
    assert [p.key for p in batcher.take(1.0)] == [2]


def test_order_is_priority_then_deadline_then_age() -> None:
    batcher: Batcher[int] = Batcher(max_cost=1000, max_items=1)
    for one in (item(1, at=0.1), item(2, at=0.0), item(3, deadline=9.0, at=0.3), item(4, priority=1, at=0.4)):
        batcher.add(one)
    assert [batcher.take(0.5)[0].key for _ in range(4)] == [4, 3, 2, 1]


def test_the_most_urgent_piece_picks_the_shape() -> None:
    batcher: Batcher[int] = Batcher(max_cost=1000, max_items=8)
    for key in range(5):
        batcher.add(item(key, bucket="crowd"))
    batcher.add(item(9, bucket="alone", priority=1))
    assert [p.key for p in batcher.take(0.0)] == [9]
    assert len(batcher.take(0.0)) == 5


def test_discarded_pieces_never_come_out() -> None:
    batcher: Batcher[int] = Batcher(max_cost=1000, max_items=8)
    batcher.add(item(1))
    batcher.add(item(2))
    batcher.discard([1, 77])
    assert 1 not in batcher and [p.key for p in batcher.take(0.0)] == [2]


def test_among_equals_what_is_at_hand_goes_first_and_the_other_waits_no_longer_than_aging() -> None:
    batcher: Batcher[str] = Batcher(max_cost=100, max_items=4, aging_seconds=2.0, ready=lambda b: b == LOADED)
    batcher.add(WorkItem("a", OTHER, 1, 0, math.inf, 0.0))
    batcher.add(WorkItem("b", LOADED, 1, 0, math.inf, 0.1))
    assert [item.key for item in batcher.take(0.2)] == ["b"]
    batcher.add(WorkItem("c", LOADED, 1, 0, math.inf, 1.9))
    assert [item.key for item in batcher.take(2.1)] == ["a"]
    batcher.add(WorkItem("d", OTHER, 1, 1, math.inf, 2.1))
    assert [item.key for item in batcher.take(2.2)] == ["d"]
