"""The errors of the edge that a client or an operator meets. Each message names the remedy.

AeicError
└── SpoolError        503, the spool cannot do this now
    ├── SpoolFull     507, its cap is reached, or the disk is full
    └── IdTaken       409, the id belongs to another picture
"""

from __future__ import annotations

from aeic.errors import AeicError

_NO_MEMORY = ("bad_alloc", "failed to allocate memory", "can't start new thread")


class SpoolError(AeicError):
    """The spool cannot do this now."""

    http_status = 503


class SpoolFull(SpoolError):
    """The spool's cap is reached, or the disk is full."""

    http_status = 507


class IdTaken(SpoolError):
    """The id belongs to a frame made from another picture."""

    http_status = 409


def is_of_the_machine(error: Exception) -> bool:
    """Whether it is a fault of the machine, not of the picture: no memory, or an error of the operating system.

    ONNX Runtime reports a failed allocation in the text of an exception of its own. Pillow raises OSError for damaged
    pictures, without an errno.
    """
    if isinstance(error, MemoryError | SpoolError):
        return True
    if isinstance(error, OSError):
        return error.errno is not None
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)
