"""Runs blocking calls of the event loop on threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_on(threads: Executor, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of ``function(*arguments, **options)``, called on one of ``threads``."""
    return await asyncio.get_running_loop().run_in_executor(threads, partial(function, *arguments, **options))
