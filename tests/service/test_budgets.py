"""Budgets: what one tenant may hold, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest

from aeic_service.budgets import Budget, FairQueue, Place
from aeic_service.errors import Draining, Overloaded


def test_a_tenant_alone_leaves_a_fifth_and_each_further_one_leaves_a_part() -> None:
    budget = Budget(90, shared=True)
    while budget.fits(1, "a"):
        budget.take(1, "a")
    assert budget.held == 72
    while budget.fits(1, "b") or budget.fits(1, "a"):
        budget.take(1, "b" if budget.fits(1, "b") else "a")
    assert budget.held < 90 and budget.fits(1, "c")


def test_the_first_unit_of_a_tenant_fits_as_long_as_there_is_one() -> None:
    budget = Budget(1, shared=True)
    assert budget.fits(1, "a")
    budget.take(1, "a")
    assert not budget.fits(1, "b")
    budget.give_back(1, "a")
    assert budget.fits(1, "b") and budget.held == 0


def test_without_tenants_all_of_it_may_be_used() -> None:
    budget = Budget(4)
    for _ in range(4):
        assert budget.fits(1)
        budget.take(1)
    assert not budget.fits(1)


def test_a_part_is_returned_after_an_error() -> None:
    budget = Budget(2)
    with pytest.raises(KeyError), budget.part(2, "a", refusal=lambda: Overloaded("full")):
        with pytest.raises(Overloaded), budget.part(1, "b", refusal=lambda: Overloaded("full")):
            pass
        raise KeyError
    assert budget.held == 0


def queue(pixels: int, callers: int = 100, *, shared: bool = True) -> FairQueue:
    return FairQueue(Budget(pixels, shared=shared), Budget(callers, shared=shared))


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_with_little_work_does_not_wait_for_all_of_another_one() -> None:
    turns = queue(100)
    order: list[str] = []

    async def work(tenant: str, amount: int) -> None:
        with await turns.enter(tenant, amount, 10):
            order.append(tenant)
            await asyncio.sleep(0.01)

    flood = [asyncio.create_task(work("flood", 80)) for _ in range(20)]
    await _settle()
    await asyncio.create_task(work("small", 50))
    assert order.index("small") == 1
    await asyncio.gather(*flood)
    assert turns.budget.held == turns.callers.held == 0


async def test_large_work_is_not_overtaken_without_end() -> None:
    turns = queue(100, shared=False)
    first = await turns.enter("", 60, 1)
    large = asyncio.create_task(turns.enter("", 100, 5))
    await _settle()
    small = asyncio.create_task(turns.enter("", 10, 5))
    await _settle()
    assert not small.done()
    first.leave()
    place = await large
    assert not small.done()
    place.leave()
    (await small).leave()


async def test_work_over_the_budget_goes_alone() -> None:
    turns = queue(10)
    with await turns.enter("a", 500, 1) as place:
        assert 0 < place.seconds_left <= 1
        with pytest.raises(TimeoutError):
            await turns.enter("b", 1, 0.01)
    (await turns.enter("b", 1, 0)).leave()


async def test_who_gives_up_or_hangs_up_leaves_nothing_behind() -> None:
    turns = queue(10)
    held = await turns.enter("a", 10, 1)
    with pytest.raises(TimeoutError):
        await turns.enter("b", 5, 0)
    with pytest.raises(TimeoutError):
        await turns.enter("b", 5, 0.01)
    waiting = [asyncio.create_task(turns.enter("b", 5, 10)) for _ in range(3)]
    await _settle()
    waiting[0].cancel()
    held.leave()  # the turn goes to one that has not seen its cancellation yet
    held.leave()
    assert isinstance(await waiting[1], Place)
    waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    (await waiting[1]).leave()
    assert turns.budget.held == turns.callers.held == 0


async def test_time_spent_in_vain_does_not_count_against_a_tenant() -> None:
    turns = queue(10)
    held = await turns.enter("a", 10, 1)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            await turns.enter("b", 10, 0)
    waiting = [asyncio.create_task(turns.enter("a", 10, 10)) for _ in range(5)]
    await _settle()
    polite = asyncio.create_task(turns.enter("b", 10, 10))
    await _settle()
    held.leave()
    await _settle()
    assert polite.done() and not any(one.done() for one in waiting)
    polite.result().leave()
    for one in waiting:
        (await one).leave()


async def test_callers_are_bounded_for_all_and_for_each() -> None:
    turns = queue(1, callers=10)
    tasks = [asyncio.create_task(turns.enter("flood", 1, 10)) for _ in range(30)]
    await _settle()
    assert turns.callers.held == 8
    other = asyncio.create_task(turns.enter("other", 1, 10))
    await _settle()
    assert not other.done() and turns.callers.held == 9
    for task in (*tasks, other):
        task.cancel()
    results = await asyncio.gather(*tasks, other, return_exceptions=True)
    assert sum(isinstance(one, Overloaded) for one in results) == 22


async def test_closing_answers_all_who_wait() -> None:
    turns = queue(1)
    held = await turns.enter("a", 1, 1)
    waiting = asyncio.create_task(turns.enter("b", 1, 10))
    await _settle()
    turns.close(Draining())
    held.leave()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await turns.enter("a", 1, 1)
    assert turns.budget.held == turns.callers.held == 0
