from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeic.errors import BundleError
from aeic.tables import TOTAL, Rows, gaussian_rows, gaussian_scales, rows_from_pmf

weights = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60).filter(
    lambda pmf: sum(pmf) > 1e-3
)


@given(st.lists(weights, min_size=1, max_size=5))
def test_rows_sum_exactly_and_keep_the_proportions(pmfs: list[list[float]]) -> None:
    lengths, offsets, freqs = rows_from_pmf(pmfs)
    rows = Rows(lengths, offsets, freqs)
    for index, pmf in enumerate(pmfs):
        row = freqs[rows.row(index)]
        assert row.sum() == TOTAL and row.min() >= 1 and len(row) == len(pmf)
        ideal = np.array(pmf) / sum(pmf) * (TOTAL - len(pmf)) + 1
        assert np.abs(row - ideal).max() <= 2
        assert rows.cums[rows.row(index)].tolist() == (np.cumsum(row) - row).tolist()


def test_gaussian_rows() -> None:
    rows = Rows(*gaussian_rows())
    scales = gaussian_scales()
    assert len(rows) == 64 and scales[0] == pytest.approx(0.11) and scales[-1] == pytest.approx(256)
    assert rows.lengths[0] == 9 and rows.lengths[-1] == 3131
    for index in (20, 40, 63):
        row = rows.freqs[rows.row(index)]
        assert (row == row[::-1]).sum() >= len(row) - 60  # the last units break the symmetry by 1
        values = np.arange(rows.offsets[index], rows.offsets[index] + rows.lengths[index])
        assert (row * values**2).sum() / TOTAL == pytest.approx(scales[index] ** 2 + 1 / 12, rel=0.01)
        assert rows.lowest[index] == -rows.highest[index]


def test_offsets() -> None:
    assert rows_from_pmf([[1, 1, 1], [1, 1]])[1].tolist() == [-1, -1]
    assert rows_from_pmf([[1, 1, 1]], [-7])[1].tolist() == [-7]
    with pytest.raises(ValueError, match="one offset each"):
        rows_from_pmf([[1]], [1, 2])


@pytest.mark.parametrize("pmf", [[], [0, 0], [1, -1], [np.nan], [np.inf], [[1, 2]], [1] * 20000])
def test_bad_distributions(pmf: list[float]) -> None:
    with pytest.raises(ValueError, match="distribution"):
        rows_from_pmf([pmf])


@pytest.mark.parametrize(
    ("lengths", "offsets", "freqs"),
    [
        ([2], [0], [TOTAL - 1, 2]),
        ([2], [0], [TOTAL, 0]),
        ([2], [0], [TOTAL]),
        ([], [], []),
        ([0, 1], [0, 0], [TOTAL]),
        ([1], [0, 0], [TOTAL]),
        ([1], [1 << 20], [TOTAL]),
        ([1 << 30], [0], [TOTAL]),
    ],
)
def test_bad_rows(lengths: list[int], offsets: list[int], freqs: list[int]) -> None:
    with pytest.raises(BundleError):
        Rows(np.array(lengths, np.int32), np.array(offsets, np.int32), np.array(freqs, np.int32))
    with pytest.raises(BundleError, match="integers"):
        Rows(np.array([1]), np.array([0]), np.array([float(TOTAL)]))


def test_bits() -> None:
    rows = Rows(*rows_from_pmf([[1, 1], [1, 1, 1, 1]], [0, 0]))
    assert rows.bits(np.array([0, 1, 3]), np.array([0, 0, 1])) == pytest.approx(4)
    with pytest.raises(ValueError, match="clip"):
        rows.bits(np.array([2]), np.array([0]))
