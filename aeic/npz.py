"""Reads .npz archives from untrusted sources: no pickles, and limits are checked before memory is allocated."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_npz(path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    """All arrays of the archive at ``path``.

    ``ValueError`` if they would take more than ``max_bytes`` once unpacked, which a small archive can ask for, or if
    one holds Python objects; ``OSError`` or ``zipfile.BadZipFile`` for a file that cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max_bytes:
        raise ValueError(f"its arrays take {unpacked} bytes, and at most {max_bytes} are read")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
