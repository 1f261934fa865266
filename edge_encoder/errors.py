"""The errors of the edge that a client or an operator meets. Each message names the remedy.

AeicError
├── SpoolError             503, the spool cannot do this now
│   ├── SpoolFull          507, its cap is reached, or the disk is full
│   └── IdTaken            409, the id belongs to another picture
├── PictureReaderLost      422, the process that read the picture crashed or was ended
└── ReaderUnavailable      503, no process can be started to read the picture
"""

from __future__ import annotations

from aeic.errors import AeicError, Unreadable
from aeic.runtime.device_check import lacks_memory
from aeic_service.errors import ServiceError


class SpoolError(AeicError):
    """The spool cannot do this now."""

    http_status = 503


class SpoolFull(SpoolError):
    """The spool's cap is reached, or the disk is full."""

    http_status = 507


class IdTaken(SpoolError):
    """The id belongs to a frame made from another picture."""

    http_status = 409


class PictureReaderLost(Unreadable):
    """The process that read the picture crashed, took too long, or needed too much memory. Another try would end in the
    same way."""

    problem_type = "undecodable"  # which clients may know


class ReaderUnavailable(ServiceError):
    """No process can be started to read the picture. That is not the picture's fault."""

    http_status = 503


def is_of_the_machine(error: Exception) -> bool:
    """Whether it is a fault of the machine, not of the picture: no memory, or an error of the operating system.

    ONNX Runtime reports a failed allocation in the text of an exception of its own. Pillow raises OSError for damaged
    pictures, without an errno.
    """
    if isinstance(error, SpoolError | ReaderUnavailable) or lacks_memory(error):
        return True
    if isinstance(error, OSError):
        return error.errno is not None
    return "can't start new thread" in str(error)
