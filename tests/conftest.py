"""What holds for all tests: skips, a bound on coroutine tests that hang, and the bundle that all folders use."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.support import skips
from tests.support.models.tiny_bundle import write_tiny_bundle

CoroutineTest = Callable[..., Coroutine[Any, Any, None]]

HANG_SECONDS = 120
SLOW_HANG_SECONDS = 600


def pytest_configure(config: pytest.Config) -> None:
    """Skips are noted, and failures where AEIC_CI is set."""
    skips.register(config)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Bound each coroutine test, so that one that hangs fails with the place where it waits."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _bounded(item.obj, SLOW_HANG_SECONDS if item.get_closest_marker("slow") else HANG_SECONDS)


def _bounded(test: CoroutineTest, seconds: float) -> CoroutineTest:
    @functools.wraps(test)
    async def bounded(*arguments: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return bounded


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete random bundle."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
