"""Fixtures every package's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete random bundle."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
