"""A region painted into a picture: at its place, with soft edges and matched colours."""

from __future__ import annotations

import tracemalloc

import numpy as np

from cloud_decoder.admission import BYTES_A_PIXEL
from cloud_decoder.images.composition import MAX_SIDE, Region, composed_size, enlarged, paste
from cloud_decoder.tiling import Picture


def compose(picture: Picture, original: tuple[int, int], parts: list[tuple[Picture, Region]]) -> Picture:
    out = enlarged(picture, original)
    for part, region in parts:
        paste(out, original, part, region)
    return out


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


def test_bands_of_rows_leave_no_seam() -> None:
    rows = np.linspace(20, 220, 200).astype(np.uint8)
    ramp = np.broadcast_to(rows[:, None, None], (200, 100, 3)).copy()
    out = compose(ramp, (100, 200), [(ramp, (0, 0, 100, 200))])
    assert (out == ramp).all()


def test_composing_takes_no_more_memory_than_admission_counts() -> None:
    side, small = 512, np.zeros((64, 64, 3), np.uint8)
    compose(small, (64, 64), [])  # whatever is imported on first use
    tracemalloc.start()
    try:
        compose(small, (side, side), [(small, (0, 0, side, side))] * 2)
        traced = tracemalloc.get_traced_memory()[1] / side**2
    finally:
        tracemalloc.stop()
    assert traced + 3 * 4 <= BYTES_A_PIXEL, "Pillow's pictures are not traced: at most three of 4 bytes a pixel"
