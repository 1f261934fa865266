"""Waiting for a condition, with a deadline that only bounds a hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SECONDS = 20.0


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Return as soon as ``condition()`` is true; fail after ``seconds``. The event loop runs meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was still false after {seconds} s"
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """As ``until``, for tests without an event loop."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was still false after {seconds} s"
        time.sleep(0.01)
