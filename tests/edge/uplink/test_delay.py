"""Answers to requests delay acknowledged frames by no more than their bytes, and files by no more than one piece.

In simulated time, over a thin link: tests/support/edge/simulated_link.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from edge_encoder.answers.answerer import RequestKind
from edge_encoder.uplink.pieces import LEAST_BYTES, MOST_BYTES
from tests.support.edge.simulated_link import Plan, simulate

HEAD_BYTES = 120
"""Of a message with a frame or a piece, about."""


@pytest.mark.parametrize("budget", [1500, 8000])
def test_a_frame_that_answers_delays_the_others_by_its_budget_at_most(tmp_path: Path, budget: int) -> None:
    plan = Plan()
    alone = simulate(plan, tmp_path)
    beside = simulate(dataclasses.replace(plan, asks=((10.0, RequestKind.REGION, budget),)), tmp_path)
    later = beside.most_later_than(alone)
    assert 0 < later <= (budget + HEAD_BYTES) / plan.bytes_per_second
    assert len(beside.answered) == 1 and beside.answered[0] < alone.delays[0] + budget / plan.bytes_per_second + 1


@pytest.mark.parametrize("period", [1.07, 0.53])
def test_a_file_delays_a_frame_by_one_piece_at_most(tmp_path: Path, period: float) -> None:
    plan = Plan(frames=120, period=period)
    alone = simulate(plan, tmp_path)
    beside = simulate(dataclasses.replace(plan, asks=((10.0, RequestKind.ORIGINAL, 20_000),)), tmp_path)
    assert beside.pieces and max(beside.pieces) < 20_000 / 4
    assert 0 < beside.most_later_than(alone) <= (max(beside.pieces) + HEAD_BYTES) / plan.bytes_per_second
    if period == 1.07:
        assert beside.answered and sum(beside.pieces) == 20_000


@pytest.mark.parametrize("period", [0.455, 0.3])
def test_a_file_takes_little_of_a_link_that_is_full_of_frames(tmp_path: Path, period: float) -> None:
    plan = Plan(period=period)  # 1,800 bytes per second, which the link carries, and 2,700, which it does not
    alone = simulate(plan, tmp_path)
    beside = simulate(dataclasses.replace(plan, asks=((0.5, RequestKind.ORIGINAL, 20_000),)), tmp_path)
    assert beside.most_later_than(alone) <= 3 * (max(beside.pieces) + HEAD_BYTES) / plan.bytes_per_second
    assert not beside.answered


def test_a_quick_link_carries_a_file_in_large_pieces(tmp_path: Path) -> None:
    plan = Plan(bytes_per_second=1e6, latency=0.02, asks=((1.0, RequestKind.ORIGINAL, 2_000_000),))
    run = simulate(plan, tmp_path)
    assert sum(run.pieces) == 2_000_000 and max(run.pieces) == MOST_BYTES and run.answered[0] < 10


@pytest.mark.parametrize("cloud", ["old", "silent", "unwanted", "stuck"])
def test_a_cloud_that_does_not_take_a_file_harms_no_frame(
    tmp_path: Path, cloud: Literal["old", "silent", "unwanted", "stuck"]
) -> None:
    """A cloud of before is sent no piece; a silent one one piece; a stuck one two pieces."""
    plan = Plan(cloud=cloud, ack_timeout_seconds=20.0, frames=120, period=1.07)
    alone = simulate(plan, tmp_path)
    run = simulate(dataclasses.replace(plan, asks=((5.0, RequestKind.ORIGINAL, 5000),)), tmp_path)
    assert run.most_later_than(alone) <= (LEAST_BYTES + HEAD_BYTES) / plan.bytes_per_second
    assert run.refusals == (["REFUSAL_REASON_UNSUPPORTED"] if cloud == "old" else [])
    assert run.interrupted == (cloud in ("silent", "stuck"))
    least, most = {"old": (0, 0), "stuck": (2 * LEAST_BYTES, 3 * LEAST_BYTES)}.get(cloud, (1, LEAST_BYTES))
    assert least <= sum(run.pieces) <= most
