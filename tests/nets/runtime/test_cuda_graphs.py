"""Graphs by shape, with a recorder that stands in for CUDA's."""

from __future__ import annotations

import torch

from aeic_nets.runtime import cuda_graphs
from aeic_nets.runtime.cuda_graphs import Graphed
from tests.support.fake_cuda_device import FakeRecorder


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


def test_a_shape_takes_the_place_of_one_that_comes_less_often() -> None:
    recorder = FakeRecorder()
    same = Graphed(lambda x: x, recorder)
    for size in range(1, cuda_graphs.MOST_SHAPES + 1):
        for _ in range(2 if size == 3 else 4):
            same(torch.ones(size))
    newcomer = torch.ones(99)
    for _ in range(2):
        same(newcomer)
    assert (99,) not in same.shapes
    same(newcomer)
    assert (99,) in same.shapes and (3,) not in same.shapes and len(same.shapes) == cuda_graphs.MOST_SHAPES
