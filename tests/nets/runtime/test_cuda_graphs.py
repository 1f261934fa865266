"""Graphs by shape, with a recorder that stands in for CUDA's; and the CPU's choice of dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aeic_nets.runtime import cuda_graphs
from aeic_nets.runtime.cuda_graphs import Graphed


class FakeRecorder:
    """Replays by calling; counts, and refuses shapes of more than ``most`` values."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.replayed = most, 0
        self.recorded: list[tuple[int, ...]] = []

    def __call__(self, function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
        if example.numel() > self.most:
            raise RuntimeError("CUDA out of memory")
        self.recorded.append(tuple(example.shape))

        def replay(values: Tensor) -> Any:
            self.replayed += 1
            return function(values)

        return replay


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    recorder = FakeRecorder()
    doubled = Graphed(lambda x: 2 * x, recorder)
    for _ in range(4):
        assert (doubled(torch.ones(2, 3)) == 2).all()
    assert recorder.recorded == [(2, 3)] and recorder.replayed == 3
    doubled(torch.ones(5))
    assert recorder.recorded == [(2, 3)]


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    recorder = FakeRecorder(most=4)
    doubled = Graphed(lambda x: 2 * x, recorder)
    for _ in range(3):
        assert (doubled(torch.ones(5)) == 2).all()
    assert recorder.recorded == [] and recorder.replayed == 0


def test_the_shape_used_longest_ago_is_forgotten() -> None:
    recorder = FakeRecorder()
    same = Graphed(lambda x: x, recorder)
    for size in range(1, cuda_graphs.MOST_SHAPES + 2):
        same(torch.ones(size))
        same(torch.ones(size))
    assert len(same.shapes) == cuda_graphs.MOST_SHAPES and (1,) not in same.shapes
