"""The interface of a codec in the benchmarks: a name, an ordered list of settings, ``encode`` and ``decode``.

Pictures are (H, W, 3) uint8. ``decode`` gets the size of the picture, which favours codecs whose bare streams do not
contain it. Our own is in ours.py, the others are in baselines.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aeic.errors import AeicError

Picture = NDArray[np.uint8]
TIMEOUT_SECONDS = 1800


class CodecUnavailable(AeicError):
    """A codec whose package, program or checkpoint is missing. The message says how to get it."""


class CodecFailed(AeicError):
    """A codec that failed on a picture. The message contains its output."""


class Codec(Protocol):
    """``settings`` are in the order of their rates, the fewest bytes first."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Sequence[int | float | str]: ...

    def encode(self, picture: Picture, setting: Any) -> bytes: ...

    def decode(self, data: bytes, width: int, height: int) -> Picture: ...


def run_program(command: list[str], name: str, data: bytes = b"", folder: Path | None = None) -> bytes:
    """The output of ``command``, run on one thread in ``folder``. :class:`CodecFailed` with the end of its output if it
    fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment, cwd=folder
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodecFailed(f"{name}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-400:]
        raise CodecFailed(f"{name}: {command[0]} ended with {done.returncode}: {said}")
    return done.stdout
