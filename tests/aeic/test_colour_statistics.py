"""Colour statistics: the formula in floats, the limits of any picture, and what the correction does to a tint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeic.colour_statistics import MAX_STD, MIN_STD, ColourStatistics
from aeic.pixels import load_picture
from tests.support.pictures import picture as smooth


def photograph() -> np.ndarray:
    return load_picture(smooth(530, 300, form="PNG"))


def tinted(picture: np.ndarray) -> np.ndarray:
    """With less red and contrast, and more blue; nothing is clipped."""
    return np.rint(picture * np.array([0.7, 0.8, 0.6]) + np.array([0, 20, 90])).astype(np.uint8)


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one.astype(float) - other) ** 2).mean())


@given(st.integers(16, 40), st.integers(16, 600), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_means_and_deviations_are_those_of_the_formula(width: int, height: int, most: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, most + 1, (height, width, 3)).astype(np.uint8)
    found = ColourStatistics.of(picture)
    values = picture.reshape(-1, 3) / 255
    assert np.abs(65535 * values.mean(0) - found.means).max() <= 0.500001
    assert np.abs(65535 * np.sqrt(values.var(0, ddof=1) + 1e-5) - found.stds).max() <= 0.500001
    assert ColourStatistics.unpack(found.pack()) == found


def test_a_view_of_a_larger_picture_is_measured_as_its_copy() -> None:
    picture = photograph()[:, ::-1][3:, 5:]
    assert ColourStatistics.of(picture) == ColourStatistics.of(picture.copy())


def test_no_picture_is_outside_the_limits_and_some_are_at_them() -> None:
    flat, halves = np.full((16, 16, 3), 77, np.uint8), np.zeros((16, 16, 3), np.uint8)
    halves[:8] = 255
    assert ColourStatistics.of(flat).stds == (MIN_STD,) * 3
    assert ColourStatistics.of(halves).stds == (MAX_STD,) * 3
    for std in (0, MIN_STD - 1, MAX_STD + 1):
        with pytest.raises(ValueError, match="no picture has"):
            ColourStatistics((0, 0, 0), (MIN_STD, std, MAX_STD))
    with pytest.raises(ValueError, match="no picture has"):
        ColourStatistics((0, -1, 0), (MIN_STD, MIN_STD, MAX_STD))


def test_the_correction_takes_a_tint_away() -> None:
    original = photograph()
    decoded = tinted(original)
    before = error(decoded, original)
    ColourStatistics.of(original).correct(decoded)
    assert error(decoded, original) < 1 < 100 < before


def test_the_channels_and_the_two_kinds_of_numbers_are_not_confused() -> None:
    """The planted faults: statistics in another order do not take the tint away."""
    original = photograph()
    right = ColourStatistics.of(original)
    (r, g, b), (low, middle, high) = right.means, right.stds
    for wrong in (ColourStatistics((b, g, r), right.stds), ColourStatistics(right.means, (high, middle, low))):
        assert wrong != right
        decoded = tinted(original)
        wrong.correct(decoded)
        assert error(decoded, original) > 3


def test_a_picture_with_its_own_statistics_stays_as_it_is() -> None:
    picture = photograph()
    same = picture.copy()
    ColourStatistics.of(picture).correct(same)
    assert (same == picture).all()


def test_a_picture_of_one_colour_is_corrected_too() -> None:
    decoded = np.full((16, 16, 3), 100, np.uint8)
    ColourStatistics.of(np.full((16, 16, 3), 30, np.uint8)).correct(decoded)
    assert (decoded == 30).all()
