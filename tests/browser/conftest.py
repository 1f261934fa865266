"""An edge, its cloud and a headless Chromium. Skipped, with the reason, where a part of that is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.local_services import Pair
from tests.support.clients.browsing import AXE, CHROMIUM


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of a module. No longer: its driver keeps an event loop running in this thread."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    if CHROMIUM is None:
        pytest.skip("no chromium (Debian: chromium): make test-browser installs it")
    with api.sync_playwright() as driver:
        # As root, which is how containers test, Chromium has no sandbox of its own; the pages are ours.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


@pytest.fixture(scope="session")
def axe() -> None:
    """axe-core is there, so that a page can be checked with it."""
    if not AXE.exists():
        pytest.skip("axe-core was not fetched (needs npm): `make packages-browser` fetches it")


@pytest.fixture(scope="module")
def services(browser: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services with the tiny bundle; the cloud's page knows the edge."""
    folder = tmp_path_factory.mktemp("browser")
    with local_services.pair(folder, folder, tiny_bundle) as running:
        yield running
