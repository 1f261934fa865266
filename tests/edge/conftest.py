"""Fixtures of the edge's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.edge.process import EdgeProcess, StartEdge


@pytest.fixture
def start_edge(tiny_bundle: Path, tmp_path: Path) -> Iterator[StartEdge]:
    """Starts edges on free ports with the tiny bundle; those that still run at the end are killed."""
    running: list[EdgeProcess] = []

    def start(*arguments: str, **environment: str) -> EdgeProcess:
        environment = {"AEIC_BUNDLE": str(tiny_bundle), "AEIC_EDGE_DATA_DIR": str(tmp_path / "spool"), **environment}
        running.append(EdgeProcess(*arguments, **environment))
        return running[-1]

    yield start
    for edge in running:
        if edge.process.poll() is None:
            edge.process.kill()
        edge.process.communicate()
