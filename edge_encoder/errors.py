"""The errors of the edge that a client or an operator meets. Each message names the remedy.

AeicError
└── SpoolError        503, the spool cannot do this now
    ├── SpoolFull     507, its cap is reached, or the disk is full
    └── IdTaken       409, the id belongs to another picture
"""

from __future__ import annotations

from aeic.errors import AeicError


class SpoolError(AeicError):
    """The spool cannot do this now."""

    http_status = 503


class SpoolFull(SpoolError):
    """The spool's cap is reached, or the disk is full."""

    http_status = 507


class IdTaken(SpoolError):
    """The id belongs to a frame made from another picture."""

    http_status = 409
