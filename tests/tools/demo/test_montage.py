"""The sheet of originals and reconstructions."""

from __future__ import annotations

import numpy as np
import pytest

from aeic_tools.comparison import psnr
from aeic_tools.demo.montage import Exhibit, montage


def picture(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_exhibit_is_on_the_sheet(count: int) -> None:
    exhibits = [Exhibit(picture(64, 900, 50 + i), picture(64, 900, 150 + i), "a", "b") for i in range(count)]
    sheet = np.asarray(montage(exhibits))
    for i in range(count):
        assert (sheet == 50 + i).all(-1).any() and (sheet == 150 + i).all(-1).any()


def test_small_and_tall_pictures_fit() -> None:
    sheet = montage([Exhibit(picture(2000, 20, 9), picture(16, 16, 200), "tall", "small")])
    assert (np.asarray(sheet) == 200).all(-1).sum() >= 200


def test_psnr() -> None:
    a = picture(4, 4, 100)
    assert psnr(a, a) == float("inf")
    assert psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)
