"""A region painted into a picture: at its place, with soft edges and matched colours."""

from __future__ import annotations

import numpy as np

from cloud_decoder.images.composition import MAX_SIDE, compose, composed_size


def test_a_region_is_at_its_place_with_soft_edges_and_the_colour_below() -> None:
    overview = np.full((60, 80, 3), 100, np.uint8)
    stripes = np.full((64, 64, 3), 10, np.uint8)
    stripes[:, ::2] = 195  # their mean is 102.5
    out = compose(overview, (320, 240), [(stripes, (128, 64, 64, 64))])
    assert out.shape == (240, 320, 3)
    changed = np.argwhere((out != 100).any(axis=2))
    assert changed.min(axis=0).tolist() >= [64, 128] and changed.max(axis=0).tolist() <= [127, 191]
    middle = out[80:112, 144:176].astype(float)
    assert abs(middle.mean() - 100) < 1 and middle.std() > 85  # shifted to the picture's mean, and sharp
    assert out[64:66, 144:176].std() < middle.std() / 2  # the edge is soft


def test_no_soft_edge_at_the_border_and_colours_are_not_invented() -> None:
    out = compose(np.zeros((24, 32, 3), np.uint8), (32, 24), [(np.full((24, 32, 3), 200, np.uint8), (0, 0, 32, 24))])
    assert np.unique(out).tolist() == [188]  # moved by at most 12


def test_the_size_is_bounded_and_a_later_region_covers_an_earlier_one() -> None:
    assert composed_size(8000, 4000) == (MAX_SIDE, MAX_SIDE // 2) and composed_size(320, 240) == (320, 240)
    one, two = (np.full((16, 16, 3), value, np.uint8) for value in (60, 66))
    out = compose(np.full((16, 16, 3), 63, np.uint8), (16, 16), [(one, (0, 0, 16, 16)), (two, (0, 0, 16, 16))])
    assert np.unique(out).tolist() == [63]
