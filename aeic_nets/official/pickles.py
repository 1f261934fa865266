"""Reads tensors from files that may be untrusted pickles.

A pickle is opened in a child process, with torch's loader for tensors and plain containers only, under limits of time
and size (aeic_nets.official.pickle_child). Objects of other classes are not loaded. The child writes safetensors, and
this process reads only those.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from aeic.errors import BundleError
from aeic_nets.official.keys import Renamed
from aeic_nets.official.pickle_child import SEPARATOR

MAX_BYTES = 16 << 30
MAX_SECONDS = 900


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """``BundleError`` if the file is not valid safetensors."""
        try:
            self._file = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{path} cannot be read ({error}): give the original file") from None
        self._names = list(self._file.keys())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._names:
            raise KeyError(key)
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_file(path: Path, scratch: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or pickled file; in the latter, names have the dictionaries' keys in front.

    ``scratch`` is an existing folder for the child's output. ``BundleError`` says why a file was refused.
    """
    if not path.is_file():
        raise BundleError(f"there is no file {path}: give the original file")
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path} is over {MAX_BYTES >> 30} GiB: that is none of the official files")
    if path.suffix == ".safetensors":
        return TensorFile(path)
    out = scratch / f"{path.name}.safetensors"
    limits = [str(MAX_SECONDS), str(MAX_BYTES)]
    child = [sys.executable, "-W", "ignore", "-m", "aeic_nets.official.pickle_child"]
    command = [*child, str(path.resolve()), str(out), *limits]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{path} took over {MAX_SECONDS} s to read: give the original file") from None
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["the reader died"])[-1]
        raise BundleError(f"{path} was refused, it must hold tensors and plain containers only: {reason}")
    return TensorFile(out)


def entry(tensors: Mapping[str, Tensor], name: str) -> Renamed:
    """The tensors of the dictionary ``name`` of a pickled file; empty if it is not there."""
    prefix = name + SEPARATOR
    return Renamed(tensors, {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)})
