"""Libraries that are used where they are installed, and that would fetch weights by themselves."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any


class Blocked(Exception):
    """A library tried to open a connection. It is no OSError, because libraries try again after those."""


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Inside, opening a connection raises an error. For libraries that fetch what they do not find."""

    def refuse(*_: object, **__: object) -> Any:
        raise Blocked

    patched: Any = socket  # mypy rejects an assignment to a function of a module
    kept = socket.socket.connect, socket.getaddrinfo
    patched.socket.connect, patched.getaddrinfo = refuse, refuse
    try:
        yield
    finally:
        patched.socket.connect, patched.getaddrinfo = kept


def remedy(error: Exception, packages: str) -> str:
    """What to do about ``error``, which came from ``packages`` (names for pip, the first one is the library)."""
    if isinstance(error, Blocked):
        return "the weights are not on this machine; --download lets the library fetch them once"
    if isinstance(error, ModuleNotFoundError):
        name = str(error.name).partition(".")[0]
        return f"no package {name!r}: pip install {packages if name in packages.split() else name}"
    return f"{packages.split()[0]} cannot be used ({type(error).__name__}: {error})"
