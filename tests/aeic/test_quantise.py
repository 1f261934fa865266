from __future__ import annotations

import numpy as np
import pytest

from aeic.quantise import check_value, dequantise, digest, hyper_size, pad_latent, quantise_hyper, quantise_residual
from aeic.tables import Rows, gaussian_rows, rows_from_pmf

ROWS = Rows(*gaussian_rows())


def test_skipped_is_zero_whatever_the_residual() -> None:
    y, means = np.array([[[9.0, -9.0]]], np.float32), np.zeros((1, 1, 2), np.float32)
    assert quantise_residual(y, means, np.array([[[-1, 40]]], np.int8), ROWS).tolist() == [[[0, -9]]]


def test_rounds_half_to_even_and_clips_to_the_row() -> None:
    y = np.array([[[0.5, 1.5, 2.5, -99, 99]]], np.float32)
    found = quantise_residual(y, np.zeros_like(y), np.zeros(y.shape, np.int8), ROWS)
    assert found.tolist() == [[[0, 2, 2, -4, 4]]] and found.dtype == np.int16


def test_hyper_symbols() -> None:
    rows = Rows(*rows_from_pmf([[1, 1, 1], [1] * 9]))
    z = np.array([[[7.0]], [[2.75]]], np.float32)
    assert quantise_hyper(z, np.array([0, 0.25], np.float32), rows).ravel().tolist() == [1, 2]


@pytest.mark.parametrize(("side", "padded"), [(2, 4), (4, 4), (6, 8), (26, 28)])
def test_latents_are_padded_to_fours(side: int, padded: int) -> None:
    y = np.arange(3 * side * 4, dtype=np.float32).reshape(3, side, 4)
    wide = pad_latent(y)
    assert wide.shape == (3, padded, 4) and (wide[:, :side] == y).all()
    assert hyper_size(side, 4) == (padded // 4, 1)
    if padded > side > 2:
        assert (wide[:, side] == y[:, side - 2]).all()  # reflected about the last row


def test_no_negative_zero() -> None:
    assert not np.signbit(dequantise(np.zeros(1, np.int16), np.array([-0.0], np.float32))).any()


def test_check_value_sees_everything() -> None:
    z, y, y_hat = np.zeros((2, 1, 1), np.int32), np.zeros((4, 2, 2), np.int16), np.zeros((4, 2, 2), np.float32)
    values = {check_value(z, y, y_hat, 0, 16, 16)}
    values.add(check_value(z + 1, y, y_hat, 0, 16, 16))
    values.add(check_value(z, y + 1, y_hat, 0, 16, 16))
    values.add(check_value(z, y, y_hat + 1, 0, 16, 16))
    values.add(check_value(z, y, y_hat, 1, 16, 16))
    values.add(check_value(z, y, y_hat, 0, 17, 16))
    values.add(check_value(z, y, y_hat, 0, 16, 17))
    values.add(check_value(z, y, y_hat, 0, 16, 16, bytes(12)))
    values.add(check_value(z, y, y_hat, 0, 16, 16, bytes([1, *bytes(11)])))
    assert len(values) == 9 and all(0 < value < 1 << 24 for value in values)


def test_digest_is_of_little_endian_float32() -> None:
    y_hat = np.ones((1, 1, 1), np.float32)
    assert digest(y_hat) == digest(y_hat.astype(">f4"))
    assert digest(y_hat).startswith("e00e5eb9")
