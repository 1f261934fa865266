"""What holds for all tests: the shared fixtures, and a bound on coroutine tests that hang."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

pytest_plugins = ["tests.support.fixtures"]

HANG_SECONDS = 120
SLOW_HANG_SECONDS = 600


def pytest_itemcollected(item: pytest.Item) -> None:
    """Bound each coroutine test, so that one that hangs fails with the place where it waits."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        seconds = SLOW_HANG_SECONDS if item.get_closest_marker("slow") else HANG_SECONDS
        item.obj = _bounded(item.obj, seconds)


def _bounded(
    test: Callable[..., Coroutine[Any, Any, None]], seconds: float
) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def bounded(*arguments: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return bounded
