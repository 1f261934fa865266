"""Archives of arrays: limits before allocation, and no pickles."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from aeic.npz import read_npz


def test_arrays_come_back(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", one=np.arange(3), two=np.zeros((2, 2), np.float32))
    arrays = read_npz(tmp_path / "a.npz", 10_000)
    assert sorted(arrays) == ["one", "two"] and arrays["one"].tolist() == [0, 1, 2]


def test_a_small_archive_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(8_000_000, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    with pytest.raises(ValueError, match="at most 1000000"):
        read_npz(tmp_path / "bomb.npz", 1_000_000)


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", value=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        read_npz(tmp_path / "pickle.npz", 10_000)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("-" * 9000 + "1", "malformed"),
        ("1" + "+1" * 4900, "malformed"),
        ("(" * 9000, "malformed"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 40,)}", "malformed"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}", "but has"),
        ("{'descr': '|V2147483647', 'fortran_order': False, 'shape': (1,)}", "but has"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "negative"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "pickle"),
    ],
    ids=["minus", "sum", "nested", "shift", "larger than all memory", "wide", "negative", "object"],
)
def test_a_description_that_claims_more_than_there_is(tmp_path: Path, head: str, said: str) -> None:
    """It is refused before memory is allocated, and however deeply it is nested."""
    text = head.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("one.npy", b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text)
    with pytest.raises(ValueError, match=said if said != "malformed" else "malformed|Cannot parse"):
        read_npz(tmp_path / "a.npz", 100_000)
