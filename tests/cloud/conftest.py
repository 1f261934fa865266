"""Fixtures of a cloud that needs no network: the tiny bundle's decoder, and stores of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_decoder.store.store import Store
from tests.support.cloud.fixtures import bundle, decoder, generator, make_frame, postgres, store_url

__all__ = ["bundle", "decoder", "generator", "make_frame", "postgres", "store", "store_url"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store in SQLite."""
    opened = Store(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()
