"""The soak in short: 2,000 frames through kills, cuts, stalls and full disks; `make soak FRAMES=20000` is longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge.soak import Soak


@pytest.mark.slow
async def test_every_acknowledged_frame_is_in_the_cloud_once_bit_for_bit(tmp_path: Path) -> None:
    result = await Soak(tmp_path, 2000, 1, True).run()
    assert (result["frames"], result["lost"], result["wrong"], result["duplicated"]) == (2000, 0, 0, 0)
    assert result["edge_exit"] == 0 and result["quarantined"] == 0 and result["troubles"]


@pytest.mark.slow
async def test_every_request_ends_once_through_kills_and_cuts(tmp_path: Path) -> None:
    """`python -m tests.edge.soak --frames 5000 --requests 1000` is longer."""
    result = await Soak(tmp_path, 300, 1, True, requests=60).run()
    assert (result["frames"], result["lost"], result["wrong"], result["duplicated"]) == (300, 0, 0, 0)
    assert result["unanswered"] == 0 and result["quarantined"] == 0
    outcomes = result["outcomes"]
    assert isinstance(outcomes, dict) and outcomes["answered"] > 0 and result["kinds_never_answered"] == 0
