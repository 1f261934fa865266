"""Reads .npz archives from untrusted sources: no pickles, and limits are checked before memory is allocated."""

from __future__ import annotations

import math
import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_TOO_DEEP = (RecursionError, MemoryError, tokenize.TokenError)
"""What NumPy lets out of the description of an array, which it parses as Python."""


def read_npz(path: Path, max_bytes: int) -> dict[str, NDArray[Any]]:
    """All arrays of the archive at ``path``.

    ``ValueError`` if they would take more than ``max_bytes`` once unpacked, which a small archive can ask for, if one
    holds Python objects or says that it has more bytes than there are; ``OSError`` or ``zipfile.BadZipFile`` for a file
    that cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max_bytes:
            raise ValueError(f"its arrays take {unpacked} bytes, and at most {max_bytes} are read")
        for member in archive.infolist():
            with archive.open(member) as file:
                _check_head(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_head(file: IO[bytes], size: int) -> None:
    """``ValueError`` unless the array in ``file``, of ``size`` bytes, is as large as its description says."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)  # type: ignore[no-untyped-call]  # numpy has no types for these two
    if version not in readers:
        raise ValueError(f"an array of format {version}: only 1.0 and 2.0 are read")
    try:
        shape, _, kind = readers[version](file)  # type: ignore[no-untyped-call]  # as above
    except _TOO_DEEP as error:
        raise ValueError(f"the description of an array is malformed ({type(error).__name__})") from None
    if kind.hasobject:
        raise ValueError("an array of Python objects, which would be a pickle")
    if math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"an array says that it has the shape {shape}, but has {size} bytes")
