from __future__ import annotations

import numpy as np
import pytest

from aeic.passes import PASS_COUNT, gather, pass_mask, scatter


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (3, 5)])
def test_every_element_is_in_one_pass(height: int, width: int) -> None:
    masks = [pass_mask(index, 8, height, width) for index in range(PASS_COUNT)]
    assert (np.sum(masks, axis=0) == 1).all()
    for mask in masks:  # a pass is dense: at each position a quarter of the channels
        assert (mask.sum(axis=0) == 2).all()


def test_first_pass_starts_with_even_positions_of_the_first_group() -> None:
    mask = pass_mask(0, 4, 2, 2)
    assert [mask[group].ravel().tolist().index(True) for group in range(4)] == [0, 1, 2, 3]


def test_gather_and_scatter_undo_each_other() -> None:
    array = np.arange(8 * 4 * 6).reshape(8, 4, 6)
    scattered = [scatter(gather(array, index), index) for index in range(PASS_COUNT)]
    assert (np.sum(scattered, axis=0) == array).all()
