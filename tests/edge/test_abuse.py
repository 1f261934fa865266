"""Hostile requests and overload, in short; `make abuse` and `aeic bench edge-overload` do it at length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.edge.overload import load
from tests.edge import abuse
from tests.support.edge.process import StartEdge
from tests.support.pictures import picture

pytest.importorskip("schemathesis", reason="comes with the extra dev")


@pytest.mark.slow
def test_no_5xx_and_no_growth_whatever_is_sent(tmp_path: Path) -> None:
    result: dict[str, Any] = abuse.run(mutations=10, examples=3, slow=6, seed=2, folder=tmp_path, bomb_side=2048)
    assert result["server_errors"] == 0 and result["schemathesis_clean"] and result["exit"] == 0
    assert {"202", "408", "413", "422"} <= set(result["statuses"])
    assert result["resident_mb_after"] / result["resident_mb_before"] - 1 < 0.1


async def overload(start_edge: StartEdge) -> dict[str, Any]:
    """What `aeic bench edge-overload` finds in two seconds at a small edge."""
    small = {"AEIC_EDGE_ENCODE_QUEUE_FRAMES": "2", "AEIC_EDGE_RECEIVED_MAX_FRAMES": "8"}
    edge = start_edge(AEIC_EDGE_CLOUD_ADDRESS="", **small)
    result: dict[str, Any] = await load(edge.url, picture(640, 480), times=10, seconds=2.0, places=3)
    return result


async def test_overload_is_answered_with_202_or_429_and_all_that_was_taken_is_encoded(start_edge: StartEdge) -> None:
    result = await overload(start_edge)
    for wait in ("spooled", "received"):
        assert set(result[wait]["statuses"]) == {"202", "429"} and result[wait]["lost"] == 0


@pytest.mark.perf
async def test_under_overload_answers_are_quick(start_edge: StartEdge) -> None:
    """Generator and edge share this machine; the promise of 50 ms is the benchmark's to show."""
    result = await overload(start_edge)
    for wait in ("spooled", "received"):
        found = result[wait]
        assert found["refused_ms_p50"] < 250 and found["taken_ms_max"] < 5000 and found["drained_seconds"] < 10
