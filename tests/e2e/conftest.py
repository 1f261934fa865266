"""Both services with the tiny bundle, as child processes on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aeic_tools.demo import local_services
from aeic_tools.demo.local_services import Pair
from tests.support.roots import ROOT


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """An edge and its cloud, up for all tests of a module."""
    folder = tmp_path_factory.mktemp("pair")
    with local_services.pair(folder, folder, tiny_bundle) as running:
        yield running


@pytest.fixture
def owl() -> bytes:
    """A real photograph, 768x512."""
    return (ROOT / "examples" / "owl.jpg").read_bytes()
