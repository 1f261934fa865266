"""What strangers send and what too many send, in short; `make abuse` and `aeic bench edge-overload` do it at length."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.edge_overload import load
from tests.edge import abuse
from tests.edge.conftest import picture

pytest.importorskip("schemathesis", reason="comes with the extra dev")


@pytest.mark.slow
def test_no_5xx_and_no_growth_whatever_is_sent(tmp_path):
    result: dict[str, Any] = abuse.run(mutations=10, examples=3, slow=6, seed=2, folder=tmp_path, bomb_side=2048)
    assert result["server_errors"] == 0 and result["schemathesis_clean"] and result["exit"] == 0
    assert {"202", "408", "413", "422"} <= set(result["statuses"])
    assert abs(result["resident_mb_after"] / result["resident_mb_before"] - 1) < 0.1


def test_overload_is_answered_with_202_or_429_and_those_taken_do_not_wait_for_ever(start_edge):
    small = {"AEIC_EDGE_ENCODE_QUEUE_FRAMES": "2", "AEIC_EDGE_RECEIVED_MAX_FRAMES": "8"}
    edge = start_edge(AEIC_EDGE_CLOUD_ADDRESS="", **small)
    result: dict[str, Any] = asyncio.run(load(edge.url, picture(640, 480), times=10, seconds=2.0, places=3))
    for wait in ("spooled", "received"):
        found = result[wait]
        assert set(found["statuses"]) == {"202", "429"} and found["lost"] == 0
        # Generator and edge share this machine with other work; the promise of 50 ms is the benchmark's to show.
        assert found["refused_ms_p50"] < 250 and found["taken_ms_max"] < 5000 and found["drained_seconds"] < 10
