from __future__ import annotations

import pytest

from aeic import errors


@pytest.mark.parametrize(
    ("kind", "exit_code", "status"),
    [
        (errors.Unreadable, 3, 422),
        (errors.UnsupportedFormat, 3, 415),
        (errors.TooLarge, 3, 413),
        (errors.NotABitstream, 4, 422),
        (errors.Damaged, 4, 422),
        (errors.WrongModel, 5, 409),
        (errors.BundleError, 5, 500),
        (errors.RateError, 2, 400),
    ],
)
def test_codes(kind: type[errors.AeicError], exit_code: int, status: int) -> None:
    assert (kind.exit_code, kind.http_status) == (exit_code, status)
    assert issubclass(kind, errors.AeicError)


def test_tree_in_the_docstring_is_complete() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type):
            assert errors.__doc__ and name in errors.__doc__
