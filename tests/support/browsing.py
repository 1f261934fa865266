"""Waiting for what a page in the browser shows."""

from __future__ import annotations

import time
from typing import Any


def until(page: Any, script: str, argument: Any = None, seconds: float = 20) -> None:
    """Wait until ``script`` is true. Playwright's wait_for_function evaluates text, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never true: {script}"
        page.wait_for_timeout(20)
